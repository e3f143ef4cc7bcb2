"""Adapters of models of transformers, by the library peft: low-rank matrices beside frozen weights."""

import warnings

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from raycap.spec import LoraAdapter


def attach(network: PreTrainedModel, spec: LoraAdapter, *, seed: int) -> None:
    """Freeze a model and add an adapter with fresh weights, which does not change what the model computes.

    Raises ValueError if a target is no linear layer of the blocks, or if peft cannot adapt it.
    """
    config = LoraConfig(r=spec.r, lora_alpha=spec.alpha, target_modules=_target_layers(network, spec))
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):  # hints that need no action
            torch.manual_seed(seed)
            inject_adapter_in_model(config, network)
    except ValueError as error:
        raise ValueError(f"adapter.targets: peft cannot adapt {network.config.model_type}: {error}") from error


def merge(network: PreTrainedModel) -> None:
    """Add the adapter of a model to its weights, and remove it."""
    adapted = {name: module for name, module in network.named_modules() if isinstance(module, LoraLayer)}
    for name, module in adapted.items():
        module.merge()
        network.set_submodule(name, module.get_base_layer())


def _target_layers(network: PreTrainedModel, spec: LoraAdapter) -> list[str]:
    """Return the full names of the linear layers that an adapter adapts; never the output layer."""
    output = network.get_output_embeddings()
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output
    ]
    by_target = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in spec.targets}
    for target, matched in by_target.items():
        if not matched:
            known = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in layers))
            raise ValueError(
                f"adapter.targets: no linear layer in the blocks of {network.config.model_type} is called {target!r}; its "
                f"linear layers are {known}; name some of these"
            )
    return sorted({name for matched in by_target.values() for name in matched}) or layers
