"""Conversion of models to and from the files of transformers, with muP folded into the weights.

The files are those of LlamaForCausalLM, or of ArceeForCausalLM, which is a Llama whose MLPs have no gate. transformers has
no Llama with parallel blocks; their files have the same form under a model type that transformers does not know.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from raycap.learner.fused_ops import NORM_EPS
from raycap.learner.model import FUSED_PROJECTIONS, ROPE_BASE, Llama
from raycap.spec import Mlp, ModelByWidth
from raycap.storage.saved_model import CONFIG, WEIGHTS, read_settings

META = torch.device("meta")


def transformers_weights(model: Llama) -> dict[str, Tensor]:
    """Return the weights of a single model under the names of transformers' LlamaForCausalLM, on the CPU.

    Fused projections are split. The multipliers of muP are folded into the weights, and weights that the passes of a loop
    share are copied for each block, so a plain Llama has the same logits. Blocks without an MLP get one of width 1
    whose weights are 0.
    """
    factors = _folded_factors(model.spec)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        (tensor,), names = parameter.detach(), _projection_names(name)
        for projection, weight in zip(names, tensor.chunk(len(names)), strict=True):
            weight = _to_half_split(weight, model.spec) if _is_rotated(projection) else weight
            weights[projection] = (weight * factors.get(_module_name(projection), 1.0)).cpu()
    if model.spec.mlp is None:
        h = model.spec.hidden_size
        for block in (f"model.layers.{index}" for index in range(model.spec.depth)):
            weights[f"{block}.post_attention_layernorm.weight"] = torch.ones(h)
            weights |= {f"{block}.mlp.{name}.weight": torch.zeros(1, h) for name in ("gate_proj", "up_proj")}
            weights[f"{block}.mlp.down_proj.weight"] = torch.zeros(h, 1)
    return weights


def _is_rotated(name: str) -> bool:
    """Return whether rotary positions apply to the output of a projection."""
    return _module_name(name) in ("q_proj", "k_proj")


def _to_half_split(rows: Tensor, spec: ModelByWidth) -> Tensor:
    """Reorder the rows of each head: rotated pairs (2i, 2i + 1) become (i, i + D/2), as in transformers."""
    ordered: Tensor = rows.unflatten(0, (-1, spec.head_size // 2, 2)).transpose(1, 2).flatten(0, 2)
    return ordered


def _to_interleaved(rows: Tensor, spec: ModelByWidth) -> Tensor:
    """Invert `_to_half_split`."""
    ordered: Tensor = rows.unflatten(0, (-1, 2, spec.head_size // 2)).transpose(1, 2).flatten(0, 2)
    return ordered


def _projection_names(name: str) -> list[str]:
    """Return transformers' names of the projections that the Llama parameter `name` holds, in order."""
    prefix = "" if name.startswith("lm_head") else "model."
    for fused, parts in FUSED_PROJECTIONS.items():
        if fused in name:
            return [prefix + name.replace(fused, part) for part in parts]
    return [prefix + name]


def _module_name(name: str) -> str:
    return name.rsplit(".", 2)[-2]  # model.layers.0.self_attn.q_proj.weight -> q_proj


def _folded_factors(spec: ModelByWidth) -> dict[str, float]:
    """Return the factors on weights, by module name, that replace the multipliers of muP.

    transformers scales attention by D^-1/2 and does not divide logits by m. The factor 1 / m goes into the output layer,
    or into the gain of the last norm if the output layer is tied to the embedding.
    """
    return {
        "q_proj": spec.attention_scale * math.sqrt(spec.head_size),
        "norm" if spec.tie_embeddings else "lm_head": 1 / spec.width_multiplier,
    }


def _architecture(spec: ModelByWidth) -> tuple[str, list[str]]:
    """Return the model type and the class of transformers that computes a model; no class for parallel blocks."""
    if spec.parallel:
        return "raycap", []
    if spec.mlp and not spec.mlp.gated:
        return "arcee", ["ArceeForCausalLM"]
    return "llama", ["LlamaForCausalLM"]


def _shape_config(spec: ModelByWidth, vocab_size: int) -> dict[str, Any]:
    """Return the entries of transformers' config.json that determine the shape of a model."""
    num_heads = spec.hidden_size // spec.head_size
    return {
        "model_type": _architecture(spec)[0],
        "vocab_size": vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": spec.mlp_width or 1,  # transformers has no blocks without an MLP
        "num_hidden_layers": spec.depth,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "head_dim": spec.head_size,
        "hidden_act": str((spec.mlp or Mlp()).activation),
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "tie_word_embeddings": spec.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }


