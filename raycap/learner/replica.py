"""The state of one trial in training, except its weights: progress, curriculum, evaluations and error."""

import json
import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist

from raycap.learner.curriculum import LOSS_UNIT_BITS, Curriculum, CurriculumState
from raycap.learner.evaluation import DivergedError, losses, samples_of
from raycap.learner.language_model import CPU, LanguageModel
from raycap.learner.provenance import provenance
from raycap.learner.training import Snapshot, diverged_error
from raycap.results import EarlierStack, Evaluation, LossTable, PopulationFacts, StopReason, TrialResult
from raycap.spec import TrialSpec
from raycap.tokens.rows import RowSource
from raycap.tokens.training_data import TrainingData


@dataclass(frozen=True)
class WorkerContext:
    """Rank, world size and device of the worker process."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU


SINGLE_WORKER = WorkerContext()


@dataclass
class ReplicaState:
    """Progress of a trial, as saved in checkpoints. The position in the data is the step (facts/order.py).

    The names of the fields are keys of checkpoints.
    """

    step: int = 0
    train_seconds: float = 0.0
    tokens: int = 0
    loss_sum_units: int = 0
    """Sum of all training losses in LOSS_UNIT_BITS."""
    num_texts: int = 0
    """Number of all training texts."""
    evaluated: list[tuple[int, int]] = field(default_factory=list)
    """loss_sum_units and num_texts at each evaluation. In a trial that an older version has begun, all three count from the
    last evaluation before it was resumed."""
    course: CurriculumState = field(default_factory=CurriculumState)
    ended: bool = False
    """Whether the trial has met a reason to end early; it ends once all trials of its stack have."""
    error: str = ""
    """Message of the error if the trial has diverged. It stays in its stack, whose other trials would otherwise get other
    numbers (docs/clusters.md)."""
    stack: list[str] = field(default_factory=list)
    """Ids of the trials that train together, in order."""
    earlier_stacks: list[tuple[int, list[str]]] = field(default_factory=list)
    """Earlier stacks of the trial: last step and ids."""
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, snapshot: Snapshot) -> None:
        """Add the sums and counts of a snapshot."""
        self.step = snapshot.step
        self.train_seconds += snapshot.seconds
        self.tokens += snapshot.num_tokens
        self.loss_sum_units += snapshot.loss_sum_units
        self.num_texts += snapshot.num_texts


class Replica:
    """One trial in training, alone or in a stack; its weights are in the model of the stack."""

    def __init__(self, spec: TrialSpec, populations: tuple[PopulationFacts, ...], data: TrainingData) -> None:
        self.spec, self.populations, self.data = spec, populations, data
        self.state = ReplicaState()
        self.curriculum = Curriculum(data, self.state.course)
        self.samples = samples_of(data)
        self.base_losses: LossTable | None = None
        """Losses of the frozen model under an adapter."""

    @property
    def error(self) -> DivergedError | None:
        """The error of a trial that has diverged."""
        return DivergedError(self.state.error) if self.state.error else None

    def join(self, trial_ids: list[str]) -> None:
        """Record the stack in which the trial trains from now on."""
        if self.state.stack and self.state.stack != trial_ids:
            self.state.earlier_stacks.append((self.state.step, self.state.stack))
        self.state.stack = trial_ids

    def resume(self, counters: dict[str, Any], evaluations: str) -> None:
        """Restore the state from the counters and the JSON of evaluations of a checkpoint."""
        course = CurriculumState(**counters.pop("course"))
        history = [Evaluation.model_validate(entry) for entry in json.loads(evaluations)]
        self.state = ReplicaState(**counters, course=course, evaluations=history)
        self.curriculum = Curriculum(self.data, course)

    def add(self, snapshot: Snapshot) -> None:
        """Add a snapshot, and record an error at the first snapshot whose losses are not finite."""
        if snapshot.diverged_at is not None and not self.state.error:
            self.state.error = str(diverged_error(snapshot.diverged_at, snapshot.learning_rate))
        self.state.add(snapshot)
        self.curriculum.add(snapshot.step, snapshot.loss_sum_units, snapshot.num_texts)

    def evaluate(
        self, model: LanguageModel, snapshot: Snapshot, source: RowSource, context: WorkerContext
    ) -> Evaluation | None:
        """Evaluate the model and append the evaluation; return None and record an error if losses are not finite."""
        try:
            table = self._losses(model, context)
        except DivergedError as error:
            self.state.error = f"{error} after step {snapshot.step}; lower optimizer.lr"
            return None
        evaluation = Evaluation(
            step=snapshot.step,
            exposures=self.exposures(source, snapshot.step),
            tokens=self.state.tokens,
            learning_rate=snapshot.learning_rate,
            train_loss_bits=self._train_loss_bits,
            train_seconds=self.state.train_seconds,
            phase=self.curriculum.phase(snapshot.step),
            parameter_norm=math.sqrt(sum(float(w.double().square().sum()) for w in model.storage.values())),
            losses=table,
            base_losses=self.base_losses,
        )
        previous = [earlier.without_histograms() for earlier in self.state.evaluations[-1:]]
        self.state.evaluations[-1:] = [*previous, evaluation]  # only the last evaluation keeps histograms
        self.state.evaluated.append((self.state.loss_sum_units, self.state.num_texts))
        return evaluation

    def evaluate_base(self, model: LanguageModel, context: WorkerContext) -> None:
        """Evaluate a model whose adapter has not been trained. Raises DivergedError if losses are not finite."""
        self.base_losses = self._losses(model, context).without_histograms()

    def _losses(self, model: LanguageModel, context: WorkerContext) -> LossTable:
        table, precision = LossTable(rows=()), self.spec.training.precision
        for sample in self.samples:
            table += losses(model, sample, precision=precision, rank=context.rank, world_size=context.world_size)
        return _sum_over_workers(table, context.world_size)

    def exposures(self, source: RowSource, step: int) -> float:
        """Return the mean exposures of a fact before a step of a stream of rows."""
        return self.data.exposures(source.order.num_texts_before(step))

    @property
    def _train_loss_bits(self) -> float:
        """Mean training loss of a text since the last evaluation."""
        units, num_texts = self.state.evaluated[-1] if self.state.evaluated else (0, 0)
        return (self.state.loss_sum_units - units) * LOSS_UNIT_BITS / (self.state.num_texts - num_texts)

    @property
    def _stop_reason(self) -> StopReason:
        if self.state.course.stopped:
            return StopReason.PLATEAU
        early = self.state.ended and self.state.step < self.data.num_steps
        return StopReason.EARLY if early else StopReason.LENGTH

    def result(self, model: LanguageModel, context: WorkerContext, source_commit: str) -> TrialResult:
        """Return the result of the trial with its evaluations and provenance."""
        return TrialResult(
            trial_id=self.spec.trial_id,
            spec=self.spec,
            populations=self.populations,
            parameters=model.count_parameters(),
            vocab_size=self.data.vocab_size,
            num_steps=self.state.step,
            stop_reason=self._stop_reason,
            num_workers=context.world_size,
            evaluations=tuple(self.state.evaluations),
            provenance=provenance(source_commit, context.device).model_copy(
                update={
                    "stack": tuple(self.state.stack),
                    "earlier_stacks": tuple(
                        EarlierStack(until_step=step, trial_ids=tuple(ids)) for step, ids in self.state.earlier_stacks
                    ),
                }
            ),
        )


def _sum_over_workers(table: LossTable, world_size: int) -> LossTable:
    if world_size == 1:
        return table
    parts: list[Any] = [None] * world_size
    dist.all_gather_object(parts, table)
    total: LossTable = sum(parts[1:], start=parts[0])
    return total
