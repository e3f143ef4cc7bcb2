"""The small Llama: RMSNorm, SwiGLU, rotary positions, tied or untied embeddings, written to be read.

One Llama is a stack of replicas: R models of one shape that know nothing of each other, computed together. Every weight
has a leading axis R, and so has everything computed from them; one model by itself is a stack of one.

Letters in comments: R replicas, N nodes (see batches.py), B rows, T cells of a row, H hidden size, K heads, D head size,
A answer positions, V vocabulary, and under muP m = H / base width. Projections that read the same input are one matrix:
fewer, larger products. `pretrained.py` takes them apart.
"""

import math
from contextlib import nullcontext
from enum import StrEnum
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raycap.learner.batches import Batch
from raycap.learner.fused_ops import attend, rms_norm, rotate, swiglu
from raycap.results import ParameterCounts
from raycap.spec import ModelByWidth, MuP

ROPE_BASE = 10_000.0
INIT_SCALE = 0.4
"""Weights start with std INIT_SCALE / sqrt(H), embeddings under muP with that of the base width. At H = 16 that is 0.1,
which stored 1.5 times what 0.02 did after 64 exposures; 0.25 was no better."""
MLP_RATIO = 4
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Parameters that are several projections one above the other, in this order and of equal heights."""
CPU = torch.device("cpu")


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


class Weight(nn.Module):
    """A weight of every replica, (R, ...), under the name that transformers gives it."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, *shape, device="meta"))  # Llama puts it into its place


class Linear(Weight):
    """A product with (R, out, in), no bias."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, N, in) to (R, N, out)."""
        return torch.bmm(x, self.weight.mT)


class RMSNorm(Weight):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        """(R, N, H) to the same."""
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Causal self-attention with rotary positions, no biases; stops short of the output projection."""

    def __init__(self, spec: ModelByWidth) -> None:
        super().__init__()
        self.head_size, self.scale = spec.head_size, spec.attention_scale
        self.qkv_proj = Linear(3 * spec.hidden_size, spec.hidden_size)
        self.o_proj = Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], batch: Batch, mask: Tensor | None) -> Tensor:
        """Nodes (R, N, H) to cells (R, B T, H); `mask` (R B, 1, T, T) is true where a cell sees another, None for all
        before it.
        """
        num_rows, length = batch.shape
        qkv = rotate(self.qkv_proj(x), *rope)
        heads = gather_rows(qkv, batch.cells).view(
            -1, num_rows, length, 3, x.shape[-1] // self.head_size, self.head_size
        )
        return attend(heads, mask, self.scale)


class MLP(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.gate_up_proj = Linear(2 * MLP_RATIO * hidden_size, hidden_size)
        self.down_proj = Linear(hidden_size, MLP_RATIO * hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(R, N, H) to the same."""
        return self.down_proj(swiglu(self.gate_up_proj(x)))


