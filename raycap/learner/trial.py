"""The whole story of one trial, without Ray: population, tokens, model, training, measurements, result."""

import copy
import importlib.metadata
import json
import math
import platform
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.distributed as dist
from tokenizers import Tokenizer

from raycap.facts.corpora import populations_of
from raycap.learner import model as llama
from raycap.learner import optim
from raycap.learner.curriculum import Course, Curriculum
from raycap.learner.evaluation import DivergedError, Sample, losses
from raycap.learner.material import Material
from raycap.learner.parent import parent_model
from raycap.learner.rows import RowSource
from raycap.learner.tokenizers import load_tokenizer, save_tokenizer
from raycap.learner.tokens import Rows
from raycap.learner.training import Loss, Snapshot, train
from raycap.losses import LossTable
from raycap.results import Evaluation, Provenance, StopReason, TrialResult
from raycap.spec import ModelByWidth, Precision, TrialSpec
from raycap.storage import Storage

STATE_FILE = "state.pt"
STORED_VERSIONS = ("torch", "numpy", "tokenizers", "ray", "mlflow")


CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Where this worker stands among the workers of its trial, and what it computes on."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = CPU


@dataclass(frozen=True)
class TrainedTrial:
    """A finished trial in memory."""

    result: TrialResult
    model: llama.Llama
    tokenizer: Tokenizer

    def save_model(self, storage: Storage, folder: str) -> None:
        """Write the model and its tokenizer as transformers loads them."""
        with TemporaryDirectory(prefix="raycap-") as local:
            llama.save(self.model, Path(local))
            save_tokenizer(self.tokenizer, Path(local))
            storage.write_folder(folder, Path(local))


Report = Callable[[Evaluation | None, Path | None], None]
"""Called at every evaluation and checkpoint, equally often on every worker: the evaluation if there was one, and on rank
0 a folder with the checkpoint, which is deleted when the call returns."""


def run_trial(
    spec: TrialSpec,
    *,
    source_commit: str,
    storage: Storage | None = None,
    open_rows: Callable[[RowSource, int], Iterator[Rows]] = RowSource.rows_from,
    report: Report = lambda evaluation, checkpoint: None,
    resume_from: Path | None = None,
    checkpoint_every: int = 5_000,
    place: Place = Place(),
) -> TrainedTrial:
    """Train and measure one resolved trial; continues from the checkpoint in `resume_from` if there is one.

    `storage` is where a fill trial finds its parent. With world_size > 1 every worker calls this inside an initialised
    torch.distributed group. Raises DivergedError if the loss stops being finite.
    """
    assert isinstance(spec.model, ModelByWidth), "run_trial takes resolved trials; use plan.expand"
    assert storage is not None or spec.fill is None, "a fill trial needs the storage of its parent"
    populations = populations_of(spec)
    with parent_model(spec.fill, storage) if spec.fill and storage else nullcontext() as parent:
        material = Material.of(spec, populations, load_tokenizer(parent) if parent else None)
        if parent:
            model = llama.load(spec.model, parent)
        else:
            weights = torch.Generator().manual_seed(spec.training.seed)
            model = llama.build(spec.model, material.vocab_size, generator=weights)
    run = _Run(material, model.to(place.device), place, report, checkpoint_every)
    if resume_from is not None:
        run.load(resume_from / STATE_FILE)
    run.train(open_rows)

    with run.optimizer.averaged():
        final = copy.deepcopy(model)
    result = TrialResult(
        trial_id=spec.trial_id,
        spec=spec,
        populations=tuple(profiles.facts for profiles in populations),
        parameters=llama.count_parameters(model),
        vocab_size=material.vocab_size,
        num_steps=run.state.step,
        stop_reason=StopReason.PLATEAU if run.state.course.stopped else StopReason.LENGTH,
        num_workers=place.world_size,
        evaluations=tuple(run.state.evaluations),
        provenance=_provenance(source_commit, place.device),
    )
    return TrainedTrial(result, final, material.tokenizer)


@dataclass
class _State:
    """How far a trial has come. The data's position is the step: see facts/order.py."""

    step: int = 0
    train_seconds: float = 0.0
    tokens: int = 0
    loss_sum_bits: float = 0.0
    """Since the last evaluation."""
    num_texts: int = 0
    course: Course = field(default_factory=Course)
    evaluations: list[Evaluation] = field(default_factory=list)

    def add(self, snapshot: Snapshot) -> None:
        """Count what was trained since the pause before."""
        self.step = snapshot.step
        self.train_seconds += snapshot.seconds
        self.tokens += snapshot.num_tokens
        self.loss_sum_bits += snapshot.loss_sum_bits
        self.num_texts += snapshot.num_texts


