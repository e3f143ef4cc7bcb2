"""Sizes of transformers' models for the plan: checks, parameter counts, and configurations with a given size.

Parameters are counted on models without memory for their weights.
"""

import json
from functools import cache

import torch
from transformers import PreTrainedConfig

from raycap.learner import transformers_model
from raycap.learner.transformers_config import build_config, common_names
from raycap.results import ParameterCounts
from raycap.spec import LoraAdapter, ModelOfTransformers, TransformersByConfig, TransformersByParams

CHECKED_VOCAB_SIZE = 8
"""Size of the vocabulary of the models that are built to check an architecture."""
MAX_CHECKED = 100_000_000
"""Number of parameters above which the plan does not build a model to check it; its training does."""


def resolve(spec: TransformersByConfig, vocab_size: int) -> TransformersByConfig:
    """Return a model with the common names of its fields and its width and number of layers.

    Raises ValueError if the configuration is not that of a causal language model.
    """
    config = build_config(spec.config, vocab_size)
    resolved = spec.model_copy(update={"config": common_names(spec.config, config)})
    if parameter_counts(resolved, CHECKED_VOCAB_SIZE).total <= MAX_CHECKED:
        transformers_model.build_model(resolved, CHECKED_VOCAB_SIZE, seed=0)
    return resolved


def parameter_counts(spec: ModelOfTransformers, vocab_size: int, adapter: LoraAdapter | None = None) -> ParameterCounts:
    """Return the parameter counts of a model. Raises ValueError if an adapter does not fit it."""
    return _counts(json.dumps(spec.config, sort_keys=True), vocab_size, adapter)


def max_length(spec: ModelOfTransformers, vocab_size: int) -> int | None:
    """Return the largest number of tokens of a row, None if the model has no limit."""
    limit = getattr(build_config(spec.config, vocab_size), "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


@cache
def _counts(config: str, vocab_size: int, adapter: LoraAdapter | None) -> ParameterCounts:
    return _counts_of(build_config(json.loads(config), vocab_size), adapter)


def _counts_of(config: PreTrainedConfig, adapter: LoraAdapter | None = None) -> ParameterCounts:
    with torch.device("meta"):
        network = transformers_model.build_network(config)
        if adapter:
            from raycap.learner import adapters  # imports peft, which takes seconds

            adapters.attach(network, adapter, seed=0)
        return transformers_model.count_parameters(network)


def with_num_params(spec: TransformersByParams, vocab_size: int, max_relative_error: float) -> TransformersByConfig:
    """Return the model whose number of parameters is nearest to `num_params`.

    Raises ValueError with the nearest possible sizes if the relative difference exceeds `max_relative_error`, or if the
    solved field is given in the configuration or does not change the number of parameters.
    """
    if given := sorted({spec.solve, *spec.proportional} & spec.config.keys()):
        raise ValueError(f"model.config.{given[0]}: is solved from num_params; remove it, or num_params")

    def total(multiple: int) -> int:
        return _counts_of(build_config(spec.at(multiple * spec.multiple_of), vocab_size)).total

    if total(1) == total(2):
        raise ValueError(f"model.solve: {spec.solve} does not change the number of parameters; give another field")
    # The total grows with the field: double the value until it reaches the target, then halve the interval.
    below, above = 0, 1
    while total(above) < spec.num_params:
        below, above = above, 2 * above
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (middle, above) if total(middle) < spec.num_params else (below, middle)
    sizes = {multiple: total(multiple) for multiple in (below, above) if multiple > 0}
    nearest = min(sizes, key=lambda multiple: abs(sizes[multiple] - spec.num_params))
    if abs(sizes[nearest] - spec.num_params) > max_relative_error * spec.num_params:
        possible = " or ".join(f"{size:,} ({spec.solve} {m * spec.multiple_of})" for m, size in sizes.items())
        raise ValueError(
            f"model.num_params: no {spec.solve} gives {spec.num_params:,} parameters with a vocabulary of {vocab_size}; the "
            f"nearest are {possible}; change num_params or multiple_of"
        )
    return TransformersByConfig(kind="transformers", config=spec.at(nearest * spec.multiple_of))
