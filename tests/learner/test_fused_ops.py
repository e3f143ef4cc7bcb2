"""Values and gradients of the hand-written operations equal those of the plain formulas."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from raycap.learner.fused_ops import NORM_EPS, attend, cross_entropy, gated, relu2, rms_norm, rotate

ANGLES = torch.arange(40.0).view(2, 5, 4)
ROPE = torch.stack([ANGLES.cos(), ANGLES.sin()], dim=-1).flatten(-2)
TARGETS = torch.tensor([[0, 3, 6, 2, 2], [1, 1, 0, 5, 4]])


def plain_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + NORM_EPS).sqrt() * weight[:, None]


def plain_rotation(x: Tensor) -> Tensor:
    cos, sin = ANGLES.cos(), ANGLES.sin()
    left, right = x[..., ::2], x[..., 1::2]
    return torch.stack([left * cos - right * sin, left * sin + right * cos], dim=-1).flatten(-2)


def plain_gated_relu2(x: Tensor) -> Tensor:
    return x[..., :4].clamp(min=0) ** 2 * x[..., 4:]


def plain_attention(heads: Tensor) -> Tensor:
    q, k, v = heads.unbind(3)
    scores = 0.3 * torch.einsum("rbtkd,rbskd->rbkts", q, k)
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    probs = scores.masked_fill(later, -torch.inf).softmax(-1)
    return torch.einsum("rbkts,rbskd->rbtkd", probs, v).reshape(2, 15, 8)


def plain_cross_entropy(hidden: Tensor, unembedding: Tensor) -> Tensor:
    return F.cross_entropy((hidden @ unembedding.mT).transpose(1, 2), TARGETS, reduction="none")


@pytest.mark.parametrize(
    ("fused", "plain", "shapes"),
    [
        (rms_norm, plain_norm, [(2, 5, 8), (2, 8)]),
        (lambda x: gated(x, relu2), plain_gated_relu2, [(2, 5, 8)]),
        (lambda x: rotate(x, ROPE), plain_rotation, [(2, 5, 8)]),
        (lambda heads: attend(heads, None, 0.3), plain_attention, [(2, 3, 5, 3, 2, 4)]),
        (lambda h, w: cross_entropy(h, w, TARGETS), plain_cross_entropy, [(2, 5, 8), (2, 7, 8)]),
    ],
    ids=["rms_norm", "gated", "rotate", "attend", "cross_entropy"],
)
def test_values_and_gradients_equal_those_of_the_plain_formula(
    fused: Callable[..., Tensor], plain: Callable[..., Tensor], shapes: list[tuple[int, ...]]
) -> None:
    generator = torch.Generator().manual_seed(0)
    arguments = [torch.randn(shape, generator=generator, requires_grad=True) for shape in shapes]
    values, expected = fused(*arguments), plain(*arguments)
    assert torch.allclose(values, expected, atol=1e-6)
    upstream = torch.randn(values.shape, generator=generator)
    gradients = torch.autograd.grad(values, arguments, upstream)
    for a, b in zip(gradients, torch.autograd.grad(expected, arguments, upstream), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_the_loss_is_exact_for_a_target_whose_probability_underflows() -> None:
    """The softmax of the target is 0 in fp32; the loss is the difference of the logits."""
    hidden = torch.tensor([[[200.0]]])
    unembedding = torch.tensor([[[1.0], [0.0]]])
    assert cross_entropy(hidden, unembedding, torch.tensor([[1]])).item() == pytest.approx(200.0)