class _Run:
    """A trial under way: everything that outlives a pause."""

    def __init__(
        self, material: Material, model: llama.Llama, place: Place, report: Report, checkpoint_every: int
    ) -> None:
        self.material, self.model, self.place, self.report = material, model, place, report
        training = material.spec.training
        self.training, self.num_steps = training, material.num_steps
        self.optimizer = optim.build(training.optimizer, model)
        self.scaler = torch.amp.GradScaler(place.device.type, enabled=training.precision is Precision.FP16)
        self.state = _State()
        self.curriculum = Curriculum(material, self.state.course)
        self.evaluation_steps = evaluation_steps(self.num_steps, training.num_evaluations)
        self.checkpoint_steps = self.evaluation_steps | set(range(checkpoint_every, self.num_steps, checkpoint_every))
        self.samples = [
            Sample.of(composer, population, size=training.evaluation_sample, seed=training.order_seed)
            for composer, population in zip(material.composers, material.population_of, strict=True)
        ]

    def train(self, open_rows: Callable[[RowSource, int], Iterator[Rows]]) -> None:
        """Train to the end, or to a plateau; where a phase ends by its loss, the stream is opened anew."""
        expected = self.training.batch_size * self.material.measured_tokens(self.material.shares())
        loss = Loss(expected, self.material.corpus_weights)
        while self.state.step < self.num_steps and not self.state.course.stopped:
            order = self.material.order(self.curriculum.mixes)
            source = RowSource(self.material.composers, order, self.num_steps, self.place.rank, self.place.world_size)
            watched = self.curriculum.watched_steps(self.num_steps)
            snapshots = train(
                self.model,
                self.optimizer,
                self.scaler,
                open_rows(source, self.state.step),
                self.training,
                loss,
                start_step=self.state.step,
                num_steps=self.num_steps,
                pauses={*self.checkpoint_steps, *watched, *self.state.course.starts},
                world_size=self.place.world_size,
            )
            for snapshot in snapshots:
                self.state.add(snapshot)
                self.curriculum.add(snapshot.step, snapshot.loss_sum_bits, snapshot.num_texts)
                next_phase = snapshot.step in watched and self.curriculum.watch(snapshot.step)
                stopped = self.state.course.stopped
                if stopped or snapshot.step in self.checkpoint_steps:
                    evaluate = stopped or snapshot.step in self.evaluation_steps
                    self._pause(self._evaluated(snapshot, source) if evaluate else None)
                if next_phase or stopped:
                    break

    def _evaluated(self, snapshot: Snapshot, source: RowSource) -> Evaluation:
        precision, place = self.training.precision, self.place
        table = LossTable(rows=())
        try:
            with self.optimizer.averaged():
                for sample in self.samples:
                    ranks = {"rank": place.rank, "world_size": place.world_size}
                    table += losses(self.model, sample, precision=precision, **ranks)
                norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in self.model.parameters()))
        except DivergedError as error:
            raise DivergedError(f"{error} after step {snapshot.step}; lower optimizer.lr") from error
        evaluation = Evaluation(
            step=snapshot.step,
            exposures=self.material.exposures(source.order.num_asked(snapshot.step)),
            tokens=self.state.tokens,
            learning_rate=snapshot.learning_rate,
            train_loss_bits=self.state.loss_sum_bits / self.state.num_texts,
            train_seconds=self.state.train_seconds,
            phase=self.curriculum.phase(snapshot.step),
            parameter_norm=norm,
            losses=_over_workers(table, place.world_size),
        )
        before = [earlier.without_histograms() for earlier in self.state.evaluations[-1:]]
        self.state.evaluations[-1:] = [*before, evaluation]
        self.state.loss_sum_bits, self.state.num_texts = 0.0, 0
        return evaluation

    def _pause(self, evaluation: Evaluation | None) -> None:
        if self.place.rank > 0:
            self.report(evaluation, None)
            return
        with TemporaryDirectory(prefix="raycap-") as folder:
            self.save(Path(folder) / STATE_FILE)
            self.report(evaluation, Path(folder))

    def save(self, path: Path) -> None:
        """Write a checkpoint file."""
        counters = {key: value for key, value in asdict(self.state).items() if key != "evaluations"}
        history = json.dumps([evaluation.model_dump(mode="json") for evaluation in self.state.evaluations])
        members: dict[str, Any] = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler}
        states = {name: member.state_dict() for name, member in members.items()}
        torch.save({**states, "counters": counters, "evaluations": history}, path)

    def load(self, path: Path) -> None:
        """Read a checkpoint file."""
        saved = torch.load(path, map_location=self.place.device, weights_only=True)
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])
        evaluations = [Evaluation.model_validate(entry) for entry in json.loads(saved["evaluations"])]
        course = Course(**saved["counters"].pop("course"))
        self.state = _State(**saved["counters"], course=course, evaluations=evaluations)
        self.curriculum = Curriculum(self.material, course)


def evaluation_steps(num_steps: int, num_evaluations: int) -> set[int]:
    """Steps after which to evaluate: each twice the one before, the last at the end."""
    return {max(1, round(num_steps / 2**i)) for i in range(num_evaluations)}


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
