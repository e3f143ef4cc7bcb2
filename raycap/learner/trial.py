"""The whole story of trials, without Ray: population, tokens, model, training, measurements, result.

Several trials of one shape may train together, as replicas in one stack (see model.py). They share the steps and nothing
else: each has its own population, order, weights, rates, losses, checkpoints and result.
"""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer

from raycap.facts.build import populations_of
from raycap.learner import model as llama
from raycap.learner import optim, pretrained
from raycap.learner.checkpoints import Checkpoints
from raycap.learner.evaluation import DivergedError
from raycap.learner.pauses import PauseSchedule
from raycap.learner.replica import SINGLE_WORKER, Replica, WorkerContext
from raycap.learner.signals import PausedError, Signal
from raycap.learner.training import Loss, Snapshot, train
from raycap.results import Evaluation, TrialResult
from raycap.spec import ModelByWidth, Precision, TrialSpec
from raycap.storage import Storage
from raycap.storage.saved_model import DIGEST_FILE, parent_model, sha256_of
from raycap.tokens.composer import Rows
from raycap.tokens.rows import RowSource, rows_of
from raycap.tokens.tokenizers import load_tokenizer, save_tokenizer
from raycap.tokens.training_data import TrainingData

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


@dataclass(frozen=True)
class TrainedTrial:
    """A finished trial in memory."""

    result: TrialResult
    model: llama.Llama
    tokenizer: Tokenizer

    def save_model(self, storage: Storage, folder: str) -> None:
        """Write the model and its tokenizer as transformers loads them, and then their digest."""
        with TemporaryDirectory(prefix="raycap-") as local:
            pretrained.save(self.model, Path(local))
            save_tokenizer(self.tokenizer, Path(local))
            storage.write_folder(folder, Path(local))
            storage.write(f"{folder}/{DIGEST_FILE}", sha256_of(Path(local)))


OpenRows = Callable[[tuple[RowSource, ...], int], Iterator[list[Rows]]]
"""Rows of every replica, step by step, from some step on."""
Report = Callable[[str, Evaluation], None]
"""Called on every worker with the id and evaluation of a trial, when there is one."""


def run_trial(spec: TrialSpec, **options: Any) -> TrainedTrial:
    """run_trials of a single one. Raises DivergedError if its loss stops being finite."""
    (outcome,) = run_trials((spec,), **options)
    if isinstance(outcome, DivergedError):
        raise outcome
    return outcome


