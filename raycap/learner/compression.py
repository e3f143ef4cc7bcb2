"""Models with fewer bits of weights: rounded to integers per output channel, or without their smallest weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from raycap.learner.language_model import LanguageModel, ParameterGroup
from raycap.learner.model import Llama
from raycap.spec import WeightFormat


def compressed(model: LanguageModel, options: Mapping[str, Any]) -> LanguageModel:
    """Return a model with changed weights; the model itself if there are no options.

    Args:
        model: A single model.
        options: {"quantise": "int8"} rounds all matrices and embeddings to integers of 8 bits. {"prune": 0.5} sets half of
            the weights of each of them to 0. Gains of norms are unchanged.

    Raises ValueError if there are options and the model is one of transformers, whose output channels are not known.
    """
    if not options:
        return model
    if not isinstance(model, Llama):
        raise ValueError("model.kind: only models of kind llama can be quantised or pruned")
    changed = model.copy()
    for name, parameter in changed.named_parameters():
        if ParameterGroup.of(name) is ParameterGroup.GAIN:
            continue
        weight = parameter.detach()[0]
        if "quantise" in options:
            weight.copy_(rounded(weight, WeightFormat(options["quantise"]).num_bits))
        if "prune" in options:
            weight.copy_(pruned(weight, options["prune"]))
    return changed


def rounded(weight: Tensor, num_bits: int) -> Tensor:
    """Round a weight (out, in) to the nearest multiple of a scale per output channel.

    Multiples are -m to m for m = 2^(b-1) - 1, and the largest weight of a channel in absolute value is m times the scale.
    """
    largest = 2 ** (num_bits - 1) - 1
    scale = weight.abs().amax(dim=1, keepdim=True) / largest
    return torch.where(scale > 0, (weight / scale).round() * scale, weight)


def pruned(weight: Tensor, share: float) -> Tensor:
    """Set a share of a weight's elements, the smallest in absolute value, to 0."""
    num = round(share * weight.numel())
    smallest = weight.abs().flatten().argsort(stable=True)[:num]
    return weight.flatten().index_fill(0, smallest, 0.0).view_as(weight)
