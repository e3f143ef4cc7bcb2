"""Optimizers and learning rate schedules for stacks of replicas (docs/science.md#optimizers).

The learning rate is a function of the step alone. Under muP, with m = width / base width, matrices of attention and MLP
have the learning rate lr / m with AdamW (arXiv 2203.03466, table 8) and lr / sqrt(m) with Muon: entries of Muon's updates
have a fixed root mean square, so the spectral norm of an update grows with sqrt(width), and features change equally at
every width if it stays constant (arXiv 2310.17813). Their weight decay is multiplied by the same factor, which keeps lr
times decay constant. Embeddings, output layer and gains are not rescaled.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from raycap.learner.language_model import LanguageModel, ParameterGroup
from raycap.learner.model import FUSED_PROJECTIONS
from raycap.spec import AdamW, Muon, OptimizerSpec, Schedule, ScheduleFree, UserOptimizer, UserSchedule

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NUM_NEWTON_SCHULZ_STEPS = 5
"""Newton-Schulz coefficients and steps of kellerjordan.github.io/posts/muon, also those of torch.optim.Muon."""
ADAM_RMS = 0.2
"""Root mean square of an AdamW update in units of lr (arXiv 2502.16982, section 2.2)."""
NOT_SAVED = ("params", "lr", "capturable")
"""Entries of torch's parameter groups that no checkpoint determines: lr is set at every step."""


UserFactor = Callable[[int, int], float]
"""Schedule of a module of the user: from a step (from 0) and the number of steps to the fraction of the peak rate."""


