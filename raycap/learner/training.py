"""train(): a generator of Snapshots. It knows nothing of when to evaluate, where checkpoints go, or whom to tell."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from raycap.learner import optim
from raycap.learner.evaluation import Batch, DivergedError, answer_token_losses, autocast, to_bits
from raycap.learner.model import Llama
from raycap.learner.tokens import Rows
from raycap.spec import TrainingSpec

CHECK_FINITE_EVERY = 100


@dataclass(frozen=True)
class Snapshot:
    """What training reports at a pause: everything since the pause before."""

    step: int
    """Steps done."""
    seconds: float
    loss_sum_bits: float
    num_questions: int
    """Questions on this worker that loss_sum_bits is summed over."""
    learning_rate: float


def pause_steps(num_steps: int, num_evaluations: int, checkpoint_every: int) -> tuple[list[int], list[int]]:
    """Steps after which to evaluate (each twice the one before, the last at the end), and all steps to pause after."""
    evaluations = sorted({max(1, round(num_steps / 2**i)) for i in range(num_evaluations)})
    return evaluations, sorted({*evaluations, *range(checkpoint_every, num_steps, checkpoint_every)})


def train(
    model: Llama,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Rows],
    spec: TrainingSpec,
    *,
    num_steps: int,
    pauses: list[int],
    start_step: int,
    mean_answer_tokens: float,
    world_size: int = 1,
) -> Iterator[Snapshot]:
    """Train from `start_step` to `num_steps`, yielding after every step in `pauses`; the model stands still meanwhile.

    The loss is the sum over a step's answer tokens divided by their expected number, so that the gradient of a batch is
    the sum of its parts' however it is split over workers. Raises DivergedError naming the first step at fault.
    """
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    scale = 1 / (spec.batch_size * mean_answer_tokens)
    pause_set = set(pauses)
    loss_sum, num_questions = torch.zeros((), dtype=torch.float64, device=device), 0
    first_bad = torch.full((), num_steps, device=device)  # stays on the device: reading it every step would wait for it
    rows = next(batches, None)  # the stream's start is not training time
    began = time.perf_counter()
    for step in range(start_step, num_steps):
        assert rows is not None, f"the stream ended before step {step} of {num_steps}"
        rate = optim.learning_rate(spec.optimizer, step, num_steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        batch = Batch.of(rows, device)
        with autocast(spec.precision, device):
            loss = answer_token_losses(model, batch).sum()
        optimizer.zero_grad()
        (loss * scale).backward()
        if world_size > 1:
            _sum_over_workers(parameters)
        # The norm is of all workers' gradients, so that all of them see the same trouble at the same step.
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec.optimizer.grad_clip)
        optimizer.step()

        loss_sum += loss.detach()
        num_questions += len(batch.input_ids)
        first_bad = torch.where(torch.isfinite(norm), first_bad, first_bad.clamp(max=step))
        rows = next(batches, None)
        done = step + 1
        if (done % CHECK_FINITE_EVERY == 0 or done in pause_set) and (bad := int(first_bad)) < num_steps:
            raise DivergedError(
                f"the training loss is not finite at step {bad} (learning rate {rate:.3g}); lower optimizer.lr"
            )
        if done in pause_set:
            yield Snapshot(done, time.perf_counter() - began, to_bits(float(loss_sum)), num_questions, rate)
            loss_sum.zero_()
            num_questions, began = 0, time.perf_counter()


def _sum_over_workers(parameters: list[torch.nn.Parameter]) -> None:
    """Add the gradients of all workers in one message; models here are too small to gain from overlapping it."""
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
