"""Differentiable operations of the model. Where autograd costs more, gradients are written by hand.

Letters as in model.py. In comments, g is the gradient of the objective with respect to the output of an operation, and
d_x the gradient with respect to its input x. Tests compare values and gradients with the plain formulas. Under
torch.compile the plain formulas are used: the compiler fuses them better and cannot trace hand-written gradients.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

NORM_EPS = 1e-6
MAX_SHORT_ROW_LENGTH = 64
"""Longest rows for which attention on a CPU is computed with batched products."""


class _RMSNorm(torch.autograd.Function):
    # With s = (mean(x^2) + eps)^(-1/2), u = s x and y = u w:
    #   d_w = sum over nodes of g u
    #   d_u = g w
    # From ds/dx_j = -s^3 x_j / H and x = u / s follows du_i/dx_j = s (delta_ij - u_i u_j / H), hence
    #   d_x = s (d_u - u mean(d_u u)) = s (g w - u mean(g u w)).
    # mean(g u w) is a product of g u with w, computed by bmm without storing g u w.

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
        grad_times_unit = grad * unit
        minus_mean = torch.bmm(grad_times_unit, weight[..., None]).div_(-unit.shape[-1])
        return (grad * weight[:, None]).addcmul_(unit, minus_mean).mul_(scale), grad_times_unit.sum(dim=1)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last axis of x (R, N, H), with weight (R, H)."""
    if torch.compiler.is_compiling():
        return F.rms_norm(x, x.shape[-1:], eps=NORM_EPS) * weight[:, None]
    output: Tensor = _RMSNorm.apply(x, weight)
    return output


def relu2(x: Tensor) -> Tensor:
    """Return max(x, 0)^2."""
    return F.relu(x).square()


