"""The small Llama: RMSNorm, gated MLPs, rotary positions, tied or untied embeddings (docs/science.md#model).

A Llama is a stack of replicas: R independent models of one shape that are computed together. Every weight and every
activation has a leading axis R; a single model is a stack of one.

Letters in comments: R replicas, N nodes (see batches.py), B rows, T cells of a row, H hidden size, K heads, D head size,
A answer positions, V vocabulary size, and under muP m = H / base width. Projections of the same input are fused into one
matrix, so that one large product replaces several small ones; `pretrained.py` splits them.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from raycap.learner.batches import Batch
from raycap.learner.fused_ops import attend, cross_entropy, gated, relu2, rms_norm, rotate
from raycap.learner.hardware import use_private_compile_cache
from raycap.learner.language_model import CPU, LanguageModel, ParameterGroup
from raycap.results import ParameterCounts
from raycap.spec import Activation, LoopSharing, Mlp, ModelByWidth, MuP

ROPE_BASE = 10_000.0
INIT_SCALE = 0.4
"""Initial standard deviation of weights in units of 1 / sqrt(H); under muP, embeddings use the base width as H. At
H = 16 this is 0.1: after 64 exposures the model stored 1.5 times the bits of one with 0.02, and 0.25 was no better."""
FUSED_PROJECTIONS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
"""Parameters that hold several projections of equal size, concatenated along the output axis in this order."""
ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    Activation.SILU: F.silu,
    Activation.GELU: F.gelu,
    Activation.RELU2: relu2,
}
Tap = Callable[[Tensor], Tensor]
"""Called with every residual (R, N, H) in the order in which they are computed: the embeddings, and after the attention
and after the MLP of every block. The forward pass continues with the tensor that it returns."""


class Weight(nn.Module):
    """A module with one parameter, the weights (R, ...) of all replicas."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, *shape, device="meta"))  # Llama allocates it


class Linear(Weight):
    """A linear map without bias; weight (R, out, in)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, N, in) to (R, N, out)."""
        return torch.bmm(x, self.weight.mT)


class RMSNorm(Weight):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis (arXiv 1910.07467)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, N, H) to (R, N, H)."""
        return rms_norm(x, self.weight)


class Attention(nn.Module):
    """Causal self-attention with rotary positions and without biases.

    `forward` does not apply the output projection `o_proj`: Block gathers nodes from cells first, which are fewer.
    """

    def __init__(self, spec: ModelByWidth) -> None:
        super().__init__()
        self.head_size, self.scale = spec.head_size, spec.attention_scale
        self.qkv_proj = Linear(3 * spec.hidden_size, spec.hidden_size)
        self.o_proj = Linear(spec.hidden_size, spec.hidden_size)

    def forward(self, x: Tensor, rope: Tensor, batch: Batch, mask: Tensor | None) -> Tensor:
        """Map nodes (R, N, H) to the mixed values of cells (R, B T, H).

        `mask` (R B, 1, T, T) is true where the first cell attends to the second; None means all cells up to its own.
        """
        num_rows, length = batch.shape
        qkv = rotate(self.qkv_proj(x), rope)
        heads = gather_rows(qkv, batch.node_of_cell).view(
            -1, num_rows, length, 3, x.shape[-1] // self.head_size, self.head_size
        )
        return attend(heads, mask, self.scale)


class MLP(nn.Module):
    """down(act(gate(x)) * up(x)), a gated linear unit (arXiv 2002.05202), or down(act(up(x))) without a gate."""

    def __init__(self, hidden_size: int, width: int, spec: Mlp) -> None:
        super().__init__()
        self.activation, self.is_gated = ACTIVATIONS[spec.activation], spec.gated
        if self.is_gated:
            self.gate_up_proj = Linear(2 * width, hidden_size)
        else:
            self.up_proj = Linear(width, hidden_size)
        self.down_proj = Linear(hidden_size, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (R, N, H) to (R, N, H)."""
        inner = gated(self.gate_up_proj(x), self.activation) if self.is_gated else self.activation(self.up_proj(x))
        output: Tensor = self.down_proj(inner)
        return output


class Block(nn.Module):
    """Attention and MLP, added to the residual stream.

    Each has a norm at its input. In a parallel block both read the output of one norm. A block may have no MLP.
    """

    def __init__(self, spec: ModelByWidth) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(spec.hidden_size)
        self.self_attn = Attention(spec)
        self.post_attention_layernorm = RMSNorm(spec.hidden_size) if spec.mlp and not spec.parallel else None
        self.mlp = MLP(spec.hidden_size, spec.mlp_width, spec.mlp) if spec.mlp else None

    def forward(
        self, x: Tensor, rope: Tensor, batch: Batch, mask: Tensor | None, *, answers_only: bool, tap: Tap | None
    ) -> Tensor:
        """Map (R, N, H) to (R, N, H), or to (R, A, H) with `answers_only`.

        The last block computes only the nodes of answers; its other outputs are unused.
        """
        normed = self.input_layernorm(x)
        mixed = self.self_attn(normed, rope, batch, mask)
        if answers_only:
            x = gather_rows(x, batch.answer_nodes)
        x = x + self.self_attn.o_proj(gather_rows(mixed, batch.answer_cells if answers_only else batch.cell_of_node))
        if tap:
            x = tap(x)
        if self.mlp is not None:
            if self.post_attention_layernorm is not None:
                normed = self.post_attention_layernorm(x)
            elif answers_only:
                normed = gather_rows(normed, batch.answer_nodes)
            x = x + self.mlp(normed)
        return tap(x) if tap else x


