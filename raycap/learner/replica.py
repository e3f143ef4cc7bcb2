"""One trial under way: all that is its own but its weights, while it trains alone or in a stack with others."""

import importlib.metadata
import json
import math
import platform
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from raycap.learner.curriculum import LOSS_UNIT_BITS, Curriculum, CurriculumState
from raycap.learner.evaluation import DivergedError, Sample, losses
from raycap.learner.model import CPU, Llama, count_parameters
from raycap.learner.training import Snapshot, diverged_error
from raycap.results import Evaluation, LossTable, PopulationFacts, Provenance, StopReason, TrialResult
from raycap.spec import TrialSpec
from raycap.tokens.rows import RowSource
from raycap.tokens.training_data import TrainingData

STORED_VERSIONS = ("torch", "numpy", "tokenizers", "ray", "mlflow")


@dataclass(frozen=True)
class WorkerContext:
    """Where this worker stands among the workers of its trials, and what it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU


SINGLE_WORKER = WorkerContext()


@dataclass
class ReplicaState:
    """How far a trial has come. The data's position is the step: see facts/order.py."""

    step: int = 0
    train_seconds: float = 0.0
    tokens: int = 0
    loss_sum_units: int = 0
    """Since the last evaluation."""
    num_texts: int = 0
    course: CurriculumState = field(default_factory=CurriculumState)
    ended: bool = False
    """Early, because that was wished from outside."""
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, snapshot: Snapshot) -> None:
        """Count what was trained since the pause before."""
        self.step = snapshot.step
        self.train_seconds += snapshot.seconds
        self.tokens += snapshot.num_tokens
        self.loss_sum_units += snapshot.loss_sum_units
        self.num_texts += snapshot.num_texts


class Replica:
    """One trial under way: all that is its own but its weights."""

    def __init__(self, spec: TrialSpec, populations: tuple[PopulationFacts, ...], data: TrainingData) -> None:
        self.spec, self.populations, self.data = spec, populations, data
        self.state = ReplicaState()
        self.curriculum = Curriculum(data, self.state.course)
        self.error: DivergedError | None = None
        training = spec.training
        self.samples = [
            Sample.of(composer, population, size=training.evaluation_sample, seed=training.order_seed)
            for composer, population in zip(data.composers, data.population_of, strict=True)
        ]

    def resume(self, counters: dict[str, Any], evaluations: str) -> None:
        """Go on from a checkpoint."""
        course = CurriculumState(**counters.pop("course"))
        history = [Evaluation.model_validate(entry) for entry in json.loads(evaluations)]
        self.state = ReplicaState(**counters, course=course, evaluations=history)
        self.curriculum = Curriculum(self.data, course)

    def add(self, snapshot: Snapshot) -> None:
        """Count what was trained since the pause before; a trial that has diverged stays where it is."""
        if snapshot.diverged_at is not None and self.error is None:
            self.error = diverged_error(snapshot.diverged_at, snapshot.learning_rate)
        self.state.add(snapshot)
        self.curriculum.add(snapshot.step, snapshot.loss_sum_units, snapshot.num_texts)

    def evaluate(
        self, model: Llama, snapshot: Snapshot, source: RowSource, context: WorkerContext
    ) -> Evaluation | None:
        """Measure the whole population; None if losses are not finite, which is an error from then on."""
        table, precision = LossTable(rows=()), self.spec.training.precision
        try:
            for sample in self.samples:
                table += losses(model, sample, precision=precision, rank=context.rank, world_size=context.world_size)
        except DivergedError as error:
            self.error = DivergedError(f"{error} after step {snapshot.step}; lower optimizer.lr")
            return None
        evaluation = Evaluation(
            step=snapshot.step,
            exposures=self.data.exposures(source.order.num_asked(snapshot.step)),
            tokens=self.state.tokens,
            learning_rate=snapshot.learning_rate,
            train_loss_bits=self.state.loss_sum_units * LOSS_UNIT_BITS / self.state.num_texts,
            train_seconds=self.state.train_seconds,
            phase=self.curriculum.phase(snapshot.step),
            parameter_norm=math.sqrt(sum(float(w.double().square().sum()) for w in model.storage.values())),
            losses=_over_workers(table, context.world_size),
        )
        before = [earlier.without_histograms() for earlier in self.state.evaluations[-1:]]
        self.state.evaluations[-1:] = [*before, evaluation]
        self.state.loss_sum_units, self.state.num_texts = 0, 0
        return evaluation

    @property
    def _stop_reason(self) -> StopReason:
        if self.state.course.stopped:
            return StopReason.PLATEAU
        return StopReason.EARLY if self.state.ended else StopReason.LENGTH

    def result(self, model: Llama, context: WorkerContext, source_commit: str) -> TrialResult:
        """What the trial leaves behind."""
        return TrialResult(
            trial_id=self.spec.trial_id,
            spec=self.spec,
            populations=self.populations,
            parameters=count_parameters(model),
            vocab_size=self.data.vocab_size,
            num_steps=self.state.step,
            stop_reason=self._stop_reason,
            num_workers=context.world_size,
            evaluations=tuple(self.state.evaluations),
            provenance=_provenance(source_commit, context.device),
        )


def _over_workers(table: LossTable, world_size: int) -> LossTable:
    if world_size == 1:
        return table
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, table)
    return sum(parts[1:], start=parts[0])


def _provenance(source_commit: str, device: torch.device) -> Provenance:
    installed = {distribution.name: distribution.version for distribution in importlib.metadata.distributions()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Provenance(
        git_commit=source_commit,
        versions={"python": platform.python_version()} | {p: installed[p] for p in STORED_VERSIONS if p in installed},
        host=platform.node(),
        device=f"{device.type}: {name}",
    )
