"""train(): a generator of Snapshots. It knows nothing of when to evaluate, where checkpoints go, or whom to tell."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from raycap.learner.batches import Batch
from raycap.learner.evaluation import DivergedError, autocast, to_bits, token_losses
from raycap.learner.model import Llama
from raycap.learner.optim import Optimizer
from raycap.learner.tokens import Rows
from raycap.spec import Precision, TrainingSpec

CHECK_FINITE_EVERY = 100
LOWEST_SCALE = 2.0**-10
"""Of fp16 losses: one that is scaled down so far overflows whatever is done."""


@dataclass(frozen=True)
class Snapshot:
    """What training reports at a pause: everything since the pause before, of all workers."""

    step: int
    """Steps done."""
    seconds: float
    loss_sum_bits: float
    """Not weighted."""
    num_texts: int
    num_tokens: int
    learning_rate: float


@dataclass(frozen=True)
class Loss:
    """What is minimised: the weighted sum over a step's measured tokens divided by their expected number.

    So the gradient of a batch is the sum of its parts', however it is split over workers. The number is that of the
    questions' own mix, in every phase of a curriculum.
    """

    tokens_per_step: float
    corpus_weights: tuple[float, ...]

    def __call__(self, token_nats: Tensor, batch: Batch) -> Tensor:
        """The objective of one batch."""
        if any(weight != 1 for weight in self.corpus_weights):
            weights = token_nats.new_tensor(self.corpus_weights)
            token_nats = token_nats * weights[batch.corpus[batch.text_of]]
        return token_nats.sum() / self.tokens_per_step


def train(
    model: Llama,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler,
    batches: Iterator[Rows],
    spec: TrainingSpec,
    loss: Loss,
    *,
    start_step: int,
    num_steps: int,
    pauses: set[int],
    world_size: int = 1,
) -> Iterator[Snapshot]:
    """Train from `start_step` to `num_steps`, yielding after every step in `pauses`; the model stands still meanwhile.

    Raises DivergedError naming the first step at fault.
    """
    device = next(model.parameters()).device
    parameters = list(model.parameters())
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # loss in nats, texts, tokens
    first_bad = torch.full((), num_steps, device=device)  # stays on the device: reading it every step would wait for it
    rows = next(batches, None)  # the stream's start is not training time
    began = time.perf_counter()
    for step in range(start_step, num_steps):
        assert rows is not None, f"the stream ended before step {step} of {num_steps}"
        rate = optimizer.set_rate(step, num_steps)
        batch = Batch.of(rows, device, spec.packing)
        with autocast(spec.precision, device):
            nats = token_losses(model, batch)
        optimizer.zero_grad()
        scaler.scale(loss(nats, batch)).backward()
        total = nats.detach().double().sum()
        loss_of_all = _sum_over_workers(parameters, total) if world_size > 1 else total
        for member in optimizer.members:
            scaler.unscale_(member)
        # The norm is of all workers' gradients, so that all of them see the same trouble at the same step.
        norm = torch.nn.utils.clip_grad_norm_(parameters, spec.optimizer.grad_clip)
        for member in optimizer.members:
            scaler.step(member)
        scaler.update()

        sums += torch.stack([total, total.new_tensor(len(batch.corpus)), total.new_tensor(batch.num_tokens)])
        # A scaled fp16 gradient overflows now and then, and its step is left out; a loss must be finite in any case.
        finite = torch.isfinite(loss_of_all if spec.precision is Precision.FP16 else norm)
        first_bad = torch.where(finite, first_bad, first_bad.clamp(max=step))
        rows = next(batches, None)
        done = step + 1
        if done % CHECK_FINITE_EVERY == 0 or done in pauses:
            if (bad := int(first_bad)) < num_steps:
                raise DivergedError(
                    f"the training loss is not finite at step {bad} (learning rate {rate:.3g}); lower optimizer.lr"
                )
            if scaler.is_enabled() and scaler.get_scale() < LOWEST_SCALE:
                raise DivergedError(f"fp16 gradients overflow at every scale up to step {done}; take bf16")
        if done in pauses:
            if world_size > 1:
                dist.all_reduce(sums)
            nats_sum, num_texts, num_tokens = sums.tolist()
            seconds = time.perf_counter() - began
            yield Snapshot(done, seconds, to_bits(nats_sum), round(num_texts), round(num_tokens), rate)
            sums.zero_()
            began = time.perf_counter()


def _sum_over_workers(parameters: list[torch.nn.Parameter], loss: Tensor) -> Tensor:
    """Add the gradients of all workers, and their losses, in one message; returns the sum of the losses.

    Models here are too small to gain from overlapping it.
    """
    gradients: list[Tensor] = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([*(gradient.flatten() for gradient in gradients), loss.to(gradients[0].dtype).view(1)])
    dist.all_reduce(flat)
    *summed, loss_of_all = flat.split([*(g.numel() for g in gradients), 1])
    for gradient, total in zip(gradients, summed, strict=True):
        gradient.copy_(total.view_as(gradient))
    return loss_of_all
