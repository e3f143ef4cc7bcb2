"""Differentiable functions with gradients written by hand: fewer passes over memory than automatic ones.

Letters as in model.py. Each is exact: a test compares values and gradients with the plain formula. That is what the
compiler gets: it fuses better than a hand can, and cannot read ours.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-6
LONGEST_SHORT_ROW = 64
PART_NUMBERS = 2**18


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        scale = x.square().mean(dim=-1, keepdim=True).add_(NORM_EPS).rsqrt_()
        unit = x * scale
        ctx.save_for_backward(unit, scale, weight)
        return unit * weight[:, None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        unit, scale, weight = ctx.saved_tensors
        along = grad * unit
        mean = torch.bmm(along, weight[..., None]).div_(-unit.shape[-1])
        return (grad * weight[:, None]).addcmul_(unit, mean).mul_(scale), along.sum(dim=1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis of x (R, N, H), with weight (R, H)."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * weight[:, None]
    return _RMSNorm.apply(x, weight)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor) -> Tensor:
        ctx.save_for_backward(gate_up)
        mixed = gate_up.new_empty(*gate_up.shape[:-1], gate_up.shape[-1] // 2)
        for part, out in _in_parts(gate_up, mixed):
            gate, up = part.chunk(2, dim=-1)
            torch.mul(F.silu(gate), up, out=out)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grads = torch.empty_like(gate_up)
        for part, upstream, out in _in_parts(gate_up, grad, grads):
            gate, up = part.chunk(2, dim=-1)
            of_gate, of_up = out.chunk(2, dim=-1)
            torch.mul(upstream, F.silu(gate), out=of_up)
            torch.ops.aten.silu_backward.grad_input(upstream * up, gate, grad_input=of_gate)
        return grads


def _in_parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (R, N, ...) in parts along N: on a CPU such that what is done to a part finds it in the cache."""
    first = tensors[0]
    size = first.shape[1] if first.is_cuda else max(1, PART_NUMBERS // (first.shape[0] * first.shape[2]))
    return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate is the first half of the last axis and up the second."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, turns: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        return _turned(qkv, turns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (back,) = ctx.saved_tensors
        return _turned(grad, back), None, None


def _turned(x: Tensor, turns: Tensor) -> Tensor:
    pairs, turns = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (x.float(), turns))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def rotate(x: Tensor, turns: Tensor, back: Tensor) -> Tensor:
    """Multiply each pair (x_2i, x_2i+1) of the last axis of x (R, N, C), as a complex number, by its own of `turns`, of
    the same shape; `back` are their conjugates.
    """
    if torch.compiler.is_compiling():
        (real, imaginary), (cos, sin) = (part.unflatten(-1, (-1, 2)).unbind(-1) for part in (x, turns))
        return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2).to(x.dtype)
    return _Rotation.apply(x, turns, back)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, scale: float) -> Tensor:
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 3)  # each (R B K, T, D)
        later = torch.full(2 * heads.shape[2:3], -torch.inf, device=heads.device).triu(1)
        shares = torch.baddbmm(later, q, k.mT, alpha=scale)
        shares.sub_(shares.amax(dim=-1, keepdim=True)).exp_()  # not by softmax, which crawls through rows this short
        shares.div_(shares.sum(dim=-1, keepdim=True))
        ctx.save_for_backward(q, k, v, shares)
        ctx.scale, ctx.shape = scale, heads.shape
        return _side_by_side(torch.bmm(shares, v), heads.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        q, k, v, shares = ctx.saved_tensors
        num_replicas, num_rows, length, _, num_heads, head_size = ctx.shape
        grad = grad.view(num_replicas, num_rows, length, num_heads, head_size).transpose(2, 3).flatten(0, 2)
        of_scores = torch.bmm(grad, v.mT)
        of_scores.sub_((of_scores * shares).sum(dim=-1, keepdim=True)).mul_(shares).mul_(ctx.scale)
        grads = torch.empty(3, *q.shape, device=q.device)
        torch.bmm(of_scores, k, out=grads[0])
        torch.bmm(of_scores.mT, q, out=grads[1])
        torch.bmm(shares.mT, grad, out=grads[2])
        return grads.unflatten(1, (num_replicas, num_rows, num_heads)).permute(1, 2, 4, 0, 3, 5), None


def _side_by_side(mixed: Tensor, shape: torch.Size) -> Tensor:
    """Heads of (R B K, T, D) or (R B, K, T, D) beside each other, (R, B T, H), given the shape of what was attended to."""
    num_replicas, num_rows, length, _, num_heads, head_size = shape
    of_rows = mixed.reshape(num_replicas, num_rows, num_heads, length, head_size)
    return of_rows.transpose(2, 3).reshape(num_replicas, num_rows * length, num_heads * head_size)


def attend(heads: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention among the cells of each row: queries, keys and values (R, B, T, 3, K, D) to (R, B T, H).

    `mask` (R B, 1, T, T) is true where a cell sees another, None for all before it. Rows of questions are so short that on
    a CPU the flash kernel's work for each head of each row is most of it; three batched products are twice as fast.
    """
    short = heads.shape[2] <= LONGEST_SHORT_ROW and heads.dtype is torch.float32 and not heads.is_cuda
    if short and mask is None and not torch.compiler.is_compiling():
        return _ShortAttention.apply(heads, scale)
    q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)  # each (R B, K, T, D)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return _side_by_side(mixed, heads.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
        logits = torch.bmm(hidden, unembedding.mT)  # in the precision that autocast asks for
        ctx.precision = logits.dtype
        logits = logits.float()
        largest = logits.amax(dim=-1)
        asked = logits.gather(-1, targets[..., None])[..., 0]
        # In place, here and below: the largest tensor of a small model, and nobody else's.
        shares = torch.softmax(logits, dim=-1, out=logits)
        ctx.save_for_backward(hidden, unembedding, targets, shares)
        # The largest share is far from 0, where that of the target may have vanished.
        return largest - asked - shares.amax(dim=-1).log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, unembedding, targets, shares = ctx.saved_tensors
        shares.mul_(grad[..., None]).scatter_add_(-1, targets[..., None], -grad[..., None])
        of_logits = shares.to(ctx.precision)
        of_hidden = torch.bmm(of_logits, unembedding.to(ctx.precision)).to(hidden.dtype)
        of_unembedding = torch.bmm(of_logits.mT, hidden.to(ctx.precision)).to(unembedding.dtype)
        return of_hidden, of_unembedding, None


def cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(hidden unembedding^T) at the targets, (R, A): hidden (R, A, H), unembedding (R, V, H), targets (R, A).

    Nats; softmax in fp32 whatever the precision of the product.
    """
    return _CrossEntropy.apply(hidden, unembedding, targets)