def _blocks(spec: ModelByWidth) -> list[Block]:
    """Return the blocks in the order in which they are computed.

    In a looped model, the blocks of later passes contain the modules of the first pass that they share.
    """
    blocks = [Block(spec) for _ in range(spec.num_layers)]
    if spec.loop is None:
        return blocks
    shared = {
        "self_attn": spec.loop.shared in (LoopSharing.BLOCK, LoopSharing.ATTENTION),
        "mlp": spec.loop.shared in (LoopSharing.BLOCK, LoopSharing.MLP),
        "input_layernorm": not spec.loop.own_norms,
        "post_attention_layernorm": not spec.loop.own_norms,
    }
    for index in range(spec.num_layers, spec.depth):
        block, first = Block(spec), blocks[index % spec.num_layers]
        for name in (name for name, is_shared in shared.items() if is_shared):
            setattr(block, name, getattr(first, name))
        blocks.append(block)
    return blocks


class Llama(LanguageModel):
    """A stack of decoder-only transformers that are evaluated at the answer positions of a batch."""

    spec: ModelByWidth

    def __init__(
        self,
        spec: ModelByWidth,
        vocab_size: int,
        num_replicas: int = 1,
        device: torch.device = CPU,
        storage: dict[ParameterGroup, Tensor] | None = None,
    ) -> None:
        """Create a stack with its weights in `storage`, or in new, uninitialised memory."""
        super().__init__()
        self.spec, self.vocab_size = spec, vocab_size
        self.embed_tokens = Weight(vocab_size, spec.hidden_size)
        self.layers = nn.ModuleList(_blocks(spec))
        self.norm = RMSNorm(spec.hidden_size)
        if not spec.tie_embeddings:
            self.lm_head = Weight(vocab_size, spec.hidden_size)
        sizes = dict.fromkeys((ParameterGroup.of(name) for name, _ in self.named_parameters()), 0)
        for name, parameter in self.named_parameters():
            sizes[ParameterGroup.of(name)] += parameter.numel()
        self.storage = storage or {
            group: torch.empty(num_replicas, size, device=device) for group, size in sizes.items()
        }
        self._place_in_storage()

    def _place_in_storage(self) -> None:
        views = self.views(self.storage)
        for name, module in self.named_modules():
            if isinstance(module, Weight):
                module.weight = nn.Parameter(views[f"{name}.weight"])

    def views(self, storage: dict[ParameterGroup, Tensor]) -> dict[str, Tensor]:
        """Return every parameter by its name as a view (R, ...) of a storage with the layout of `self.storage`."""
        views, filled = {}, dict.fromkeys(storage, 0)
        for name, parameter in self.named_parameters():
            group, shape = ParameterGroup.of(name), parameter.shape[1:]
            begin, filled[group] = filled[group], filled[group] + shape.numel()
            views[name] = storage[group][:, begin : filled[group]].unflatten(1, shape)
        return views

    def grouped_parameters(self) -> list[tuple[ParameterGroup, nn.Parameter]]:
        """Return the parameters with their groups."""
        return [(ParameterGroup.of(name), parameter) for name, parameter in self.named_parameters()]

    def replica(self, index: int) -> "Llama":
        """Return one replica as a stack of one that shares memory with this stack."""
        storage = {group: weights[index : index + 1] for group, weights in self.storage.items()}
        return Llama(self.spec, self.vocab_size, storage=storage)

    def copy(self, device: torch.device | None = None) -> "Llama":
        """Return a copy in new memory, on the same device or another."""
        storage = {group: weights.to(device, copy=True) for group, weights in self.storage.items()}
        return Llama(self.spec, self.vocab_size, storage=storage)

    @property
    def unembedding(self) -> Tensor:
        """Weights of the output layer, (R, V, H)."""
        return self.embed_tokens.weight if self.spec.tie_embeddings else self.lm_head.weight

    def answer_logits(self, batch: Batch) -> Tensor:
        """Return the logits at the answer positions of a batch, (R, A, V)."""
        logits: Tensor = self(batch) @ self.unembedding.mT
        return logits

    def token_losses(self, batch: Batch) -> Tensor:
        """Return the loss of every measured token of a batch, (R, A), in nats."""
        return cross_entropy(self(batch), self.unembedding, batch.targets)

    def forward(self, batch: Batch, tap: Tap | None = None) -> Tensor:
        """Return the inputs of the output layer at the answer positions, (R, A, H).

        If the batch has segments, a cell attends only to earlier cells of its segment, as if each segment were a row of
        its own. Rotary positions do not restart at a segment: attention depends only on differences of positions.
        """
        table = rope_table(batch.shape[1], self.spec.hidden_size, self.spec.head_size, self.device)
        # On an H100, rows of 35 tokens take 0.72 times as long with this kernel as with torch's default, cuDNN's, which
        # builds a plan for each new length (0.17 s) and fails on 65,536 rows and more.
        short = self.device.type == "cuda" and batch.segments is None
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION) if short else nullcontext():
            return self._final_hidden(batch, table, tap)

    def _final_hidden(self, batch: Batch, table: Tensor, tap: Tap | None) -> Tensor:
        x = gather_rows(self.embed_tokens.weight, batch.tokens)  # (R, N, H)
        if tap:
            x = tap(x)
        rope = F.embedding(batch.position_ids, table)  # (R, N, 3H)
        mask = None
        if batch.segments is not None:  # cells of equal segments, up to the diagonal
            mask = (batch.segments[..., :, None] == batch.segments[..., None, :]).tril().flatten(0, 1)[:, None]
        *blocks, last = self.layers
        for block in blocks:
            x = block(x, rope, batch, mask, answers_only=False, tap=tap)
        x = self.norm(last(x, rope, batch, mask, answers_only=True, tap=tap))
        hidden: Tensor = x / self.spec.width_multiplier  # divides logits by m; H numbers instead of V
        return hidden

    def count_parameters(self) -> ParameterCounts:
        """Return the numbers of parameters of one replica; `plan.sizes.parameter_counts` computes them without a model."""
        counts = dict.fromkeys(("embedding", "attention", "mlp", "norms", "unembedding"), 0)
        for name, parameter in self.named_parameters():
            size = parameter[0].numel()
            match ParameterGroup.of(name):
                case ParameterGroup.MATRIX:
                    counts["attention" if "self_attn" in name else "mlp"] += size
                case ParameterGroup.GAIN:
                    counts["norms"] += size
                case embedding_or_unembedding:
                    counts[embedding_or_unembedding.value] += size
        return ParameterCounts(**counts)

    def compile_blocks(self) -> None:
        """Compile the forward and backward pass with torch.compile, for batches of any size."""
        use_private_compile_cache()
        self._final_hidden = torch.compile(self._final_hidden, dynamic=True)  # type: ignore[method-assign]


