"""Optimizers and schedules. The learning rate is a pure function of the step, and every group has a share of its own.

Under muP, with m = width / base width, matrices of attention and MLP learn at lr / m with AdamW (arXiv 2203.03466) and
at lr / sqrt(m) with Muon: its updates have entries of a given size, so their spectral norm grows with sqrt(width),
while features move alike at every width where that norm stays (arXiv 2310.17813). Their weight decay is multiplied by
the same, so that lr times decay stays. Embeddings, output layer and gains keep both.
"""

import math
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from raycap.learner.model import FUSED_PROJECTIONS, Llama, ParameterGroup
from raycap.spec import AdamW, Muon, OptimizerSpec, Schedule, ScheduleFree

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
"""Coefficients and steps of kellerjordan.github.io/posts/muon, and torch.optim.Muon's."""
ADAM_RMS = 0.2
"""Root mean square of an AdamW update in units of lr (arXiv 2502.16982)."""


class Optimizer:
    """The torch optimizers of a stack of replicas as one, with their learning rates.

    What they move are rows of the model's storage: all weights of a group of one replica in a single tensor. Replicas of
    the same rates are moved by the same calls.
    """

    def __init__(
        self, specs: tuple[OptimizerSpec, ...], model: Llama, members: tuple[torch.optim.Optimizer, ...]
    ) -> None:
        """Every group of the members has its peak learning rate as `initial_lr`; the specs differ in rates alone."""
        self.specs, self.members, self._model = specs, members, model
        self.gradients = torch.zeros(sum(w.numel() for w in model.storage.values()), device=model.device)
        """Of all weights of all replicas in one piece; `step` reads them."""
        parts = self.gradients.split([weights.numel() for weights in model.storage.values()])
        self._gradients = {
            group: part.view_as(weights) for (group, weights), part in zip(model.storage.items(), parts, strict=True)
        }
        place = {
            weights[r].data_ptr(): (group, r) for group, weights in model.storage.items() for r in range(len(weights))
        }
        self._replica_of: dict[int, int] = {}
        for row in self._rows():
            group, replica = place[row.data_ptr()]
            row.grad, self._replica_of[id(row)] = self._gradients[group][replica], replica

    def _rows(self) -> Iterator[Tensor]:
        for member in self.members:
            for group in member.param_groups:
                yield from group["params"]

    def set_rate(self, step: int, num_steps: int) -> tuple[float, ...]:
        """Set every group's learning rate for `step` (from 0); returns each replica's lr at that step."""
        factor = schedule_factor(self.specs[0], step, num_steps)
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = group["initial_lr"] * factor
        return tuple(spec.lr * factor for spec in self.specs)

    def take_gradients(self, objective: Tensor) -> None:
        """Overwrite the gradients with those of a scalar."""
        names, parameters = zip(*self._model.named_parameters(), strict=True)
        by_group = defaultdict(list)
        for name, gradient in zip(names, torch.autograd.grad(objective, parameters), strict=True):
            by_group[ParameterGroup.of(name)].append(gradient.flatten(1))
        for group, gradients in by_group.items():
            torch.cat(gradients, dim=1, out=self._gradients[group])

    def clip_gradients(self, largest: float) -> Tensor:
        """Scale the gradient of each replica down to a norm; returns what the norms were, (R,)."""
        norms = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in self._gradients.values()]).norm(dim=0)
        factors = (largest / (norms + 1e-6)).clamp(max=1.0)
        for gradients in self._gradients.values():
            gradients.mul_(factors[:, None])
        return norms

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
        if not isinstance(self.specs[0], ScheduleFree):
            yield
            return
        storage = self._model.storage
        training_weights = {group: weights.clone() for group, weights in storage.items()}
        free: Any = self.members[0]
        free.eval()
        try:
            yield
        finally:
            free.train()
            for group, weights in storage.items():
                weights.copy_(training_weights[group])

    def state_of(self, replica: int) -> list[dict[str, Any]]:
        """All that a replica's next steps depend on beside its weights, in a fixed order."""
        return [
            {
                "row": {key: value.clone() for key, value in member.state[row].items()},
                "group": {key: value for key, value in group.items() if key != "params"},
            }
            for member, group, row in self._of(replica)
        ]

    def load_state_of(self, replica: int, state: list[dict[str, Any]]) -> None:
        """Go on from a state of the same spec, on any device."""
        for (member, group, row), saved in zip(self._of(replica), state, strict=True):
            member.state[row] = saved["row"]
            group.update(saved["group"])

    def _of(self, replica: int) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], Tensor]]:
        for member in self.members:
            for group in member.param_groups:
                for row in group["params"]:
                    if self._replica_of[id(row)] == replica:
                        yield member, group, row


