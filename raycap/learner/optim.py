"""Optimizers and schedules. The learning rate is a pure function of the step, and every group has a share of its own.

Under muP, with m = width / base width, matrices of attention and MLP learn at lr / m with AdamW (arXiv 2203.03466) and
at lr / sqrt(m) with Muon: its updates have entries of a given size, so their spectral norm grows with sqrt(width),
while features move alike at every width where that norm stays (arXiv 2310.17813). Their weight decay is multiplied by
the same, so that lr times decay stays. Embeddings, output layer and gains keep both.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raycap.learner.model import FUSED, Llama, ParameterGroup
from raycap.spec import AdamW, Muon, OptimizerSpec, Schedule, ScheduleFree

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
"""Coefficients and steps of kellerjordan.github.io/posts/muon, and torch.optim.Muon's."""
ADAM_RMS = 0.2
"""Root mean square of an AdamW update in units of lr (arXiv 2502.16982)."""


class Optimizer:
    """The torch optimizers of one model as one, with its learning rate."""

    def __init__(self, spec: OptimizerSpec, members: tuple[torch.optim.Optimizer, ...]) -> None:
        """Every group of the members has its peak learning rate as `initial_lr`."""
        self.spec, self.members = spec, members
        self._training_weights: list[Tensor] = []  # while the averaged ones are in their place

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in a fixed order."""
        return [p for member in self.members for group in member.param_groups for p in group["params"]]

    def set_rate(self, step: int, num_steps: int) -> float:
        """Set every group's learning rate for `step` (from 0); returns the spec's lr at that step."""
        factor = schedule_factor(self.spec, step, num_steps)
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = group["initial_lr"] * factor
        return self.spec.lr * factor

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self.members:
            member.zero_grad()

    def step(self) -> None:
        """Move all parameters; schedule-free members overwrite the gradients."""
        for member in self.members:
            member.step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """While this is open the model has the weights to evaluate and save, and must not be trained.

        Schedule-free these are the averages. Its own way back to the training weights rounds; they are kept instead, so
        that evaluating changes nothing.
        """
        if not isinstance(self.spec, ScheduleFree):
            yield
            return
        self._training_weights = [p.detach().clone() for p in self.parameters]
        free: Any = self.members[0]
        free.eval()
        try:
            yield
        finally:
            free.train()
            self._restore(self._training_weights)
            self._training_weights = []

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on beside the model's state, be it taken inside `averaged` or outside."""
        return {"members": [member.state_dict() for member in self.members], "weights": self._training_weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same spec, whose rates come with it. Load the model's state first: one saved inside
        `averaged` is put right here.
        """
        for member, saved in zip(self.members, state["members"], strict=True):
            member.load_state_dict(saved)
        if state["weights"]:
            free: Any = self.members[0]
            free.train()
            self._restore(state["weights"])

    def _restore(self, weights: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, weight in zip(self.parameters, weights, strict=True):
                parameter.copy_(weight)


def build(spec: OptimizerSpec, model: Llama) -> Optimizer:
    """The optimizer of a model that is on its device already, before its first step."""
    named = list(model.named_parameters())

    def group(kinds: set[ParameterGroup], lr: float, decay: float, slower: float = 1.0) -> dict[str, Any]:
        params = [p for name, p in named if ParameterGroup.of(name) in kinds]
        return {"params": params, "initial_lr": lr / slower, "lr": lr / slower, "weight_decay": decay * slower}

    def matrices(lr: float, slower: float) -> dict[str, Any]:
        return group({ParameterGroup.MATRIX}, lr, spec.weight_decay.matrices, slower)

    m = model.spec.width_multiplier
    others = [
        group({ParameterGroup.EMBEDDING, ParameterGroup.UNEMBEDDING}, spec.lr, spec.weight_decay.embeddings),
        group({ParameterGroup.GAIN}, spec.lr, spec.weight_decay.gains),
    ]
    match spec:
        case AdamW():
            groups = [matrices(spec.lr, m), *others]
            return Optimizer(spec, (torch.optim.AdamW(groups, betas=spec.betas, fused=True),))
        case ScheduleFree():
            import schedulefree  # type: ignore[import-untyped]  # here: no other optimizer needs it

            # Not with its own warm-up: set_rate scales lr by the same numbers, and it weights its average by lr.
            free = schedulefree.AdamWScheduleFree([matrices(spec.lr, m), *others], betas=spec.betas)
            free.train()
            return Optimizer(spec, (free,))
        case Muon():
            pieces = [
                next((len(parts) for fused, parts in FUSED.items() if fused in name), 1)
                for name, _ in named
                if ParameterGroup.of(name) is ParameterGroup.MATRIX
            ]
            muon = FusedMuon([matrices(spec.muon_lr, math.sqrt(m)) | {"pieces": pieces}], momentum=spec.momentum)
            return Optimizer(spec, (muon, torch.optim.AdamW(others, betas=spec.betas, fused=True)))


def schedule_factor(spec: OptimizerSpec, step: int, num_steps: int) -> float:
    """Share in [0, 1] of the peak learning rate at `step` (from 0) of num_steps.

    It rises linearly to 1 within warmup_steps, at most half of all; then falls to 0 at num_steps, in a line or half a
    cosine, or only over the last decay_share of all steps (wsd), or stays (constant, schedule-free).
    """
    warmup_steps = min(spec.warmup_steps, num_steps // 2)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if isinstance(spec, ScheduleFree):
        return 1.0
    remaining = (num_steps - step) / (num_steps - warmup_steps)  # 1 after warm-up, towards 0 at the end
    match spec.schedule:
        case Schedule.LINEAR:
            return remaining
        case Schedule.COSINE:
            return (1 - math.cos(math.pi * remaining)) / 2
        case Schedule.WSD:
            return min(1.0, (num_steps - step) / min(spec.decay_share * num_steps, num_steps - warmup_steps))
        case Schedule.CONSTANT:
            return 1.0


class FusedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for parameters of several projections each.

    Updates are those of torch.optim.Muon with adjust_lr_fn="match_rms_adamw", in fp32. That class orthogonalises whole
    parameters, one after the other in bf16: the projections of a fused matrix would share one set of singular vectors,
    and a tiny model would wait for hundreds of tiny kernels. Here every projection is a matrix of its own, and those of
    one shape are orthogonalised together.

    A group's `pieces` says of each of its parameters how many projections of equal height it holds.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all matrices that have a gradient."""
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            by_shape: dict[
                torch.Size, tuple[list[Tensor], list[Tensor]]
            ] = {}  # matrices and updates, none of them tall
            for parameter, num_pieces in zip(group["params"], group["pieces"], strict=True):
                if parameter.grad is None:
                    continue
                if parameter not in self.state:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
                average = self.state[parameter]["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(average, momentum)
                parameter.mul_(1 - lr * group["weight_decay"])
                for matrix, piece in zip(parameter.chunk(num_pieces), update.chunk(num_pieces), strict=True):
                    if piece.shape[0] > piece.shape[1]:
                        matrix, piece = matrix.mT, piece.mT
                    matrices, pieces = by_shape.setdefault(piece.shape, ([], []))
                    matrices.append(matrix)
                    pieces.append(piece)
            for shape, (matrices, pieces) in by_shape.items():
                step_size = lr * ADAM_RMS * math.sqrt(shape[1])
                for matrix, direction in zip(matrices, orthogonalized(torch.stack(pieces)), strict=True):
                    matrix.sub_(direction, alpha=step_size)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Of each of (N, r, c), r <= c, about U V^T of its singular value decomposition: all singular values near 1.

    A quintic Newton-Schulz iteration: it brings singular values into about [0.7, 1.2], and only large enough ones.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b g + c g^2) x
    return x
