"""The small Llama: RMSNorm, SwiGLU, rotary positions, tied or untied embeddings, written to be read.

Letters in comments: B rows, T tokens, H hidden size, K heads, D head size, A answer positions, V vocabulary.
Projections that read the same input are one matrix: fewer, larger products. `transformers_weights` takes them apart.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from raycap.spec import ModelByWidth

NORM_EPS = 1e-6
ROPE_BASE = 10_000.0
INIT_SCALE = 0.4
"""Weights start with std INIT_SCALE / sqrt(H). At H = 16 that is 0.1, which stored 1.5 times what 0.02 did after 64
exposures; 0.25 was no better."""
MLP_RATIO = 4
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight, NORM_EPS)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, no biases; stops short of the output projection."""

    def __init__(self, hidden_size: int, head_size: int) -> None:
        super().__init__()
        self.head_size = head_size
        self.qkv_proj = nn.Linear(hidden_size, 3 * hidden_size, bias=False)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        num_rows, length, hidden_size = x.shape
        qkv = self.qkv_proj(x).view(num_rows, length, 3, -1, self.head_size).permute(2, 0, 3, 1, 4)  # (3, B, K, T, D)
        q, k = rotate(qkv[:2], cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2], is_causal=True)
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

    def __init__(self, hidden_size: int, head_size: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(hidden_size)
        self.self_attn = Attention(hidden_size, head_size)
        self.post_attention_layernorm = RMSNorm(hidden_size)
        self.mlp = MLP(hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, positions: Tensor | None = None) -> Tensor:
        """(B, T, H) to the same; with `positions` (A,) only those of the flattened rows go on from here, (A, H).

        The last block is asked this way: what it would make of other positions, nobody looks at.
        """
        mixed = self.self_attn(self.input_layernorm(x), cos, sin)
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
        self.layers = nn.ModuleList(Block(spec.hidden_size, spec.head_size) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size)
        if not spec.tie_embeddings:
            self.lm_head = nn.Linear(spec.hidden_size, vocab_size, bias=False)

    @property
    def unembedding(self) -> Tensor:
        """Weights of the output layer, (V, H)."""
        return self.embed_tokens.weight if self.spec.tie_embeddings else self.lm_head.weight

    def forward(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        """Logits (A, V) at `positions` (A,), indices into the flattened rows of input_ids (B, T)."""
        x = self.embed_tokens(input_ids)  # (B, T, H)
        cos, sin = rope(input_ids.shape[1], self.spec.head_size, x.device)
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, cos, sin)
        return F.linear(self.norm(last(x, cos, sin, positions)), self.unembedding)


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
    """A freshly initialised model: normal weights, output projections smaller by sqrt(2L), gains 1."""
    model = Llama(spec, vocab_size)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                continue
            std = INIT_SCALE / math.sqrt(spec.hidden_size)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * spec.num_layers)
            parameter.normal_(0.0, std, generator=generator)
    return model


def transformers_weights(model: Llama) -> dict[str, Tensor]:
    """The weights under the names, and in the pieces, of transformers' LlamaForCausalLM."""
    weights: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        pieces = {name: tensor}
        for fused, parts in FUSED.items():
            if fused in name:
                pieces = {
                    name.replace(fused, part): piece
                    for part, piece in zip(parts, tensor.chunk(len(parts)), strict=True)
                }
        for piece_name, piece in pieces.items():
            prefix = "" if piece_name.startswith("lm_head") else "model."
            weights[prefix + piece_name] = piece.detach().cpu().contiguous()
    return weights


def save(model: Llama, folder: Path) -> None:
    """Write config.json and model.safetensors as AutoModelForCausalLM.from_pretrained reads them."""
    spec = model.spec
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": model.vocab_size,
        "hidden_size": spec.hidden_size,
        "intermediate_size": MLP_RATIO * spec.hidden_size,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.hidden_size // spec.head_size,
        "num_key_value_heads": spec.hidden_size // spec.head_size,
        "head_dim": spec.head_size,
        "hidden_act": "silu",
        "rms_norm_eps": NORM_EPS,
        "rope_theta": ROPE_BASE,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_BASE},
        "max_position_embeddings": 512,
        "tie_word_embeddings": spec.tie_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 0,
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    save_file(transformers_weights(model), str(folder / "model.safetensors"), metadata={"format": "pt"})
