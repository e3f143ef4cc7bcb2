"""The training loop: a generator that yields a snapshot of every replica at each pause."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raycap.learner.batches import Batch
from raycap.learner.evaluation import DivergedError, autocast, in_loss_units
from raycap.learner.graph import Counts, GraphedStep
from raycap.learner.language_model import LanguageModel
from raycap.learner.optim import Optimizer
from raycap.spec import Precision, TrainingSpec
from raycap.tokens.composer import Rows

CHECK_FINITE_EVERY = 100
MIN_LOSS_SCALE = 2.0**-10
"""Smallest loss scale in fp16. If gradients overflow even here, training is reported as diverged."""


@dataclass(frozen=True)
class Snapshot:
    """Progress of one replica at a pause. Sums and counts cover the steps since the previous pause, over all workers."""

    step: int
    """Number of steps done."""
    seconds: float
    """Time since the previous pause, divided by the number of replicas."""
    loss_sum_units: int
    """Sum of unweighted losses in LOSS_UNIT_BITS."""
    num_texts: int
    num_tokens: int
    learning_rate: float
    diverged_at: int | None
    """First step at which the loss or the gradient was not finite, if there was one."""


class Loss:
    """The training objective: weighted loss of a step's measured tokens divided by their expected number.

    The divisor does not depend on the batch, so the gradient of a batch is the sum of the gradients of its parts, however
    it is split over workers. It is the expected number under the mix of `questions`, in every phase of a curriculum.
    See docs/science.md#objective.
    """

    def __init__(self, tokens_per_step: list[float], corpus_weights: tuple[float, ...], device: torch.device) -> None:
        """Initialize with the expected number of measured tokens per step of each replica, and the weight of each corpus."""
        self._weight_per_token = 1 / torch.tensor(tokens_per_step, device=device)[:, None]
        weighted = any(weight != 1 for weight in corpus_weights)
        self._weights = torch.tensor(corpus_weights, device=device) if weighted else None

    def __call__(self, token_nats: Tensor, batch: Batch) -> Tensor:
        """Return the objective of a batch, summed over replicas, for losses (R, A) in nats.

        Replicas share no weights, so the gradient of the sum holds the gradient of each replica.
        """
        weights = batch.loss_mask * self._weight_per_token
        if self._weights is not None:
            weights = weights * self._weights[batch.corpus]
        return (token_nats * weights).sum()


class TrainingStep:
    """One step of training: losses, gradients and the update of the weights of all replicas.

    Losses and the first step that is not finite are accumulated on the device until the next pause, because reading a value
    on the host waits for the device. A step reads no number of the host except learning rates, so a CUDA graph can repeat
    it (see graph.py).
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: Optimizer,
        scaler: torch.amp.GradScaler,
        spec: TrainingSpec,
        loss: Loss,
        *,
        start_step: int,
        num_steps: int,
        world_size: int = 1,
    ) -> None:
        self.model, self.optimizer, self.scaler, self.spec = model, optimizer, scaler, spec
        self._loss, self._world_size, self.num_steps = loss, world_size, num_steps
        device, num_replicas = model.device, model.num_replicas
        self.loss_sums = torch.zeros(num_replicas, dtype=torch.int64, device=device)
        """Sums of unweighted losses since the last pause in LOSS_UNIT_BITS, (R,)."""
        self.first_bad = torch.full((num_replicas,), num_steps, device=device)
        """First step of each replica whose loss or gradient is not finite; num_steps if there is none, (R,)."""
        self._index = torch.tensor(start_step, device=device)

    def __call__(self, batch: Batch) -> None:
        """Train on a batch."""
        with autocast(self.spec.precision, self.model.device):
            token_nats = self.model.token_losses(batch)
        self.optimizer.take_gradients(self.scaler.scale(self._loss(token_nats, batch)))
        totals = (token_nats.detach() * batch.loss_mask).double().sum(dim=1)
        if self._world_size > 1:
            dist.all_reduce(self.optimizer.gradients)
        for member in self.optimizer.members:
            self.scaler.unscale_(member)
        # Norms are taken after the all-reduce, so that all workers detect divergence at the same step.
        norms = self.optimizer.clip_gradients(self.spec.optimizer.grad_clip)
        for member in self.optimizer.members:
            self.scaler.step(member)
        self.scaler.update()
        self.loss_sums += in_loss_units(totals)
        # In fp16, scaled gradients overflow occasionally and GradScaler skips the step; only losses must stay finite.
        checked = _sum_over_workers(totals, self._world_size) if self.spec.precision is Precision.FP16 else norms
        bad = torch.where(torch.isfinite(checked), self.num_steps, self._index)
        torch.minimum(self.first_bad, bad, out=self.first_bad)
        self._index += 1

    def check_finite(self, done: int, rate: float) -> None:
        """Raise DivergedError if a loss or gradient of every replica is not finite, or the loss scale is too small."""
        if (bad := int(self.first_bad.max())) < self.num_steps:
            raise diverged_error(bad, rate)
        if self.scaler.is_enabled() and self.scaler.get_scale() < MIN_LOSS_SCALE:
            raise DivergedError(
                f"training.precision: fp16 gradients overflow even at the smallest loss scale, step {done}; use bf16"
            )


