"""Models from and to files as transformers reads and writes them, muP folded into plain weights."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from raycap.learner.fused_ops import NORM_EPS
from raycap.learner.model import FUSED_PROJECTIONS, MLP_RATIO, ROPE_BASE, Llama
from raycap.spec import ModelByWidth


def transformers_weights(model: Llama) -> dict[str, Tensor]:
    """The weights of a single model under the names, and in the pieces, of transformers' LlamaForCausalLM, on the CPU.

    What muP multiplies is multiplied into the weights, so that a plain Llama has the same logits.
    """
    folded = _folded(model.spec)
    weights: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        (tensor,), pieces = parameter.detach(), _pieces(name)
        for piece_name, piece in zip(pieces, tensor.chunk(len(pieces)), strict=True):
            piece = _halves(piece, model.spec) if _is_turned(piece_name) else piece
            weights[piece_name] = (piece * folded.get(_ending(piece_name), 1.0)).cpu()
    return weights


def _is_turned(name: str) -> bool:
    """Whether rotary positions turn what a projection gives."""
    return _ending(name) in ("q_proj", "k_proj")


def _halves(rows: Tensor, spec: ModelByWidth) -> Tensor:
    """Rows of each head with the pairs that are turned half a head apart, as transformers has them, from side by side."""
    return rows.unflatten(0, (-1, spec.head_size // 2, 2)).transpose(1, 2).flatten(0, 2)


def _pairs(rows: Tensor, spec: ModelByWidth) -> Tensor:
    """The inverse of `_halves`."""
    return rows.unflatten(0, (-1, 2, spec.head_size // 2)).transpose(1, 2).flatten(0, 2)


def _pieces(name: str) -> list[str]:
    """What transformers calls the projections that one parameter of ours holds, from top to bottom."""
    prefix = "" if name.startswith("lm_head") else "model."
    for fused, parts in FUSED_PROJECTIONS.items():
        if fused in name:
            return [prefix + name.replace(fused, part) for part in parts]
    return [prefix + name]


def _ending(name: str) -> str:
    return name.rsplit(".", 2)[-2]  # model.layers.0.self_attn.q_proj.weight -> q_proj


def _folded(spec: ModelByWidth) -> dict[str, float]:
    """What to multiply transformers' weights by, for its attention scale D^-1/2 and logits that are not divided by m.

    A tied output layer must stay the embedding: there the last norm's gain takes 1 / m.
    """
    return {
        "q_proj": spec.attention_scale * math.sqrt(spec.head_size),
        "norm" if spec.tie_embeddings else "lm_head": 1 / spec.width_multiplier,
    }


def _config(spec: ModelByWidth, vocab_size: int) -> dict[str, Any]:
    """The shape of a model in the words of transformers' config.json."""
    num_heads = spec.hidden_size // spec.head_size
    return {
        "model_type": "llama",
        "vocab_size": vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": MLP_RATIO * spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_heads,
        "head_dim": spec.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "tie_word_embeddings": spec.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
    }


def save(model: Llama, folder: Path) -> None:
    """Write a single model as config.json and model.safetensors, as AutoModelForCausalLM.from_pretrained reads them."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        **_config(model.spec, model.vocab_size),
        "rope_theta": ROPE_BASE,
        "max_position_embeddings": 4096,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(transformers_weights(model), str(folder / "model.safetensors"), metadata={"format": "pt"})


def load(spec: ModelByWidth, folder: Path) -> Llama:
    """The single model that `save` wrote, on the CPU; its vocabulary is the folder's.

    Raises ValueError where config.json tells of another shape than the spec. The parametrization is not in the folder:
    weights are taken as those of a plain Llama, and unfolded for the spec's.
    """
    found = json.loads((folder / "config.json").read_text())
    wanted = _config(spec, found.get("vocab_size"))
    if wrong := [key for key, value in wanted.items() if found.get(key) != value]:
        there = ", ".join(f"{key} {found.get(key)}" for key in wrong)
        asked = ", ".join(f"{key} {wanted[key]}" for key in wrong)
        raise ValueError(f"the model in {folder} has {there}, but the spec asks for {asked}")
    stored, folded = load_file(folder / "model.safetensors"), _folded(spec)
    model = Llama(spec, found["vocab_size"])
    for name, parameter in model.named_parameters():
        pieces = [
            (_pairs(stored[piece], spec) if _is_turned(piece) else stored[piece]) / folded.get(_ending(piece), 1.0)
            for piece in _pieces(name)
        ]
        parameter.detach()[0].copy_(torch.cat(pieces))
    return model
