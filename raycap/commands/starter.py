"""A first sweep file, with every field explained in the words of the spec itself."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from textwrap import wrap
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from raycap.spec import (
    AdamW,
    AnalysisSpec,
    ExecutionSpec,
    Exposures,
    ModelByWidth,
    NamePools,
    NumHeads,
    OnePerRow,
    ProfilesByCount,
    QuestionsByShare,
    Standard,
    SweepSpec,
    TrackingSpec,
    TrainingSpec,
    TrialSpec,
    WordTokenizer,
)
from raycap.spec.file import SpecError
from raycap.spec.yaml_tree import read_yaml

WIDTH = 100
INDENT = "  "


@dataclass(frozen=True)
class SpecSection:
    """A section of the file: a model, and the values of the fields that are written."""

    model: type[BaseModel]
    values: Mapping[str, Any]


TRIAL = SpecSection(
    TrialSpec,
    {
        "profiles": SpecSection(
            ProfilesByCount,
            {
                "num_profiles": 600,
                "num_relations": 3,
                "structure": "uniform",
                "names": SpecSection(NamePools, {"first": 20, "middle": 20, "last": 40}),
                "seed": 0,
            },
        ),
        "questions": SpecSection(QuestionsByShare, {"hops": [1], "chain_of_thought": False}),
        "tokenizer": SpecSection(WordTokenizer, {"kind": "word"}),
        "model": SpecSection(
            ModelByWidth,
            {
                "hidden_size": 8,
                "num_layers": 2,
                "tie_embeddings": True,
                "heads": SpecSection(NumHeads, {"num_heads": 1}),
                "parametrization": SpecSection(Standard, {"kind": "standard"}),
            },
        ),
        "training": SpecSection(
            TrainingSpec,
            {
                "length": SpecSection(Exposures, {"exposures": 150}),
                "batch_size": 256,
                "optimizer": SpecSection(
                    AdamW,
                    {
                        "kind": "adamw",
                        "lr": 0.02,
                        "betas": [0.8, 0.99],
                        "weight_decay": 0.0,
                        "schedule": "linear",
                        "warmup_steps": 200,
                        "grad_clip": 0.3,
                    },
                ),
                "precision": "fp32",
                "packing": SpecSection(OnePerRow, {"kind": "rows"}),
                "num_evaluations": 8,
                "seed": 0,
            },
        ),
    },
)
GRID = {"model.hidden_size": [8, 10, 12], "training.seed": [0, 1]}
REST = SpecSection(
    SweepSpec,
    {
        "analysis": SpecSection(
            AnalysisSpec,
            {"schemes": ["optimal"], "selections": ["set", "enumerate", "independent"], "accounting": "exact"},
        ),
        "execution": SpecSection(
            ExecutionSpec,
            {
                "num_workers": 1,
                "cpus_per_worker": 1.0,
                "gpus_per_worker": 0.0,
                "replicas": 2,
                "max_failures": 3,
                "early_stop": [],
                "checkpoint_every_s": 60.0,
            },
        ),
        "tracking": SpecSection(TrackingSpec, {"uri": "sqlite:///mlflow.db", "experiment": "raycap"}),
        "storage": "runs",
    },
)


def starter(name: str) -> str:
    """A sweep file that runs on a laptop in a minute or two. Raises SpecError for a name that no sweep can have."""
    try:
        SweepSpec(name=name)
    except ValidationError as error:
        rule = error.errors()[0]["msg"]
        raise SpecError(
            [f"{name}: a sweep cannot be called so: {rule.replace('String should', 'it should')}"]
        ) from None
    grid = [f"{INDENT}{path}: {_yaml(values)}" for path, values in GRID.items()]
    lines = [
        "# How many bits does each parameter of a tiny Llama store? (The first line is the question that a sweep asks.)",
        "",
        *_comment(
            "Every field may be left out; then it has its default. A name may be changed here or by --set-name.", 0
        ),
        *_comment(_meaning(SweepSpec, "name"), 0),
        f"name: {name if read_yaml(name.encode()).value == name else json.dumps(name)}",
        "",
        *_section(SweepSpec, "trial", TRIAL, 0),
        "",
        *_comment(_meaning(SweepSpec, "grid"), 0),
        "grid:",
        *grid,
        "",
        *_fields(REST, 0),
    ]
    return "\n".join(lines) + "\n"


def _fields(part: SpecSection, depth: int) -> Iterator[str]:
    for name, value in part.values.items():
        if isinstance(value, SpecSection):
            yield from _section(part.model, name, value, depth)
        else:
            yield from _field(part.model, name, value, depth)


def _section(model: type[BaseModel], name: str, part: SpecSection, depth: int) -> Iterator[str]:
    yield from _comment(_meaning(model, name) or " ".join((part.model.__doc__ or "").split()), depth)
    yield f"{INDENT * depth}{name}:"
    yield from _fields(part, depth + 1)


def _field(model: type[BaseModel], name: str, value: Any, depth: int) -> Iterator[str]:
    field = model.model_fields[name]
    default = ""
    if not field.is_required() and field.default_factory is None and not isinstance(field.default, BaseModel):
        default = f" Default: {_yaml(TypeAdapter(Any).dump_python(field.default, mode='json'))}."
    yield from _comment(_meaning(model, name) + default, depth)
    yield f"{INDENT * depth}{name}: {_yaml(value)}"


def _meaning(model: type[BaseModel], name: str) -> str:
    """A field's own description in one line."""
    return " ".join((model.model_fields[name].description or "").split())


def _comment(text: str, depth: int) -> list[str]:
    return [f"{INDENT * depth}# {line}" for line in wrap(text, WIDTH - 2 * depth)]


def _yaml(value: Any) -> str:
    """A value in flow style."""
    if isinstance(value, str | Enum):
        return str(value)
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    return json.dumps(value)
