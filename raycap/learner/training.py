"""train(): a generator of Snapshots. It knows nothing of when to evaluate, where checkpoints go, or whom to tell."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from raycap.learner.batches import Batch
from raycap.learner.evaluation import DivergedError, autocast, in_loss_units, token_losses
from raycap.learner.model import Llama
from raycap.learner.optim import Optimizer
from raycap.spec import Precision, TrainingSpec
from raycap.tokens.composer import Rows

CHECK_FINITE_EVERY = 100
MIN_LOSS_SCALE = 2.0**-10
"""Of fp16 losses: one that is scaled down so far overflows whatever is done."""


@dataclass(frozen=True)
class Snapshot:
    """What training reports of one replica at a pause: everything since the pause before, of all workers."""

    step: int
    """Steps done."""
    seconds: float
    """Its share of the time that all replicas took together."""
    loss_sum_units: int
    """In LOSS_UNIT_BITS, not weighted."""
    num_texts: int
    num_tokens: int
    learning_rate: float
    diverged_at: int | None
    """The first step at which its loss or gradient was not finite."""


class Loss:
    """What is minimised: for each replica the weighted sum over a step's measured tokens divided by their expected number.

    So the gradient of a batch is the sum of its parts', however it is split over workers. The number is that of the
    questions' own mix, in every phase of a curriculum.
    """

    def __init__(self, tokens_per_step: list[float], corpus_weights: tuple[float, ...], device: torch.device) -> None:
        """Expected measured tokens of each replica, and what the losses of each corpus count."""
        self._share = 1 / torch.tensor(tokens_per_step, device=device)[:, None]
        weighted = any(weight != 1 for weight in corpus_weights)
        self._weights = torch.tensor(corpus_weights, device=device) if weighted else None

    def __call__(self, token_nats: Tensor, batch: Batch) -> Tensor:
        """The objective of one batch, summed over replicas: none of them feels the others."""
        weights = batch.loss_mask * self._share
        if self._weights is not None:
            weights = weights * self._weights[batch.corpus]
        return (token_nats * weights).sum()


def train(
    model: Llama,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Iterator[list[Rows]],
    spec: TrainingSpec,
    loss: Loss,
    *,
    start_step: int,
    num_steps: int,
    pauses_after: Callable[[int], bool],
    world_size: int = 1,
) -> Iterator[tuple[Snapshot, ...]]:
    """Train all replicas from `start_step` to `num_steps`, yielding a snapshot of each after every step that `pauses_after`
    names. The model stands still meanwhile; pausing changes nothing. `spec` is that of any replica: they differ in seeds
    and rates, which are not read here.

    Raises DivergedError naming the step at fault when no replica is left whose numbers are finite.
    """
    device, num_replicas = model.device, model.num_replicas
    loss_sums = torch.zeros(num_replicas, dtype=torch.int64, device=device)
    counts = np.zeros((2, num_replicas), np.int64)  # texts, tokens
    first_bad = torch.full((num_replicas,), num_steps, device=device)  # on the device: reading it would wait for it
    rows = next(batches, None)  # the stream's start is not training time
    began = time.perf_counter()
    for step in range(start_step, num_steps):
        assert rows is not None, f"the stream ended before step {step} of {num_steps}"
        rates = optimizer.set_rate(step, num_steps)
        batch = Batch.of(rows, model.vocab_size, device, spec.packing)
        with autocast(spec.precision, device):
            token_nats = token_losses(model, batch)
        optimizer.take_gradients(scaler.scale(loss(token_nats, batch)))
        totals = (token_nats.detach() * batch.loss_mask).double().sum(dim=1)
        if world_size > 1:
            dist.all_reduce(optimizer.gradients)
        for member in optimizer.members:
            scaler.unscale_(member)
        # The norm is of all workers' gradients, so that all of them see the same trouble at the same step.
        norms = optimizer.clip_gradients(spec.optimizer.grad_clip)
        for member in optimizer.members:
            scaler.step(member)
        scaler.update()

        loss_sums += in_loss_units(totals)
        counts += batch.num_texts, batch.num_tokens
        # A scaled fp16 gradient overflows now and then, and its step is left out; a loss must be finite in any case.
        told = _over_workers(totals, world_size) if spec.precision is Precision.FP16 else norms
        first_bad = torch.where(torch.isfinite(told), first_bad, first_bad.clamp(max=step))
        rows = next(batches, None)
        done = step + 1
        pauses = pauses_after(done)
        if done % CHECK_FINITE_EVERY == 0 or pauses:
            if (bad := int(first_bad.max())) < num_steps:
                raise diverged_error(bad, max(rates))
            if scaler.is_enabled() and scaler.get_scale() < MIN_LOSS_SCALE:
                raise DivergedError(f"fp16 gradients overflow at every scale up to step {done}; take bf16")
        if pauses:
            seconds = (time.perf_counter() - began) / num_replicas
            sums = torch.cat([loss_sums[None], torch.from_numpy(counts).to(device)])
            of_all = zip(*_over_workers(sums, world_size).tolist(), first_bad.tolist(), rates, strict=True)
            yield tuple(
                Snapshot(
                    step=done,
                    seconds=seconds,
                    loss_sum_units=units,
                    num_texts=num_texts,
                    num_tokens=num_tokens,
                    learning_rate=rate,
                    diverged_at=bad if bad < num_steps else None,
                )
                for units, num_texts, num_tokens, bad, rate in of_all
            )
            loss_sums.zero_()
            counts[:] = 0
            began = time.perf_counter()


def diverged_error(step: int, rate: float) -> DivergedError:
    """What is told of a training loss that is not a number from a step on, at a learning rate."""
    return DivergedError(
        f"the training loss is not finite at step {step} (learning rate {rate:.3g}); lower optimizer.lr"
    )


def _over_workers(sums: Tensor, world_size: int) -> Tensor:
    if world_size > 1:
        dist.all_reduce(sums)
    return sums