class Optimizer:
    """The torch optimizers of a stack of replicas, with their learning rates.

    Their parameters are rows of the model's storage: one tensor holds all weights of one group of one replica. Replicas
    with equal rates share a parameter group and are updated by the same calls.
    """

    def __init__(
        self, specs: tuple[OptimizerSpec, ...], model: LanguageModel, members: tuple[torch.optim.Optimizer, ...]
    ) -> None:
        """Take one spec per replica, which may differ in rates only, and the torch optimizers, `members`.

        Each parameter group of a member has its peak learning rate as `initial_lr`.
        """
        self.specs, self.members, self._model = specs, members, model
        self._user_schedule = load_schedule(specs[0])
        self.gradients = torch.zeros(sum(w.numel() for w in model.storage.values()), device=model.device)
        """Gradients of all weights of all replicas as one flat tensor, which `step` reads and workers all-reduce."""
        parts = self.gradients.split([weights.numel() for weights in model.storage.values()])
        self._gradients = {
            group: part.view_as(weights) for (group, weights), part in zip(model.storage.items(), parts, strict=True)
        }
        # Rows are identified by address: torch's parameter groups hold tensors only.
        group_and_replica = {
            weights[r].data_ptr(): (group, r) for group, weights in model.storage.items() for r in range(len(weights))
        }
        self._replica_of: dict[int, int] = {}
        for row in self._rows():
            group, replica = group_and_replica[row.data_ptr()]
            row.grad, self._replica_of[id(row)] = self._gradients[group][replica], replica

    def _rows(self) -> Iterator[Tensor]:
        for member in self.members:
            for group in member.param_groups:
                yield from group["params"]

    def set_rate(self, step: int, num_steps: int) -> tuple[float, ...]:
        """Set every group's learning rate for `step` (from 0); return the lr of each replica."""
        factor = schedule_factor(self.specs[0], step, num_steps, self._user_schedule)
        for member in self.members:
            for group in member.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(group["initial_lr"] * factor)
                else:
                    group["lr"] = group["initial_lr"] * factor
        return tuple(spec.lr * factor for spec in self.specs)

    def take_gradients(self, objective: Tensor) -> None:
        """Overwrite the gradients with those of the scalar `objective`."""
        groups, parameters = zip(*self._model.grouped_parameters(), strict=True)
        # Experts that no token was routed to have no gradient; it counts as 0.
        computed = torch.autograd.grad(objective, parameters, materialize_grads=True)
        by_group = defaultdict(list)
        for group, gradient in zip(groups, computed, strict=True):
            by_group[group].append(gradient.reshape(self._model.num_replicas, -1))
        for group, gradients in by_group.items():
            torch.cat(gradients, dim=1, out=self._gradients[group])

    def clip_gradients(self, max_norm: float) -> Tensor:
        """Scale the gradient of each replica to at most a norm; return the norms before clipping, (R,)."""
        norms: Tensor = torch.stack([torch.linalg.vector_norm(g, dim=1) for g in self._gradients.values()]).norm(dim=0)
        factors = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradients in self._gradients.values():
            gradients.mul_(factors[:, None])
        return norms

    def step(self) -> None:
        """Update all weights; schedule-free members overwrite the gradients."""
        for member in self.members:
            member.step()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within this context the model has the weights to evaluate and save; it must not be trained.

        For schedule-free optimizers these are the averaged weights. Their own conversion back to training weights rounds,
        so a copy is restored instead and evaluations do not change training.
        """
        if not isinstance(self.specs[0], ScheduleFree):
            yield
            return
        storage = self._model.storage
        training_weights = {group: weights.clone() for group, weights in storage.items()}
        schedule_free: Any = self.members[0]
        schedule_free.eval()
        try:
            yield
        finally:
            schedule_free.train()
            for group, weights in storage.items():
                weights.copy_(training_weights[group])

    def state_of(self, replica: int) -> list[dict[str, Any]]:
        """Return the optimizer state of a replica, one entry per row of weights, in a fixed order."""
        return [
            {
                "row": {
                    key: value.clone() if isinstance(value, Tensor) else value
                    for key, value in member.state[row].items()
                },
                "group": {key: value for key, value in group.items() if key not in NOT_SAVED},
            }
            for member, group, row in self._rows_of(replica)
        ]

    def load_state_of(self, replica: int, state: list[dict[str, Any]]) -> None:
        """Restore a state that was saved under the same spec."""
        for (member, group, row), saved in zip(self._rows_of(replica), state, strict=True):
            member.state[row] = saved["row"]
            group.update({key: value for key, value in saved["group"].items() if key not in NOT_SAVED})

    def _rows_of(self, replica: int) -> Iterator[tuple[torch.optim.Optimizer, dict[str, Any], Tensor]]:
        for member in self.members:
            for group in member.param_groups:
                for row in group["params"]:
                    if self._replica_of[id(row)] == replica:
                        yield member, group, row


def build_optimizer(specs: tuple[OptimizerSpec, ...], model: LanguageModel, *, graphed: bool = False) -> Optimizer:
    """Return the optimizer of a stack, with one spec per replica. The model must already be on its device.

    With `graphed`, learning rates are tensors, so that a CUDA graph of a step reads the rate of each step.
    """
    spec, m = specs[0], model.spec.width_multiplier
    capturable = graphed and model.device.type == "cuda"

    def groups(*parts: tuple[set[ParameterGroup], str, str, float]) -> list[dict[str, Any]]:
        """Return torch parameter groups, one for each distinct pair of peak learning rate and weight decay.

        A part is a set of model groups, the names of its rate and its weight decay in the spec, and the muP factor that
        divides the rate and multiplies the decay.
        """
        rows_by_rates: dict[tuple[float, float], list[Tensor]] = defaultdict(list)
        for kinds, rate, decay, factor in parts:
            for replica, replica_spec in enumerate(specs):
                key = getattr(replica_spec, rate) / factor, getattr(replica_spec.weight_decay, decay) * factor
                rows_by_rates[key] += [weights[replica] for group, weights in model.storage.items() if group in kinds]
        return [
            {
                "params": rows,
                "initial_lr": lr,
                "lr": torch.tensor(lr, device=model.device) if graphed else lr,
                "weight_decay": weight_decay,
            }
            for (lr, weight_decay), rows in rows_by_rates.items()
        ]

    others = (
        ({ParameterGroup.EMBEDDING, ParameterGroup.UNEMBEDDING}, "lr", "embeddings", 1.0),
        ({ParameterGroup.GAIN}, "lr", "gains", 1.0),
    )
    matrices = ({ParameterGroup.MATRIX}, "lr", "matrices", m)
    match spec:
        case AdamW():
            adamw = torch.optim.AdamW(groups(matrices, *others), betas=spec.betas, fused=True, capturable=capturable)
            return Optimizer(specs, model, (adamw,))
        case ScheduleFree():
            import schedulefree  # not at module level: other optimizers do not need it

            # Without its own warm-up: set_rate scales lr by the same factors, and the average is weighted by lr.
            schedule_free = schedulefree.AdamWScheduleFree(groups(matrices, *others), betas=spec.betas)
            schedule_free.train()
            return Optimizer(specs, model, (schedule_free,))
        case UserOptimizer():
            return Optimizer(specs, model, (_user_optimizer(spec, groups(matrices, *others)),))
        case Muon():
            # Shapes of the projections in one row of matrices, in the order of Llama.views; fused ones are split.
            shapes = [
                torch.Size((parameter.shape[1] // num_pieces, parameter.shape[2]))
                for name, parameter in model.named_parameters()
                if ParameterGroup.of(name) is ParameterGroup.MATRIX
                for num_pieces in [next((len(parts) for fused, parts in FUSED_PROJECTIONS.items() if fused in name), 1)]
                for _ in range(num_pieces)
            ]
            matrix_groups = groups(({ParameterGroup.MATRIX}, "muon_lr", "matrices", math.sqrt(m)))
            muon = FusedMuon([group | {"shapes": shapes} for group in matrix_groups], momentum=spec.momentum)
            adamw = torch.optim.AdamW(groups(*others), betas=spec.betas, fused=True, capturable=capturable)
            return Optimizer(specs, model, (muon, adamw))


def _user_optimizer(spec: UserOptimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimizer of a module of the user. Raises ValueError if it is none for these parameter groups."""
    rows = [id(row) for group in groups for row in group["params"]]
    optimizer = spec.load()(groups, **spec.options)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ValueError(
            f"training.optimizer.function: {spec.function} must return a torch.optim.Optimizer, got {type(optimizer)}"
        )
    found = [id(row) for group in optimizer.param_groups for row in group["params"]]
    if found != rows or any("initial_lr" not in group for group in optimizer.param_groups):
        raise ValueError(
            f"training.optimizer.function: {spec.function} must keep the parameter groups that it is given"
        )
    return optimizer