def train(
    step: TrainingStep,
    batches: Iterator[list[Rows]],
    *,
    start_step: int,
    pauses_after: Callable[[int], bool],
    world_size: int = 1,
    graphed: bool = False,
) -> Iterator[tuple[Snapshot, ...]]:
    """Train all replicas from `start_step` to the last step and yield a snapshot of each after pauses.

    Pauses follow the steps for which `pauses_after` returns true. They do not change training. `batches` yields the rows of
    each replica for one step. With `graphed`, batches are built on the device and steps run as CUDA graphs.

    Raises DivergedError, with the step, once the losses or gradients of all replicas are no longer finite.
    """
    model = step.model
    run = runner(step, graphed=graphed)
    counts = np.zeros((2, model.num_replicas), np.int64)  # texts, tokens
    rows = next(batches, None)  # before the clock starts: opening the stream is not training time
    began = time.perf_counter()
    for index in range(start_step, step.num_steps):
        assert rows is not None, f"the stream of rows ended before step {index} of {step.num_steps}"
        rates = step.optimizer.set_rate(index, step.num_steps)
        counts += run(rows)
        rows = next(batches, None)
        done = index + 1
        pauses = pauses_after(done)
        if done % CHECK_FINITE_EVERY == 0 or pauses:
            step.check_finite(done, max(rates))
        if pauses:
            seconds = (time.perf_counter() - began) / model.num_replicas
            sums = torch.cat([step.loss_sums[None], torch.from_numpy(counts).to(model.device)])
            per_replica = zip(
                *_sum_over_workers(sums, world_size).tolist(), step.first_bad.tolist(), rates, strict=True
            )
            yield tuple(
                Snapshot(
                    step=done,
                    seconds=seconds,
                    loss_sum_units=units,
                    num_texts=num_texts,
                    num_tokens=num_tokens,
                    learning_rate=rate,
                    diverged_at=bad if bad < step.num_steps else None,
                )
                for units, num_texts, num_tokens, bad, rate in per_replica
            )
            step.loss_sums.zero_()
            counts[:] = 0
            began = time.perf_counter()


def runner(step: TrainingStep, *, graphed: bool) -> Callable[[list[Rows]], Counts]:
    """Return a function that trains on the rows of each replica for one step."""
    model = step.model
    if graphed:
        return GraphedStep(step, model.vocab_size, model.device)

    def run(rows: list[Rows]) -> Counts:
        batch = Batch.of(rows, model.vocab_size, model.device, step.spec.packing)
        step(batch)
        return batch.num_texts, batch.num_tokens

    return run


def diverged_error(step: int, rate: float) -> DivergedError:
    """Return the error for a training loss that is not finite from `step` on, at learning rate `rate`."""
    return DivergedError(
        f"the training loss is not finite at step {step} (learning rate {rate:.3g}); lower optimizer.lr"
    )


def _sum_over_workers(sums: Tensor, world_size: int) -> Tensor:
    if world_size > 1:
        dist.all_reduce(sums)
    return sums