def gather_rows(x: Tensor, indices: Tensor) -> Tensor:
    """Return the vectors (R, m, C) of x (R, n, C) at `indices` (R, m), which index the flattened (R n, C)."""
    flat = x.flatten(0, 1)
    # On CUDA the backward pass of index_select sums gradients in no fixed order; that of F.embedding is deterministic.
    if x.is_cuda:
        return F.embedding(indices, flat)
    return flat.index_select(0, indices.view(-1)).view(*indices.shape, -1)


@cache
def rope_table(length: int, hidden_size: int, head_size: int, device: torch.device) -> Tensor:
    """Return the RoPE table for queries, keys and values, (T, 3H).

    Entries are interleaved cos and sin of position * base^(-2i/D) for queries and keys (arXiv 2104.09864, section 3.4.2),
    and 1 and 0 for values, so that one product covers the fused projection. A pair is (2i, 2i + 1) here and (i, i + D/2)
    in transformers; `pretrained.py` permutes the rows of the projections accordingly.
    """
    frequencies = ROPE_BASE ** -(torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies).repeat(1, hidden_size // head_size)
    angles = torch.cat([angles, angles, torch.zeros_like(angles)], dim=1)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1).to(device)


def build_model(
    spec: ModelByWidth, vocab_size: int, *, generators: tuple[torch.Generator, ...], device: torch.device = CPU
) -> Llama:
    """Return a stack with one freshly initialised replica per generator.

    Weights are normal, output projections are smaller by sqrt(2 * depth), gains are 1. Under muP, embeddings and the
    output layer have the standard deviation of the base width at every width (docs/science.md#mup).
    """
    model = Llama(spec, vocab_size, len(generators), device)
    base = spec.parametrization.base_width if isinstance(spec.parametrization, MuP) else spec.hidden_size
    for index, generator in enumerate(generators):
        for name, parameter in model.named_parameters():
            weight, group = parameter.detach()[index], ParameterGroup.of(name)
            if group is ParameterGroup.GAIN:
                weight.fill_(1.0)
                continue
            std = INIT_SCALE / math.sqrt(spec.hidden_size if group is ParameterGroup.MATRIX else base)
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * spec.depth)
            weight.copy_(torch.empty(weight.shape).normal_(0.0, std, generator=generator))  # drawn on the CPU
    return model