def build(specs: tuple[OptimizerSpec, ...], model: Llama) -> Optimizer:
    """The optimizer of replicas that are on their device already, before their first step, with a spec for each."""
    spec, m = specs[0], model.spec.width_multiplier

    def groups(*parts: tuple[set[ParameterGroup], str, str, float]) -> list[dict[str, Any]]:
        """A group of rows for each pair of peak rate and decay; a part names its parameters, its rate and decay in the
        spec, and by how much it learns slower.
        """
        rows: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for kinds, rate, decay, slower in parts:
            for replica, mine in enumerate(specs):
                key = getattr(mine, rate) / slower, getattr(mine.weight_decay, decay) * slower
                rows[key] += [weights[replica] for group, weights in model.storage.items() if group in kinds]
        return [{"params": alike, "initial_lr": lr, "lr": lr, "weight_decay": d} for (lr, d), alike in rows.items()]

    others = (
        ({ParameterGroup.EMBEDDING, ParameterGroup.UNEMBEDDING}, "lr", "embeddings", 1.0),
        ({ParameterGroup.GAIN}, "lr", "gains", 1.0),
    )
    matrices = ({ParameterGroup.MATRIX}, "lr", "matrices", m)
    match spec:
        case AdamW():
            adamw = torch.optim.AdamW(groups(matrices, *others), betas=spec.betas, fused=True)
            return Optimizer(specs, model, (adamw,))
        case ScheduleFree():
            import schedulefree  # type: ignore[import-untyped]  # here: no other optimizer needs it

            # Not with its own warm-up: set_rate scales lr by the same numbers, and it weights its average by lr.
            free = schedulefree.AdamWScheduleFree(groups(matrices, *others), betas=spec.betas)
            free.train()
            return Optimizer(specs, model, (free,))
        case Muon():
            shapes = [
                torch.Size((parameter.shape[1] // num_pieces, parameter.shape[2]))
                for name, parameter in model.named_parameters()
                if ParameterGroup.of(name) is ParameterGroup.MATRIX
                for num_pieces in [next((len(parts) for fused, parts in FUSED_PROJECTIONS.items() if fused in name), 1)]
                for _ in range(num_pieces)
            ]
            of_matrices = groups(({ParameterGroup.MATRIX}, "muon_lr", "matrices", math.sqrt(m)))
            muon = FusedMuon([group | {"shapes": shapes} for group in of_matrices], momentum=spec.momentum)
            return Optimizer(specs, model, (muon, torch.optim.AdamW(groups(*others), betas=spec.betas, fused=True)))


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
    """Muon with Nesterov momentum and decoupled weight decay, for rows that hold many matrices each.

    Updates are those of torch.optim.Muon with adjust_lr_fn="match_rms_adamw", in fp32. That class orthogonalises whole
    parameters, one after the other in bf16: the projections of a fused matrix would share one set of singular vectors,
    and a tiny model would wait for hundreds of tiny kernels. Here every projection is a matrix of its own, and those of
    one shape are orthogonalised together.

    A group's `shapes` are those of the projections in each of its rows, one after the other.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move all matrices."""
        for group in self.param_groups:
            lr, momentum, shapes = group["lr"], group["momentum"], group["shapes"]
            by_shape: dict[
                torch.Size, tuple[list[Tensor], list[Tensor]]
            ] = {}  # matrices and updates, none of them tall
            for row in group["params"]:
                if row not in self.state:
                    self.state[row]["momentum_buffer"] = torch.zeros_like(row)
                average = self.state[row]["momentum_buffer"].lerp_(row.grad, 1 - momentum)
                update = row.grad.lerp(average, momentum)
                row.mul_(1 - lr * group["weight_decay"])
                sizes = [shape.numel() for shape in shapes]
                for shape, matrix, piece in zip(shapes, row.split(sizes), update.split(sizes), strict=True):
                    matrix, piece = matrix.view(shape), piece.view(shape)
                    if shape[0] > shape[1]:
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
