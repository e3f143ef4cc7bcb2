"""Text of the first sweep file that `raycap init` writes: an example with the description of every field."""

import json
from collections.abc import Iterator, Mapping
from enum import Enum
from textwrap import wrap
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from raycap.spec import SweepSpec, TrialSpec
from raycap.spec.document import SpecError
from raycap.spec.yaml_tree import read_yaml

WIDTH = 100
INDENT = "  "

TRIAL: dict[str, Any] = {
    "profiles": {
        "num_profiles": 600,
        "num_relations": 3,
        "structure": "uniform",
        "names": {"first": 20, "middle": 20, "last": 40},
        "seed": 0,
    },
    "questions": {"hops": [1], "chain_of_thought": False},
    "tokenizer": {"kind": "word"},
    "model": {
        "hidden_size": 8,
        "num_layers": 2,
        "tie_embeddings": True,
        "heads": {"num_heads": 1},
        "parametrization": {"kind": "standard"},
    },
    "training": {
        "length": {"exposures": 150},
        "batch_size": 256,
        "optimizer": {
            "kind": "adamw",
            "lr": 0.02,
            "betas": [0.8, 0.99],
            "weight_decay": 0.0,
            "schedule": "linear",
            "warmup_steps": 200,
            "grad_clip": 0.3,
        },
        "precision": "fp32",
        "packing": {"kind": "rows"},
        "num_evaluations": 8,
        "seed": 0,
    },
}
"""The example's trial; these fields are written, in this order."""
GRID: dict[str, list[Any]] = {"model.hidden_size": [8, 10, 12], "training.seed": [0, 1]}
SETTINGS: dict[str, Any] = {
    "analysis": {"schemes": ["optimal"], "selections": ["set", "enumerate", "independent"], "accounting": "exact"},
    "execution": {
        "num_workers": 1,
        "cpus_per_worker": 1.0,
        "gpus_per_worker": 0.0,
        "replicas": 2,
        "max_failures": 3,
        "early_stop": [],
        "checkpoint_every_s": 60.0,
    },
    "tracking": {"uri": None, "experiment": "raycap"},
    "storage": "runs",
}
"""The other sections of the example."""


def starter(name: str) -> str:
    """Return a sweep file that runs on a laptop in a minute or two. Raises SpecError if the name is not allowed."""
    try:
        sweep = SweepSpec.model_validate_json(json.dumps({"name": name, **SETTINGS}))
    except ValidationError as error:
        rule = error.errors()[0]["msg"]
        raise SpecError(
            [f"name: {rule.replace('String should', 'it should')}, got {name!r}; choose another name"]
        ) from None
    lines = [
        "# How many bits does each parameter of a tiny Llama store? (The first line is the question that a sweep asks.)",
        "",
        *_comment("Every field may be omitted; then it has its default. Change the name here or with --set-name.", 0),
        *_comment(_description(SweepSpec, "name"), 0),
        f"name: {name if read_yaml(name.encode()).value == name else json.dumps(name)}",
        "",
        *_comment(_description(SweepSpec, "trial"), 0),
        "trial:",
        *_fields(TrialSpec.model_validate_json(json.dumps(TRIAL)), TRIAL, 1),
        "",
        *_comment(_description(SweepSpec, "grid"), 0),
        "grid:",
        *(f"{INDENT}{path}: {_yaml(values)}" for path, values in GRID.items()),
        "",
        *_fields(sweep, SETTINGS, 0),
    ]
    return "\n".join(lines) + "\n"


def _fields(section: BaseModel, values: Mapping[str, Any], depth: int) -> Iterator[str]:
    """Yield the lines of a section: each field with its description. `section` is validated from `values`.

    The validated section gives the classes of inner sections, which are unions in the models.
    """
    model = type(section)
    for name, value in values.items():
        if isinstance(value, dict):
            inner = getattr(section, name)
            yield from _comment(_description(model, name) or " ".join((type(inner).__doc__ or "").split()), depth)
            yield f"{INDENT * depth}{name}:"
            yield from _fields(inner, value, depth + 1)
        else:
            yield from _comment(_description(model, name) + _default(model, name), depth)
            yield f"{INDENT * depth}{name}: {_yaml(value)}"


def _default(model: type[BaseModel], name: str) -> str:
    """Return the default of a field as a sentence; empty if it is required or its default is a section."""
    field = model.model_fields[name]
    if field.is_required() or field.default_factory is not None or isinstance(field.default, BaseModel):
        return ""
    return f" Default: {_yaml(TypeAdapter(Any).dump_python(field.default, mode='json'))}."


def _description(model: type[BaseModel], name: str) -> str:
    """Return the description of a field in one line."""
    return " ".join((model.model_fields[name].description or "").split())


def _comment(text: str, depth: int) -> list[str]:
    """Return a text as lines of YAML comments."""
    return [f"{INDENT * depth}# {line}" for line in wrap(text, WIDTH - 2 * depth)]


def _yaml(value: Any) -> str:
    """Return a value in YAML flow style."""
    if isinstance(value, str | Enum):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value)