def config(spec: ModelByWidth, vocab_size: int) -> dict[str, Any]:
    """Return the content of the config.json that `save_pretrained` writes."""
    return {
        "architectures": _architecture(spec)[1],
        **_shape_config(spec, vocab_size),
        "rope_theta": ROPE_BASE,
        "max_position_embeddings": 4096,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float32",
    }


def save_pretrained(model: Llama, folder: Path) -> None:
    """Write a single model as config.json and model.safetensors for AutoModelForCausalLM.from_pretrained."""
    (folder / CONFIG).write_text(json.dumps(config(model.spec, model.vocab_size), indent=2))
    save_file(transformers_weights(model), str(folder / WEIGHTS), metadata={"format": "pt"})


def load_pretrained(spec: ModelByWidth, folder: Path, *, min_vocab_size: int = 1) -> Llama:
    """Return the single model of a folder that `save_pretrained` or transformers wrote, on the CPU.

    The size of the vocabulary is taken from the folder. The parametrization is not stored there: weights are those of a
    plain Llama, and the factors of the spec's parametrization are divided out.

    Raises ValueError if config.json has another shape than the spec, if the weights have other shapes than config.json
    says, if blocks that share weights have different ones, if there are MLPs and the spec has none, or if the vocabulary is
    smaller than `min_vocab_size`, the size of that of the tokenizer.
    """
    stored_config = read_settings(folder / CONFIG)
    vocab_size = stored_config.get("vocab_size")
    if not isinstance(vocab_size, int) or vocab_size < min_vocab_size:
        raise ValueError(
            f"{CONFIG} of the model has vocab_size {vocab_size}, but its tokenizer has {min_vocab_size:,} tokens; "
            "use the model and the tokenizer of one training run"
        )
    expected = _shape_config(spec, vocab_size)
    if wrong := [key for key, value in expected.items() if stored_config.get(key) != value]:
        got = ", ".join(f"{key} {stored_config.get(key)}" for key in wrong)
        required = ", ".join(f"{key} {expected[key]}" for key in wrong)
        raise ValueError(
            f"the model in {folder} has {got}, but the spec requires {required}; change trial.model, or use another model"
        )
    stored, factors = _stored_weights(spec, vocab_size, folder / WEIGHTS), _folded_factors(spec)
    if spec.mlp is None and any(weight.any() for name, weight in stored.items() if ".mlp." in name):
        raise ValueError(f"the model in {folder} has MLPs, but model.mlp of the spec is null; remove it")
    model = Llama(spec, vocab_size)
    filled: set[int] = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        projections = []
        for projection in _projection_names(name):
            weight = _to_interleaved(stored[projection], spec) if _is_rotated(projection) else stored[projection]
            projections.append(weight / factors.get(_module_name(projection), 1.0))
        weights = torch.cat(projections)
        if id(parameter) in filled and not torch.equal(parameter.detach()[0], weights):
            raise ValueError(
                f"the model in {folder} has its own {name}, but model.loop of the spec shares these weights; remove it"
            )
        parameter.detach()[0].copy_(weights)
        filled.add(id(parameter))
    return model


def _stored_weights(spec: ModelByWidth, vocab_size: int, file: Path) -> dict[str, Tensor]:
    """Return the weights in a file, after checking their names and shapes without allocating them.

    Raises ValueError if the file is not in the format of safetensors, or if a weight is missing or has another shape.
    """
    expected = {
        projection: [parameter.shape[1] // len(names), *parameter.shape[2:]]
        for name, parameter in Llama(spec, vocab_size, device=META).named_parameters(remove_duplicate=False)
        for names in [_projection_names(name)]
        for projection in names
    }
    try:
        with safe_open(file, "pt") as header:
            shapes = {name: header.get_slice(name).get_shape() for name in header.keys() if name in expected}  # noqa: SIM118
        if wrong := [name for name, shape in expected.items() if shapes.get(name) != shape]:
            name = wrong[0]
            raise ValueError(f"{name} must have the shape {expected[name]}, got {shapes.get(name, 'no such weight')}")
        return load_file(file)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{file.name} of the model cannot be used: {error}; restore the files of the model") from error