def run_trials(
    specs: tuple[TrialSpec, ...],
    *,
    source_commit: str,
    storage: Storage | None = None,
    open_rows: OpenRows = rows_of,
    report: Report = lambda trial_id, evaluation: None,
    checkpoints: Checkpoints | None = None,
    checkpoint_every_s: float = 60.0,
    poll_signal: Callable[[], Signal] = lambda: Signal.CONTINUE,
    context: WorkerContext = SINGLE_WORKER,
    compiled: bool = False,
) -> list[TrainedTrial | DivergedError]:
    """Train and measure resolved trials as replicas of one stack; they go on from their checkpoints if they have any.

    They are saved at evaluations and every `checkpoint_every_s` seconds. `wish` is asked about once a second; on PAUSE they
    are saved and PausedError is raised. Any other error that ends training tells in `after_step` how far they were.

    Several trials may differ only as `plan.replica_groups` allows, and their checkpoints must be of the same step. Those
    whose loss stops being finite end as DivergedError, and the others go on. `storage` is where a fill trial finds its
    parent. With world_size > 1 every worker calls this inside an initialised torch.distributed group. `compiled` has
    torch compile the model: minutes on a CPU, and faster after.
    """
    _keep_freed_memory()
    spec = specs[0]
    assert isinstance(spec.model, ModelByWidth), "run_trials takes resolved trials; use plan.expand"
    assert storage is not None or spec.fill is None, "a fill trial needs the storage of its parent"
    assert len(specs) == 1 or spec.fill is None, "a fill trial trains alone"
    with parent_model(spec.fill, storage) if spec.fill and storage else nullcontext() as parent:
        tokenizer = load_tokenizer(parent) if parent else None
        populations = [populations_of(mine) for mine in specs]
        datasets = [TrainingData.of(mine, about, tokenizer) for mine, about in zip(specs, populations, strict=True)]
        (vocab_size,) = {data.vocab_size for data in datasets}
        if parent:
            model = pretrained.load(spec.model, parent).copy(context.device)
        else:
            generators = tuple(torch.Generator().manual_seed(mine.training.seed) for mine in specs)
            model = llama.build(spec.model, vocab_size, generators=generators, device=context.device)
    replicas = [
        Replica(mine, tuple(profiles.facts for profiles in about), data)
        for mine, about, data in zip(specs, populations, datasets, strict=True)
    ]
    run = _Run(replicas, model, context, report, checkpoints)
    run.resume()
    if compiled:
        model.compile_blocks()
    try:
        run.train(open_rows, PauseSchedule(checkpoint_every_s, poll_signal, context, run.step))
    except Exception as error:
        vars(error)["after_step"] = run.step
        raise
    with run.optimizer.averaged():
        return [
            replica.error
            or TrainedTrial(
                replica.result(model.replica(number), context, source_commit),
                model.replica(number).copy(),
                replica.data.tokenizer,
            )
            for number, replica in enumerate(replicas)
        ]


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for what is allocated next, as each step does again.

    Else it gives large blocks back, and the system clears every page that it hands out anew: 5 % of the time of a stack.
    """
    with suppress(AttributeError, OSError, TypeError):  # other libraries have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class _Run:
    """Trials under way: everything that outlives a pause."""

    def __init__(
        self,
        replicas: list[Replica],
        model: llama.Llama,
        context: WorkerContext,
        report: Report,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.replicas, self.model, self.context = replicas, model, context
        self.report, self.checkpoints = report, checkpoints
        self.training = replicas[0].spec.training
        (self.num_steps,) = {replica.data.num_steps for replica in replicas}
        self.optimizer = optim.build(tuple(replica.spec.training.optimizer for replica in replicas), model)
        fp16 = self.training.precision is Precision.FP16
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=fp16)
        self.step = 0
        self.evaluation_steps = evaluation_steps(self.num_steps, self.training.num_evaluations)

    @property
    def stopped(self) -> bool:
        """Whether a plateau was reached, which only a trial that trains alone has, or an early end wished."""
        return self.replicas[0].state.course.stopped or self.replicas[0].state.ended

    def train(self, open_rows: OpenRows, pauses: PauseSchedule) -> None:
        """Train to the end, or to where it stops; where a phase ends by its loss, the stream is opened anew."""
        first, context = self.replicas[0], self.context
        expected = [
            self.training.batch_size * replica.data.measured_tokens(replica.data.shares()) for replica in self.replicas
        ]
        loss = Loss(expected, first.data.corpus_weights, context.device)
        while self.step < self.num_steps and not self.stopped:
            orders = [replica.data.order(replica.curriculum.mixes) for replica in self.replicas]
            sources = tuple(
                RowSource(replica.data.composers, order, self.num_steps, context.rank, context.world_size)
                for replica, order in zip(self.replicas, orders, strict=True)
            )
            watched = first.curriculum.watched_steps(self.num_steps)
            pauses.expected = {*self.evaluation_steps, *watched, *first.state.course.starts}
            all_snapshots = train(
                self.model,
                self.optimizer,
                self.scaler,
                open_rows(sources, self.step),
                self.training,
                loss,
                start_step=self.step,
                num_steps=self.num_steps,
                pauses_after=pauses.pauses_after,
                world_size=context.world_size,
            )
            for snapshots in all_snapshots:
                self.step = snapshots[0].step
                for replica, snapshot in zip(self.replicas, snapshots, strict=True):
                    replica.add(snapshot)
                next_phase = self.step in watched and first.curriculum.watch(self.step)
                asked = pauses.poll(self.step)
                signal = asked.signal if self.step < self.num_steps else Signal.CONTINUE
                if signal is Signal.STOP:
                    for replica in self.replicas:
                        replica.state.ended = True
                evaluates = self.stopped or self.step in self.evaluation_steps
                if evaluates:
                    self._evaluate(snapshots, sources)
                if evaluates or asked.save or signal is Signal.PAUSE:
                    self._checkpoint()
                    pauses.saved()
                if signal is Signal.PAUSE:
                    raise PausedError(f"paused after step {self.step}")
                if next_phase or self.stopped:
                    break

    @property
    def _sound(self) -> list[tuple[int, Replica]]:
        """The replicas that have not diverged, with their numbers."""
        return [(number, replica) for number, replica in enumerate(self.replicas) if replica.error is None]

    def _evaluate(self, snapshots: tuple[Snapshot, ...], sources: tuple[RowSource, ...]) -> None:
        with self.optimizer.averaged():
            for number, replica in self._sound:
                model = self.model.replica(number)
                evaluation = replica.evaluate(model, snapshots[number], sources[number], self.context)
                if evaluation is not None:
                    self.report(replica.spec.trial_id, evaluation)

    def _checkpoint(self) -> None:
        if self.checkpoints is None or self.context.rank > 0:
            return
        for number, replica in self._sound:
            state = replica.state
            self.checkpoints.save(
                replica.spec.trial_id,
                state.step,
                {
                    "weights": {str(group): weights[number].clone() for group, weights in self.model.storage.items()},
                    "optimizer": self.optimizer.state_of(number),
                    "scaler": self.scaler.state_dict(),
                    "counters": {key: value for key, value in asdict(state).items() if key != "evaluations"},
                    "evaluations": json.dumps([evaluation.model_dump(mode="json") for evaluation in state.evaluations]),
                },
            )

    def resume(self) -> None:
        """Go on from the last step of which there is a sound checkpoint of every trial, if there is one."""
        if self.checkpoints is None:
            return
        trial_ids = [replica.spec.trial_id for replica in self.replicas]
        self.step, states = self.checkpoints.latest(trial_ids, self.context.device)
        if self.context.rank == 0:
            for trial_id in trial_ids:  # what is further would be taken for newer than what is saved from now on
                self.checkpoints.forget_after(trial_id, self.step)
        for number, (replica, saved) in enumerate(zip(self.replicas, states, strict=False)):
            for group, weights in self.model.storage.items():
                weights[number].copy_(saved["weights"][str(group)])
            self.optimizer.load_state_of(number, saved["optimizer"])
            self.scaler.load_state_dict(saved["scaler"])
            replica.resume(saved["counters"], saved["evaluations"])


def evaluation_steps(num_steps: int, num_evaluations: int) -> set[int]:
    """Steps after which to evaluate: each twice the one before, the last at the end."""
    return {max(1, round(num_steps / 2**i)) for i in range(num_evaluations)}
