"""Probes: classifiers that read labels from residuals, in bits on questions that they were not trained on.

Letters: n questions, H hidden size, C classes. A probe computes the logits

    log f + t W0 x + D x,    x = (norm(residual) - mean) / scale,

where f are the frequencies of the classes and W0 (C, H) the rows of the model's own output layer. The family own fits the
number t. The family linear also fits D (C, H), with the penalty p/2 |D|^2 per question. With t = 0 and D = 0, the probe is
the distribution f, so it reads nothing. See docs/probes.md#probes.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raycap.facts.corpus import Ids
from raycap.learner.evaluation import BITS_PER_NAT
from raycap.spec.probes import ProbeFamily

PENALTIES = {
    ProbeFamily.OWN: (math.inf,),
    ProbeFamily.LINEAR: (math.inf, 0.1, 0.01, 0.001),
}
"""Penalties p of which one is chosen on questions that the probe is not fitted to. If it is infinite, D is 0."""
MAX_ITERATIONS = 30
"""Largest number of iterations of L-BFGS per penalty; each penalty starts at the solution of the one before."""
MIN_CHANGE_NATS = 1e-5
"""L-BFGS ends when the loss per question changes by less."""
FIRST_PORTION, NUM_PORTIONS = 1 / 16, 4
"""Share of the questions that the prequential code encodes uniformly, and number of portions that follow, each of which
is as large as all before it."""
TINY = 1e-12
"""Added to scales that can be 0."""
RANK_TOLERANCE = 1e-3
"""Directions in which linear functions vary less than this share of the largest are left out of their subspace."""

Bits = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Probe:
    """A fitted probe."""

    mean: Tensor  # (H,)
    scale: Tensor  # ()
    log_frequencies: Tensor  # (C,)
    factor: Tensor  # (), the number t
    change: Tensor  # (C, H), the matrix D
    own: Tensor  # (C, H), the matrix W0
    penalty: float

    @property
    def weights(self) -> Tensor:
        """Weights of the centred and scaled residuals, (C, H)."""
        return self.factor * self.own + self.change

    def loss_bits(self, x: Tensor, labels: Tensor) -> Bits:
        """Return the loss of each label in bits, (n,)."""
        logits = self.log_frequencies + (x - self.mean) / self.scale @ self.weights.mT
        return F.cross_entropy(logits.double(), labels, reduction="none").cpu().numpy() * BITS_PER_NAT

    @property
    def null(self) -> "Probe":
        """The probe that ignores its input."""
        return replace(self, factor=torch.zeros_like(self.factor), change=torch.zeros_like(self.change))


def fit_probe(x: Tensor, labels: Tensor, validation: Tensor, own: Tensor, family: ProbeFamily) -> Probe:
    """Return the probe of a family for some questions.

    Whether it reads at all, and the penalty, have the smallest loss on the questions `validation` among probes that are
    fitted to the others. The chosen probe is then fitted to all questions.

    Args:
        x: Normalised residuals, (n, H).
        labels: Classes, (n,).
        validation: Which questions serve to choose the probe, (n,).
        own: Rows of the output layer, (C, H).
        family: Family of the probe.
    """
    start = _untrained(x, labels, own)
    if validation.all() or not validation.any():
        return start
    path = [_untrained(x[~validation], labels[~validation], own)]
    losses = [float(path[0].loss_bits(x[validation], labels[validation]).mean())]
    for penalty in PENALTIES[family]:
        path.append(_fitted(path[-1], x[~validation], labels[~validation], penalty))
        losses.append(float(path[-1].loss_bits(x[validation], labels[validation]).mean()))
        if math.isfinite(penalty) and losses[-1] > losses[-2]:
            break  # smaller penalties overfit more
    best = int(np.argmin(losses))
    if best == 0:
        return start
    chosen = path[best]
    return _fitted(replace(start, factor=chosen.factor, change=chosen.change), x, labels, chosen.penalty)


def _untrained(x: Tensor, labels: Tensor, own: Tensor) -> Probe:
    """Return the probe that ignores its input, with the statistics of the questions."""
    mean = x.mean(dim=0)
    scale = (x - mean).square().mean().sqrt() + TINY
    counts = torch.bincount(labels, minlength=len(own)).to(x.dtype) + 1
    directions = own / (own.square().mean().sqrt() + TINY)
    return Probe(
        mean, scale, (counts / counts.sum()).log(), x.new_zeros(()), torch.zeros_like(own), directions, math.inf
    )


def _fitted(start: Probe, x: Tensor, labels: Tensor, penalty: float) -> Probe:
    """Return the probe with a penalty, fitted from `start`, whose statistics are those of the questions.

    The number t is fitted alone, with D = 0, and D for this t.
    """
    centred = (x - start.mean) / start.scale
    readout = centred @ start.own.mT
    factor, change = start.factor.clone(), start.change.clone()
    if math.isinf(penalty) or math.isinf(start.penalty):
        _minimise(factor, lambda: F.cross_entropy(start.log_frequencies + factor * readout, labels))
    if math.isfinite(penalty):
        offset = start.log_frequencies + factor * readout

        def objective() -> Tensor:
            return F.cross_entropy(offset + centred @ change.mT, labels) + penalty / 2 * change.square().sum()

        _minimise(change, objective)
    return replace(start, factor=factor, change=change, penalty=penalty)


def _minimise(parameter: Tensor, objective: Callable[[], Tensor]) -> None:
    """Change a tensor in place to one that minimises the objective."""
    parameter.requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [parameter], max_iter=MAX_ITERATIONS, tolerance_change=MIN_CHANGE_NATS, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()
        return loss

    optimizer.step(closure)
    parameter.requires_grad_(False)


def read_bits(x: Tensor, labels: Tensor, folds: Tensor, own: Tensor, family: ProbeFamily) -> tuple[Bits, Bits]:
    """Return the loss of each label in bits without and with the residual, each (n,), on folds that are left out.

    Args:
        x: Normalised residuals, (n, H).
        labels: Classes, (n,).
        folds: Fold of each question, (n,), from 0. The next fold of the training folds serves to choose the probe.
        own: Rows of the output layer, (C, H).
        family: Family of the probes.
    """
    num_folds = int(folds.max()) + 1
    entropy, loss = np.zeros(len(labels)), np.zeros(len(labels))
    for fold in range(num_folds):
        train, test = folds != fold, folds == fold
        validation = folds[train] == (fold + 1) % num_folds
        probe = fit_probe(x[train], labels[train], validation, own, family)
        at = test.cpu().numpy()
        loss[at] = probe.loss_bits(x[test], labels[test])
        entropy[at] = probe.null.loss_bits(x[test], labels[test])
    return entropy, loss


def code_length_bits(x: Tensor, labels: Tensor, order: Tensor, own: Tensor, family: ProbeFamily) -> float:
    """Return the prequential code length of the labels given the residuals, in bits (arXiv 2003.12298, section 3.2).

    The first portion is encoded uniformly, and each later portion by a probe that is fitted to the portions before it.

    Args:
        x: Normalised residuals, (n, H).
        labels: Classes, (n,).
        order: Position of each question in the order of encoding as a share of all, (n,), from 0 to 1.
        own: Rows of the output layer, (C, H).
        family: Family of the probes.
    """
    share = FIRST_PORTION
    total = int((order < share).sum()) * math.log2(len(own))
    for _ in range(NUM_PORTIONS):
        known, portion = order < share, (order >= share) & (order < 2 * share)
        if not known.any() or not portion.any():
            total += int(portion.sum()) * math.log2(len(own))
        else:
            probe = fit_probe(x[known], labels[known], order[known] >= share / 2, own, family)
            total += float(probe.loss_bits(x[portion], labels[portion]).sum())
        share *= 2
    return total


def clustered_error(values: Bits, clusters: Ids) -> float:
    """Return the standard error of the mean of values that are dependent within clusters; 0 for a single cluster."""
    _, index = np.unique(clusters, return_inverse=True)
    num = int(index.max()) + 1
    if num < 2:
        return 0.0
    sums = np.bincount(index, values - values.mean(), minlength=num)
    return float(np.sqrt((sums**2).sum() * num / (num - 1)) / len(values))


def subspace(weights: Tensor, max_dimensions: int) -> Tensor:
    """Return orthonormal columns (H, k) of the directions in which linear functions (C, H) vary most, 1 <= k."""
    _, scales, directions = torch.linalg.svd(weights, full_matrices=False)
    rank = int((scales > RANK_TOLERANCE * scales[0]).sum())
    basis: Tensor = directions[: max(1, min(max_dimensions, rank))].mT
    return basis


def random_subspace(hidden_size: int, generator: torch.Generator) -> Tensor:
    """Return orthonormal columns (H, H) in random directions."""
    basis: Tensor = torch.linalg.qr(torch.randn(hidden_size, hidden_size, generator=generator))[0]
    return basis