def schedule_factor(spec: OptimizerSpec, step: int, num_steps: int, user_schedule: UserFactor | None = None) -> float:
    """Return the learning rate at `step` (from 0) of num_steps as a fraction of its peak.

    It rises linearly to 1 over warmup_steps, at most half of all steps. Then it falls to 0 at num_steps, linearly or as
    half a cosine, or over the last decay_share of all steps only (wsd), or stays at 1 (constant, schedule-free), or has
    the values of `user_schedule`.

    Raises ValueError if a value of `user_schedule` is negative or not finite.
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
        case UserSchedule(function=function):
            assert user_schedule is not None, "see load_schedule"
            factor = float(user_schedule(step, num_steps))
            if not 0 <= factor < math.inf:
                raise ValueError(
                    f"training.optimizer.schedule: {function} must return finite factors >= 0, got {factor} at step {step}"
                )
            return factor


def load_schedule(spec: OptimizerSpec) -> UserFactor | None:
    """Return the schedule of a module of the user with its options, or None if the spec has a schedule of raycap."""
    schedule = None if isinstance(spec, ScheduleFree) else spec.schedule
    return partial(schedule.load(), **schedule.options) if isinstance(schedule, UserSchedule) else None


class FusedMuon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for rows that hold several matrices each.

    Updates are those of torch.optim.Muon with adjust_lr_fn="match_rms_adamw", in fp32. torch.optim.Muon orthogonalises
    each parameter as one matrix, in bf16 and one after the other. That would mix the projections of a fused parameter, and
    a small model would launch hundreds of small kernels. Here each projection is orthogonalised by itself, and
    projections of equal shape in one batched product.

    The entry `shapes` of a parameter group lists the shapes of the projections in each of its rows, in order.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update all matrices."""
        for group in self.param_groups:
            lr, momentum, shapes = group["lr"], group["momentum"], group["shapes"]
            # Matrices and their updates by shape, tall ones transposed: both are views of the rows.
            by_shape: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = {}
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
                torch._foreach_sub_(matrices, list(step_size * orthogonalized(torch.stack(pieces))))


def orthogonalized(matrices: Tensor) -> Tensor:
    """Return U V^T, approximately, for the singular value decomposition U S V^T of each matrix of (N, r, c), r <= c.

    Quintic Newton-Schulz steps map each singular value s to a s + b s^3 + c s^5. Values that are not tiny relative to the
    Frobenius norm end in about [0.7, 1.2].
    """
    a, b, c = NEWTON_SCHULZ
    x: Tensor = matrices / matrices.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(NUM_NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)  # a x + (b gram + c gram^2) x
    return x
