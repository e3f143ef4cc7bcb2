"""Differentiable functions with gradients written by hand: fewer passes over memory than automatic ones.

Letters as in model.py. Each is exact: a test compares values and gradients with the plain formula. That is what the
compiler gets: it fuses better than a hand can, and cannot read ours.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-6


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
        gate, up = gate_up.chunk(2, dim=-1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_up, opened)
        return opened * up

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        gate_up, opened = ctx.saved_tensors
        gate, up = gate_up.chunk(2, dim=-1)
        grads = torch.empty_like(gate_up)
        of_gate, of_up = grads.chunk(2, dim=-1)
        torch.mul(grad, opened, out=of_up)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=of_gate)
        return grads


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