class Block(nn.Module):
    """Attention and MLP, each normed before and added to the residual stream."""

    def __init__(self, spec: ModelByWidth) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size)
        self.mlp = MLP(spec.hidden_size)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], batch: Batch, mask: Tensor | None, *, answers_only: bool
    ) -> Tensor:
        """(R, N, H) to the same, or only the nodes of answers go on from here, (R, A, H).

        The last block is asked this way: what it would make of other nodes, nobody looks at.
        """
        mixed = self.self_attn(self.input_layernorm(x), rope, batch, mask)
        if answers_only:
            x = gather_rows(x, batch.answers)
        x = x + self.self_attn.o_proj(gather_rows(mixed, batch.answer_cells if answers_only else batch.cell_of))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A stack of decoder-only transformers, whose logits are computed only where they are asked for."""

    def __init__(
        self,
        spec: ModelByWidth,
        vocab_size: int,
        num_replicas: int = 1,
        device: torch.device = CPU,
        storage: dict[ParameterGroup, Tensor] | None = None,
    ) -> None:
        """With weights in `storage`, or in new memory, not set."""
        super().__init__()
        self.spec, self.vocab_size = spec, vocab_size
        self.embed_tokens = Weight(vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(Block(spec) for _ in range(spec.num_layers))
        self.norm = RMSNorm(spec.hidden_size)
        if not spec.tie_embeddings:
            self.lm_head = Weight(vocab_size, spec.hidden_size)
        sizes = dict.fromkeys((ParameterGroup.of(name) for name, _ in self.named_parameters()), 0)
        for name, parameter in self.named_parameters():
            sizes[ParameterGroup.of(name)] += parameter.numel()
        self.storage = storage or {
            group: torch.empty(num_replicas, size, device=device) for group, size in sizes.items()
        }
        """All weights of a group in one piece, (R, P): what optimizers move and workers exchange."""
        self._place_in_storage()

    def _place_in_storage(self) -> None:
        views = self.views(self.storage)
        for name, module in self.named_modules():
            if isinstance(module, Weight):
                module.weight = nn.Parameter(views[f"{name}.weight"])

    def views(self, storage: dict[ParameterGroup, Tensor]) -> dict[str, Tensor]:
        """Every parameter by its name as a part of such a storage, (R, ...)."""
        found, filled = {}, dict.fromkeys(storage, 0)
        for name, parameter in self.named_parameters():
            group, shape = ParameterGroup.of(name), parameter.shape[1:]
            begin, filled[group] = filled[group], filled[group] + shape.numel()
            found[name] = storage[group][:, begin : filled[group]].unflatten(1, shape)
        return found

    @property
    def num_replicas(self) -> int:
        """R."""
        return len(self.embed_tokens.weight)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.embed_tokens.weight.device

    def replica(self, number: int) -> "Llama":
        """One of the stack as a stack of one, in the same memory."""
        part = {group: weights[number : number + 1] for group, weights in self.storage.items()}
        return Llama(self.spec, self.vocab_size, storage=part)

    def copy(self, device: torch.device | None = None) -> "Llama":
        """The same in memory of its own, there or on another device."""
        storage = {group: weights.to(device, copy=True) for group, weights in self.storage.items()}
        return Llama(self.spec, self.vocab_size, storage=storage)

    @property
    def unembedding(self) -> Tensor:
        """Weights of the output layer, (R, V, H)."""
        return self.embed_tokens.weight if self.spec.tie_embeddings else self.lm_head.weight

    def forward(self, batch: Batch) -> Tensor:
        """What the output layer reads at the nodes of answers, (R, A, H).

        Where the batch has segments, a cell sees only those before it with its own number: what lies in a row is as alone
        as in rows of its own. Rotary angles need not start afresh, since only their differences count.
        """
        tables = rope_tables(batch.shape[1], self.spec.hidden_size, self.spec.head_size, self.device)
        # On an H100, rows of 35 tokens take 0.72 times as long with this kernel as with cuDNN's, which torch would choose
        # and which builds a plan for each new length (0.17 s) and fails on 65,536 rows and more.
        short = self.device.type == "cuda" and batch.segments is None
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if short else nullcontext():
            return self._read(batch, tables)

    def _read(self, batch: Batch, tables: tuple[Tensor, Tensor]) -> Tensor:
        x = gather_rows(self.embed_tokens.weight, batch.tokens)  # (R, N, H)
        rope = tuple(F.embedding(batch.position_ids, table) for table in tables)
        mask = None
        if batch.segments is not None:
            mask = (batch.segments[..., :, None] == batch.segments[..., None, :]).tril().flatten(0, 1)[:, None]
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, rope, batch, mask, answers_only=False)
        x = self.norm(last(x, rope, batch, mask, answers_only=True))
        return x / self.spec.width_multiplier  # the same as logits / m, in fewer numbers

    def compile_blocks(self) -> None:
        """From now on torch compiles what is computed, for batches of any size."""
        self._read = torch.compile(self._read, dynamic=True)  # type: ignore[method-assign]


def gather_rows(x: Tensor, places: Tensor) -> Tensor:
    """Of x (R, n, C) the vectors at `places` (R, m), which count on from replica to replica: (R, m, C)."""
    flat = x.flatten(0, 1)
    if x.is_cuda:  # where index_select adds up gradients in any order, and F.embedding in that of places
        return F.embedding(places, flat)
    return flat.index_select(0, places.view(-1)).view(*places.shape, -1)


@cache
def rope_tables(length: int, hidden_size: int, head_size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """What turns the pairs of queries and keys, and leaves values as they are, at every position: e^(i angle), and what
    turns them back, as real and imaginary parts by turns, each (T, 3H).

    Angles are position / base^(2i/D). Pairs stand side by side here; transformers has them half a head apart, which is
    another order of the rows of the projections and nothing else.
    """
    frequencies = ROPE_BASE ** -(torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, hidden_size // head_size)
    angles = torch.cat([angles, angles, torch.zeros_like(angles)], dim=1)
    rope, rope_conjugate = (torch.stack([angles.cos(), sign * angles.sin()], dim=-1).flatten(1) for sign in (1, -1))
    return rope.to(device), rope_conjugate.to(device)


def build(
    spec: ModelByWidth, vocab_size: int, *, generators: tuple[torch.Generator, ...], device: torch.device = CPU
) -> Llama:
    """Freshly initialised replicas, one for each generator: normal weights, output projections smaller by sqrt(2L),
    gains 1. Under muP embedding and output layer have at every width the std of the base width.
    """
    model = Llama(spec, vocab_size, len(generators), device)
    base = spec.parametrization.base_width if isinstance(spec.parametrization, MuP) else spec.hidden_size
    for number, generator in enumerate(generators):
        for name, parameter in model.named_parameters():
            weight, group = parameter.detach()[number], ParameterGroup.of(name)
            if group is ParameterGroup.GAIN:
                weight.fill_(1.0)
                continue
            std = INIT_SCALE / math.sqrt(spec.hidden_size if group is ParameterGroup.MATRIX else base)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * spec.num_layers)
            weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))  # the same on every device
    return model


def count_parameters(model: Llama) -> ParameterCounts:
    """Parameters of each group in one replica; `sizes.parameter_counts` is the formula for them."""
    counts = dict.fromkeys(ParameterCounts.model_fields, 0)
    for name, parameter in model.named_parameters():
        size = parameter[0].numel()
        match ParameterGroup.of(name):
            case ParameterGroup.MATRIX:
                counts["attention" if "self_attn" in name else "mlp"] += size
            case ParameterGroup.GAIN:
                counts["norms"] += size
            case embedding_or_unembedding:
                counts[embedding_or_unembedding.value] += size
    return ParameterCounts(**counts)