def gated(gate_up: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return activation(gate) * up, where gate is the first half of the last axis and up the second."""
    gate, up = gate_up.chunk(2, dim=-1)
    return activation(gate) * up


def rotate(x: Tensor, rope: Tensor) -> Tensor:
    """Multiply each pair (x_2i, x_2i+1) of the last axis of x (R, N, C), as a complex number in fp32, by that of `rope`.

    `rope` has the shape of x.
    """
    if torch.compiler.is_compiling():  # the compiler does not fuse complex products
        (real, imaginary), (cos, sin) = (part.unflatten(-1, (-1, 2)).unbind(-1) for part in (x, rope))
        return torch.stack([real * cos - imaginary * sin, real * sin + imaginary * cos], dim=-1).flatten(-2).to(x.dtype)
    pairs, factors = (torch.view_as_complex(part.unflatten(-1, (-1, 2))) for part in (x.float(), rope))
    return torch.view_as_real(pairs * factors).flatten(-2).to(x.dtype)


class _ShortAttention(torch.autograd.Function):
    # With scores S = scale Q K^T + causal bias, P = softmax(S) over the last axis and O = P V:
    #   d_V = P^T g
    #   d_P = g V^T
    #   d_S = P (d_P - sum over the last axis of d_P P), from dP_i/dS_j = P_i (delta_ij - P_j)
    #   d_Q = scale d_S K
    #   d_K = scale d_S^T Q
    # The bias is -inf above the diagonal, where P and therefore d_S are 0.

    @staticmethod
    def forward(ctx: Any, heads: Tensor, scale: float) -> Tensor:
        q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 3)  # each (R B K, T, D)
        causal_bias = torch.full(2 * heads.shape[2:3], -torch.inf, device=heads.device).triu(1)
        probs = torch.baddbmm(causal_bias, q, k.mT, alpha=scale)
        # torch.softmax is slow on a CPU for rows this short.
        probs.sub_(probs.amax(dim=-1, keepdim=True)).exp_()
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
        grad_scores = torch.bmm(grad, v.mT)  # d_P; the next line makes it scale d_S in place
        grad_scores.sub_((grad_scores * probs).sum(dim=-1, keepdim=True)).mul_(probs).mul_(ctx.scale)
        grads = torch.empty(3, *q.shape, device=q.device)  # of q, k and v, as one tensor like `heads`
        torch.bmm(grad_scores, k, out=grads[0])
        torch.bmm(grad_scores.mT, q, out=grads[1])
        torch.bmm(probs.mT, grad, out=grads[2])
        return grads.unflatten(1, (num_replicas, num_rows, num_heads)).permute(1, 2, 4, 0, 3, 5), None


def _merge_heads(mixed: Tensor, shape: torch.Size) -> Tensor:
    """Concatenate the heads of (R B K, T, D) or (R B, K, T, D) to (R, B T, H); `shape` is that of `heads` in `attend`."""
    num_replicas, num_rows, length, _, num_heads, head_size = shape
    by_head = mixed.reshape(num_replicas, num_rows, num_heads, length, head_size)
    return by_head.transpose(2, 3).reshape(num_replicas, num_rows * length, num_heads * head_size)


def attend(heads: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return attention within each row, (R, B T, H), for queries, keys and values `heads` (R, B, T, 3, K, D).

    `mask` (R B, 1, T, T) is true where a cell attends to another; None means causal attention. Rows of questions are so
    short that torch's flash kernel on a CPU spends most of its time on overhead for each head of each row; batched
    products are twice as fast.
    """
    short = heads.shape[2] <= MAX_SHORT_ROW_LENGTH and heads.dtype is torch.float32 and not heads.is_cuda
    if short and mask is None and not torch.compiler.is_compiling():
        output: Tensor = _ShortAttention.apply(heads, scale)
        return output
    q, k, v = heads.permute(3, 0, 1, 4, 2, 5).flatten(1, 2)  # each (R B, K, T, D)
    if torch.compiler.is_compiling() and not heads.is_cuda:
        # For a CPU, the compiler fixes the strides of what scaled_dot_product_attention keeps for its backward pass to those
        # of the first batch of a stack, and fails at rows of another length. The plain formula has no such tensors.
        allowed = torch.ones(2 * heads.shape[2:3], dtype=torch.bool).tril() if mask is None else mask
        scores = (scale * (q @ k.mT).float()).masked_fill(~allowed, -torch.inf)
        return _merge_heads(scores.softmax(dim=-1).to(v.dtype) @ v, heads.shape)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale)
    return _merge_heads(mixed, heads.shape)


class _CrossEntropy(torch.autograd.Function):
    # With logits Z = h U^T, m = max Z, P = softmax(Z) and target t, the loss is
    #   -log P_t = m + log(sum exp(Z - m)) - Z_t = m - Z_t - log(max P),  because max P = 1 / sum exp(Z - m).
    # The last form needs no pass over Z after the softmax. P_t itself can underflow to 0, max P is at least 1 / V.
    # Gradients, with a one-hot vector e_t:
    #   d_Z = g (P - e_t)
    #   d_h = d_Z U
    #   d_U = d_Z^T h, summed over answers.

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
        logits = torch.bmm(hidden, unembedding.mT)  # in the precision of autocast
        ctx.precision = logits.dtype
        logits = logits.float()
        largest = logits.amax(dim=-1)
        at_target = logits.gather(-1, targets[..., None])[..., 0]
        # In place, here and in backward: logits are the largest tensor of a small model and are used only here.
        probs = torch.softmax(logits, dim=-1, out=logits)
        ctx.save_for_backward(hidden, unembedding, targets, probs)
        return largest - at_target - probs.amax(dim=-1).log()

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
    """Return -log softmax(hidden unembedding^T) at the targets, (R, A), in nats.

    Shapes are hidden (R, A, H), unembedding (R, V, H) and targets (R, A). The softmax is computed in fp32, whatever the
    precision of the product.
    """
    output: Tensor = _CrossEntropy.apply(hidden, unembedding, targets)
    return output
