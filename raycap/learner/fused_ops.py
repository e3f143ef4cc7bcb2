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
MAX_SHORT_ROW_LENGTH = 64
CHUNK_ELEMENTS = 2**18


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
        grad_unit = grad * unit
        mean = torch.bmm(grad_unit, weight[..., None]).div_(-unit.shape[-1])
        return (grad * weight[:, None]).addcmul_(unit, mean).mul_(scale), grad_unit.sum(dim=1)


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
        for part, out in _chunks(gate_up, mixed):
            gate, up = part.chunk(2, dim=-1)
            torch.mul(F.silu(gate), up, out=out)
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (gate_up,) = ctx.saved_tensors
        grads = torch.empty_like(gate_up)
        for part, upstream, out in _chunks(gate_up, grad, grads):
            gate, up = part.chunk(2, dim=-1)
            grad_gate, grad_up = out.chunk(2, dim=-1)
            torch.mul(upstream, F.silu(gate), out=grad_up)
            torch.ops.aten.silu_backward.grad_input(upstream * up, gate, grad_input=grad_gate)
        return grads


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors (R, N, ...) in parts along N: on a CPU such that what is done to a part finds it in the cache."""
    first = tensors[0]
    size = first.shape[1] if first.is_cuda else max(1, CHUNK_ELEMENTS // (first.shape[0] * first.shape[2]))
    return zip(*(tensor.split(size, dim=1) for tensor in tensors), strict=True)


def swiglu(gate_up: Tensor) -> Tensor:
    """silu(gate) * up, where gate is the first half of the last axis and up the second."""
    if torch.compiler.is_compiling():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    return _SwiGLU.apply(gate_up)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, rope: Tensor, rope_conjugate: Tensor) -> Tensor:
        ctx.save_for_backward(rope_conjugate)
        return _rotate_pairs(qkv, rope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (rope_conjugate,) = ctx.saved_tensors
        return _rotate_pairs(grad, rope_conjugate), None, None


def _rotate_pairs(x: Tensor, rope: Tensor) -> Tensor:
    pairs, rope = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (x.float(), rope))
    return torch.view_as_real(pairs * rope).flatten(-2).to(x.dtype)


def rotate(x: Tensor, rope: Tensor, rope_conjugate: Tensor) -> Tensor:
    """Multiply each pair (x_2i, x_2i+1) of the last axis of x (R, N, C), as a complex number, by its own of `turns`, of
    the same shape; `back` are their conjugates.
    """
    if torch.compiler.is_compiling():
        (real, imaginary), (cos, sin) = (part.unflatten(-1, (-1, 2)).unbind(-1) for part in (x, rope))
        return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2).to(x.dtype)
    return _Rotation.apply(x, rope, rope_conjugate)


class _ShortAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, scale: float) -> Tensor:
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 3)  # each (R B K, T, D)
        causal_bias = torch.full(2 * heads.shape[2:3], -torch.inf, device=heads.device).triu(1)
        probs = torch.baddbmm(causal_bias, q, k.mT, alpha=scale)
        probs.sub_(probs.amax(dim=-1, keepdim=True)).exp_()  # not by softmax, which crawls through rows this short
        probs.div_(probs.sum(dim=-1, keepdim=True))
        ctx.save_for_backward(q, k, v, probs)
        ctx.scale, ctx.shape = scale, heads.shape
        return _merge_heads(torch.bmm(probs, v), heads.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        q, k, v, probs = ctx.saved_tensors
        num_replicas, num_rows, length, _, num_heads, head_size = ctx.shape
        grad = grad.view(num_replicas, num_rows, length, num_heads, head_size).transpose(2, 3).flatten(0, 2)
        grad_scores = torch.bmm(grad, v.mT)
        grad_scores.sub_((grad_scores * probs).sum(dim=-1, keepdim=True)).mul_(probs).mul_(ctx.scale)
        grads = torch.empty(3, *q.shape, device=q.device)
        torch.bmm(grad_scores, k, out=grads[0])
        torch.bmm(grad_scores.mT, q, out=grads[1])
        torch.bmm(probs.mT, grad, out=grads[2])
        return grads.unflatten(1, (num_replicas, num_rows, num_heads)).permute(1, 2, 4, 0, 3, 5), None


def _merge_heads(mixed: Tensor, shape: torch.Size) -> Tensor:
    """Heads of (R B K, T, D) or (R B, K, T, D) beside each other, (R, B T, H), given the shape of what was attended to."""
    num_replicas, num_rows, length, _, num_heads, head_size = shape
    of_rows = mixed.reshape(num_replicas, num_rows, num_heads, length, head_size)
    return of_rows.transpose(2, 3).reshape(num_replicas, num_rows * length, num_heads * head_size)


def attend(heads: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Attention among the cells of each row: queries, keys and values (R, B, T, 3, K, D) to (R, B T, H).

    `mask` (R B, 1, T, T) is true where a cell sees another, None for all before it. Rows of questions are so short that on
    a CPU the flash kernel's work for each head of each row is most of it; three batched products are twice as fast.
    """
    short = heads.shape[2] <= MAX_SHORT_ROW_LENGTH and heads.dtype is torch.float32 and not heads.is_cuda
    if short and mask is None and not torch.compiler.is_compiling():
        return _ShortAttention.apply(heads, scale)
    q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)  # each (R B, K, T, D)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return _merge_heads(mixed, heads.shape)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
        logits = torch.bmm(hidden, unembedding.mT)  # in the precision that autocast asks for
        ctx.precision = logits.dtype
        logits = logits.float()
        largest = logits.amax(dim=-1)
        asked = logits.gather(-1, targets[..., None])[..., 0]
        # In place, here and below: the largest tensor of a small model, and nobody else's.
        probs = torch.softmax(logits, dim=-1, out=logits)
        ctx.save_for_backward(hidden, unembedding, targets, probs)
        # The largest share is far from 0, where that of the target may have vanished.
        return largest - asked - probs.amax(dim=-1).log()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        hidden, unembedding, targets, probs = ctx.saved_tensors
        probs.mul_(grad[..., None]).scatter_add_(-1, targets[..., None], -grad[..., None])
        grad_logits = probs.to(ctx.precision)
        grad_hidden = torch.bmm(grad_logits, unembedding.to(ctx.precision)).to(hidden.dtype)
        grad_unembedding = torch.bmm(grad_logits.mT, hidden.to(ctx.precision)).to(unembedding.dtype)
        return grad_hidden, grad_unembedding, None


def cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(hidden unembedding^T) at the targets, (R, A): hidden (R, A, H), unembedding (R, V, H), targets (R, A).

    Nats; softmax in fp32 whatever the precision of the product.
    """
    return _CrossEntropy.apply(hidden, unembedding, targets)
