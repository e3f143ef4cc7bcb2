"""The small Llama: RMSNorm, SwiGLU, rotary positions, tied or untied embeddings, written to be read.

Letters in comments: B rows, T tokens, H hidden size, K heads, D head size, A answer positions, V vocabulary, and under
muP m = H / base width. Projections that read the same input are one matrix: fewer, larger products.
`transformers_weights` takes them apart.
"""

import json
import math
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from raycap.results import ParameterCounts
from raycap.spec import ModelByWidth, MuP

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0
INIT_SCALE = 0.4
"""Weights start with std INIT_SCALE / sqrt(H), embeddings under muP with that of the base width. At H = 16 that is 0.1,
which stored 1.5 times what 0.02 did after 64 exposures; 0.25 was no better."""
MLP_RATIO = 4
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Parameters that are several projections one above the other, in this order and of equal heights."""


class ParameterGroup(StrEnum):
    """What a parameter is: parameters of a group are counted, decayed and scaled with the width alike."""

    EMBEDDING = "embedding"
    """Token embeddings, (V, H); if tied, the output layer as well."""
    UNEMBEDDING = "unembedding"
    """The output layer where it is not tied, (V, H)."""
    MATRIX = "matrix"
    """Projections of attention and MLP: both sides grow with the width."""
    GAIN = "gain"
    """Gains of the norms, (H,)."""

    @classmethod
    def of(cls, name: str) -> "ParameterGroup":
        """The group of a parameter of Llama by its name in `named_parameters`."""
        if name.startswith("embed_tokens"):
            return cls.EMBEDDING
        if name.startswith("lm_head"):
            return cls.UNEMBEDDING
        return cls.GAIN if name.endswith("norm.weight") else cls.MATRIX


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, no biases; stops short of the output projection."""

    def __init__(self, spec: ModelByWidth) -> None:
        super().__init__()
        self.head_size, self.scale = spec.head_size, spec.attention_scale
        self.qkv_proj = nn.Linear(spec.hidden_size, 3 * spec.hidden_size, bias=False)
        self.o_proj = nn.Linear(spec.hidden_size, spec.hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        """(B, T, H) to the same; `mask` (B, 1, T, T) is true where a token sees another, None for all before it."""
        num_rows, length, hidden_size = x.shape
        qkv = self.qkv_proj(x).view(num_rows, length, 3, -1, self.head_size).permute(2, 0, 3, 1, 4)  # (3, B, K, T, D)
        q, k = rotate(qkv[:2], cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2], attn_mask=mask, is_causal=mask is None, scale=self.scale)
        return mixed.transpose(1, 2).reshape(num_rows, length, hidden_size)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(hidden_size, 2 * MLP_RATIO * hidden_size, bias=False)
        self.down_proj = nn.Linear(MLP_RATIO * hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and MLP, each normed before and added to the residual stream."""

    def __init__(self, spec: ModelByWidth) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size)
        self.mlp = MLP(spec.hidden_size)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, positions: Tensor | None = None
    ) -> Tensor:
        """(B, T, H) to the same; with `positions` (A,) only those of the flattened rows go on from here, (A, H).

        The last block is asked this way: what it would make of other positions, nobody looks at.
        """
        mixed = self.self_attn(self.input_layernorm(x), cos, sin, mask)
        if positions is not None:
            x, mixed = x.flatten(0, 1)[positions], mixed.flatten(0, 1)[positions]
        x = x + self.self_attn.o_proj(mixed)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A decoder-only transformer whose logits are computed only where they are asked for."""

    def __init__(self, spec: ModelByWidth, vocab_size: int) -> None:
        super().__init__()
        self.spec, self.vocab_size = spec, vocab_size
        self.embed_tokens = nn.Embedding(vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size)
        if not spec.tie_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, vocab_size, bias=False)

    @property
    def unembedding(self) -> Tensor:
        """Weights of the output layer, (V, H)."""
        return self.embed_tokens.weight if self.spec.tie_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, positions: Tensor, segments: Tensor | None = None) -> Tensor:
        """Logits (A, V) at `positions` (A,), indices into the flattened rows of input_ids (B, T).

        With `segments` (B, T), integers, a token sees only those before it with its own number: what lies in a row is
        as alone as in rows of its own. Rotary angles need not start afresh, since only their differences count.
        """
        x = self.embed_tokens(input_ids)  # (B, T, H)
        cos, sin = rope(input_ids.shape[1], self.spec.head_size, x.device)
        mask = None if segments is None else (segments[:, :, None] == segments[:, None, :]).tril()[:, None]
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, cos, sin, mask)
        x = self.norm(last(x, cos, sin, mask, positions))
        return F.linear(x / self.spec.width_multiplier, self.unembedding)  # the same as logits / m, in fewer numbers


def rope(length: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles, each (T, D): position / base^(2i/D), the half repeated."""
    frequencies = ROPE_BASE ** -(torch.arange(0, head_size, 2, device=device, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies).repeat(1, 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i+D/2}) of x (..., T, D) by its angle."""
    left, right = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-right, left], dim=-1) * sin).to(x.dtype)


def build(spec: ModelByWidth, vocab_size: int, *, generator: torch.Generator) -> Llama:
    """A freshly initialised model: normal weights, output projections smaller by sqrt(2L), gains 1.

    Under muP embedding and output layer have at every width the std of the base width.
    """
    model = Llama(spec, vocab_size)
    base = spec.parametrization.base_width if isinstance(spec.parametrization, MuP) else spec.hidden_size
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            group = ParameterGroup.of(name)
            if group is ParameterGroup.GAIN:
                continue
            std = INIT_SCALE / math.sqrt(spec.hidden_size if group is ParameterGroup.MATRIX else base)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * spec.num_layers)
            parameter.normal_(0.0, std, generator=generator)
    return model


def count_parameters(model: Llama) -> ParameterCounts:
    """Parameters of each group in a built model; `sizes.parameter_counts` is the formula for them."""
    counts = dict.fromkeys(ParameterCounts.model_fields, 0)
    for name, parameter in model.named_parameters():
        match ParameterGroup.of(name):
            case ParameterGroup.MATRIX:
                counts["attention" if "self_attn" in name else "mlp"] += parameter.numel()
            case ParameterGroup.GAIN:
                counts["norms"] += parameter.numel()
            case embedding_or_unembedding:
                counts[embedding_or_unembedding.value] += parameter.numel()
    return ParameterCounts(**counts)


def transformers_weights(model: Llama) -> dict[str, Tensor]:
    """The weights under the names, and in the pieces, of transformers' LlamaForCausalLM, on the CPU.

    What muP multiplies is multiplied into the weights, so that a plain Llama has the same logits.
    """
    folded = _folded(model.spec)
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        pieces = _pieces(name)
        for piece_name, piece in zip(pieces, tensor.chunk(len(pieces)), strict=True):
            weights[piece_name] = (piece * folded.get(_ending(piece_name), 1.0)).cpu()
    return weights


def _pieces(name: str) -> list[str]:
    """What transformers calls the projections that one parameter of ours holds, from top to bottom."""
    prefix = "" if name.startswith("lm_head") else "model."
    for fused, parts in FUSED.items():
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
    """Write config.json and model.safetensors as AutoModelForCausalLM.from_pretrained reads them."""
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
    """The model that `save` wrote, on the CPU; its vocabulary is the folder's.

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
    model.load_state_dict(
        {
            name: torch.cat([stored[piece] / folded.get(_ending(piece), 1.0) for piece in _pieces(name)])
            for name in model.state_dict()
        }
    )
    return model
