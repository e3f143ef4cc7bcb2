"""Complete trials without Ray: population, tokens, model, training, evaluation, result.

Trials of one shape can train together as replicas of one stack (see model.py). They have the number of steps in common;
each has its own population, order, weights, rates, losses, checkpoints and result.
"""

import ctypes
import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from tokenizers import Tokenizer

from raycap.facts.build import populations_of
from raycap.facts.profiles import Profiles
from raycap.learner import architectures, optim
from raycap.learner.checkpoints import Checkpoints
from raycap.learner.evaluation import DivergedError
from raycap.learner.kept_models import ModelKeeper, save_model
from raycap.learner.language_model import LanguageModel
from raycap.learner.longer import EndsEarly, StableCheckpoints
from raycap.learner.model import Llama
from raycap.learner.pauses import PauseSchedule
from raycap.learner.replica import SINGLE_WORKER, Replica, WorkerContext
from raycap.learner.signals import PausedError, Signal
from raycap.learner.training import Loss, Snapshot, TrainingStep, train
from raycap.results import Evaluation, TrialResult
from raycap.spec import Precision, ResolvedModel, TrialSpec
from raycap.storage import Storage
from raycap.storage.saved_model import parent_model
from raycap.tokens.composer import Rows
from raycap.tokens.rows import RowSource, rows_of
from raycap.tokens.tokenizers import load_tokenizer
from raycap.tokens.training_data import TrainingData

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # from malloc.h


@dataclass(frozen=True)
class TrainedTrial:
    """A finished trial: its result, model and tokenizer."""

    result: TrialResult
    model: LanguageModel
    tokenizer: Tokenizer

    def save_model(self, storage: Storage, folder: str) -> None:
        """Write the model and its tokenizer in the format of transformers, then their digests."""
        save_model(self.model, self.tokenizer, storage, folder)


OpenRows = Callable[[tuple[RowSource, ...], int], Iterator[list[Rows]]]
"""Takes the row source of each replica and a step; yields the rows of each replica for every step from there on."""
Report = Callable[[str, Evaluation], None]
"""Called on every worker with a trial id and an evaluation, after each evaluation of a trial."""


def run_trial(spec: TrialSpec, **options: Any) -> TrainedTrial:
    """Run a single trial with the options of `run_trials`. Raises DivergedError if its loss is not finite."""
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
    ends_early: EndsEarly = lambda trial_id, evaluations: False,
    finished: frozenset[str] = frozenset(),
    checkpoints: Checkpoints | None = None,
    checkpoint_every_s: float = 60.0,
    keeper: ModelKeeper | None = None,
    poll_signal: Callable[[], Signal] = lambda: Signal.CONTINUE,
    on_step: Callable[[int], None] = lambda step: None,
    context: WorkerContext = SINGLE_WORKER,
    compiled: bool = False,
    graphed: bool = False,
) -> list[TrainedTrial | DivergedError]:
    """Train and evaluate resolved trials as replicas of one stack, resuming from their checkpoints if there are any.

    Several trials may differ only as far as `plan.stacks` allows. They resume from the last step of which all of them
    have a checkpoint, or start together. Trials whose loss is not finite are returned as DivergedError, and the others
    continue. With world_size > 1 every worker calls this inside an initialised torch.distributed group.

    Args:
        specs: Resolved specs, as `plan.expand` returns them.
        source_commit: Git commit of the code, stored with the results.
        storage: Storage of the parent model; only a fill trial needs it.
        open_rows: Opens the stream of rows from a step on.
        report: Called after each evaluation of a trial that is not finished.
        ends_early: Early stopping rule. It must be a pure function, so that all workers and all runs take the same
            decision. Training ends at the evaluation after which it has returned true for every trial of the stack.
        finished: Ids of trials that have a result already and train along, because the numbers of the others depend on
            them. They are not reported, and training ends once only they are left.
        checkpoints: Where to save and resume; None trains without checkpoints.
        checkpoint_every_s: Seconds between checkpoints; evaluations are saved as well.
        keeper: Stores models in training; None stores none.
        poll_signal: Called about once per second on rank 0. On PAUSE the trials are saved and PausedError is raised; on
            STOP they are evaluated and finish.
        on_step: Called with the number of completed steps when training starts or resumes, and at each pause.
        context: Rank, world size and device of this worker.
        compiled: Compile the model with torch.compile, which takes minutes on a CPU.
        graphed: Build batches on the device and, on CUDA, run training steps as CUDA graphs. `spec.sweep` lists the specs
            for which this is possible.

    Raises:
        PausedError: After a PAUSE signal.
        DivergedError: The losses of all trials that are not finished are not finite.
    """
    _keep_freed_memory()
    spec = specs[0]
    assert isinstance(spec.model, ResolvedModel), "run_trials takes resolved specs; use plan.expand"
    assert storage is not None or spec.fill is None, "a fill trial needs the storage of its parent"
    assert len(specs) == 1 or spec.fill is None, "a fill trial trains alone"
    with parent_model(spec.fill, storage) if spec.fill and storage else nullcontext() as parent:
        tokenizer = load_tokenizer(parent) if parent else None
        replicas = _replicas(specs, tokenizer)
        (vocab_size,) = {replica.data.vocab_size for replica in replicas}
        if parent:
            model = architectures.load_model(spec.model, parent, min_vocab_size=vocab_size).copy(context.device)
        else:
            seeds, device = tuple(each.training.seed for each in specs), context.device
            model = architectures.build_model(spec.model, vocab_size, spec.adapter, seeds=seeds, device=device)
    if spec.adapter:  # it has no effect yet
        replicas[0].evaluate_base(model, context)
    run = _Run(replicas, model, context, report, ends_early, finished, checkpoints, keeper, graphed=graphed)
    run.resume()
    on_step(run.step)
    if compiled:
        assert isinstance(model, Llama), "only the Llama of raycap is compiled"
        model.compile_blocks()
    run.train(open_rows, PauseSchedule(checkpoint_every_s, poll_signal, context, run.step), on_step)
    with run.optimizer.averaged():
        return [
            replica.error
            or TrainedTrial(
                replica.result(model.replica(index), context, source_commit),
                model.replica(index).copy(),
                replica.data.tokenizer,
            )
            for index, replica in enumerate(replicas)
        ]


def _replicas(specs: tuple[TrialSpec, ...], tokenizer: Tokenizer | None) -> list[Replica]:
    """Return a replica for each trial. Trials with equal populations and texts share the composers of their data.

    Row sources with the same composers and equal orders are equal, so the rows of each step and their prefix tree are
    then computed once for all of these trials.
    """
    built: dict[str, tuple[tuple[Profiles, ...], TrainingData]] = {}
    replicas = []
    for spec in specs:
        texts = spec.model_dump_json(include={"profiles", "questions", "tokenizer", "fill"})
        if texts not in built:
            populations = populations_of(spec)
            built[texts] = populations, TrainingData.of(spec, populations, tokenizer)
        populations, data = built[texts]
        replicas.append(Replica(spec, tuple(profiles.facts for profiles in populations), replace(data, spec=spec)))
    return replicas


def _keep_freed_memory() -> None:
    """Configure glibc to keep freed memory for the next allocation.

    Every step allocates the same large blocks. By default glibc returns them to the system, which clears each page when it
    hands it out again; this took 5 % of the time of a stack.
    """
    with suppress(AttributeError, OSError, TypeError):  # C libraries other than glibc have no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 2**30)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


class _Run:
    """The state of a stack in training: replicas, model, optimizer and step."""

    def __init__(
        self,
        replicas: list[Replica],
        model: LanguageModel,
        context: WorkerContext,
        report: Report,
        ends_early: EndsEarly,
        finished: frozenset[str],
        checkpoints: Checkpoints | None,
        keeper: ModelKeeper | None,
        *,
        graphed: bool,
    ) -> None:
        self.replicas, self.model, self.context = replicas, model, context
        self.report, self.ends_early, self.finished = report, ends_early, finished
        self.checkpoints, self.keeper, self.graphed = checkpoints, keeper, graphed
        self.training = replicas[0].spec.training
        (self.num_steps,) = {replica.data.num_steps for replica in replicas}
        self.optimizer = optim.build_optimizer(
            tuple(replica.spec.training.optimizer for replica in replicas), model, graphed=graphed
        )
        fp16 = self.training.precision is Precision.FP16
        self.scaler = torch.amp.GradScaler(context.device.type, enabled=fp16)
        self.step = 0
        self.kept_steps: list[frozenset[int]] = [frozenset()] * len(replicas)
        """Steps after which the model of each replica is stored, beside those of evaluations."""
        self.evaluation_steps = self.training.evaluation_steps(self.num_steps)
        self.stable = StableCheckpoints.of(checkpoints, replicas, self.num_steps) if checkpoints else None

    @property
    def stopped(self) -> bool:
        """Whether a plateau, the early stopping rule or a STOP signal has ended training.

        Only single trials test for a plateau. The rule must have ended every replica that has not diverged.
        """
        ended = [replica.state.ended for _, replica in self._finite_replicas]
        return self.replicas[0].state.course.stopped or (bool(ended) and all(ended))

    def train(self, open_rows: OpenRows, pauses: PauseSchedule, on_step: Callable[[int], None]) -> None:
        """Train until the last step or an early stop.

        When a phase of the curriculum ends by its loss, the mix changes and the stream of rows is opened again.
        """
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
            if self.keeper:
                self.kept_steps = [
                    self.keeper.steps(replica, source, self.step, self.num_steps)
                    for replica, source in zip(self.replicas, sources, strict=True)
                ]
            pauses.expected = {*self.evaluation_steps, *watched, *first.state.course.starts}.union(*self.kept_steps)
            if self.stable:
                pauses.expected.add(self.stable.num_steps)
            step = TrainingStep(
                self.model,
                self.optimizer,
                self.scaler,
                self.training,
                loss,
                start_step=self.step,
                num_steps=self.num_steps,
                world_size=context.world_size,
            )
            all_snapshots = train(
                step,
                open_rows(sources, self.step),
                start_step=self.step,
                pauses_after=pauses.pauses_after,
                world_size=context.world_size,
                graphed=self.graphed,
            )
            for snapshots in all_snapshots:
                self.step = snapshots[0].step
                on_step(self.step)
                for replica, snapshot in zip(self.replicas, snapshots, strict=True):
                    replica.add(snapshot)
                next_phase = self.step in watched and first.curriculum.watch(self.step)
                self._act_at_pause(snapshots, sources, pauses)
                if next_phase or self.stopped:
                    break

    def _act_at_pause(
        self, snapshots: tuple[Snapshot, ...], sources: tuple[RowSource, ...], pauses: PauseSchedule
    ) -> None:
        """Follow the signal of this pause, and evaluate and save the replicas if it is time. Raises PausedError."""
        actions = pauses.poll(self.step)
        signal = actions.signal if self.step < self.num_steps else Signal.CONTINUE
        if signal is Signal.STOP:
            for replica in self.replicas:
                replica.state.ended = True
        evaluates = self.stopped or self.step in self.evaluation_steps
        if evaluates:
            self._evaluate(snapshots, sources)
        self._check_unfinished()
        self._keep_models(sources, evaluates=evaluates)
        if evaluates or actions.save or signal is Signal.PAUSE:
            self._checkpoint()
            pauses.saved()
        if self.stable and self.context.rank == 0 and not self.stopped:
            self.stable.save_if_due(self.replicas, self._saved_state)
        if signal is Signal.PAUSE:
            raise PausedError(self.step)

    @property
    def _finite_replicas(self) -> list[tuple[int, Replica]]:
        """The replicas that have not diverged, with their indices in the stack."""
        return [(index, replica) for index, replica in enumerate(self.replicas) if replica.error is None]

    def _evaluate(self, snapshots: tuple[Snapshot, ...], sources: tuple[RowSource, ...]) -> None:
        with self.optimizer.averaged():
            for index, replica in self._finite_replicas:
                model = self.model.replica(index)
                evaluation = replica.evaluate(model, snapshots[index], sources[index], self.context)
                if evaluation is None:
                    continue
                trial_id, state = replica.spec.trial_id, replica.state
                if trial_id not in self.finished:
                    self.report(trial_id, evaluation)
                state.ended = state.ended or self.ends_early(trial_id, state.evaluations)

    def _keep_models(self, sources: tuple[RowSource, ...], *, evaluates: bool) -> None:
        """Store the models that are due after this step. Those of the last step are stored with the results.

        They are written before the checkpoint, so a run that resumes after this step does not lack them.
        """
        keeper = self.keeper
        if keeper is None or self.context.rank > 0 or self.stopped or self.step == self.num_steps:
            return
        due = [
            (index, replica)
            for index, replica in self._finite_replicas
            if (evaluates and keeper.at_evaluations) or self.step in self.kept_steps[index]
            if replica.spec.trial_id not in self.finished
        ]
        if due:
            with self.optimizer.averaged():
                for index, replica in due:
                    keeper.keep(replica, sources[index], self.model.replica(index))

    def _check_unfinished(self) -> None:
        """Raise the error of a diverged replica if only finished trials are left to train."""
        errors = [replica.error for replica in self.replicas if replica.spec.trial_id not in self.finished]
        if self.finished and all(errors):
            raise next(filter(None, errors))

    def _checkpoint(self) -> None:
        if self.checkpoints is None or self.context.rank > 0:
            return
        # Diverged replicas are saved too, since the stack resumes as a whole.
        for index, replica in enumerate(self.replicas):
            self.checkpoints.save(replica.spec.trial_id, replica.state.step, self._saved_state(index))
        self.checkpoints.prune([replica.spec.trial_id for replica in self.replicas])

    def _saved_state(self, index: int) -> dict[str, Any]:
        """Return the state of a replica as `_restore` takes it."""
        state = self.replicas[index].state
        return {
            "weights": {str(group): weights[index].clone() for group, weights in self.model.storage.items()},
            "optimizer": self.optimizer.state_of(index),
            "scaler": self.scaler.state_dict(),
            "counters": {key: value for key, value in asdict(state).items() if key != "evaluations"},
            "evaluations": json.dumps([evaluation.model_dump(mode="json") for evaluation in state.evaluations]),
        }

    def resume(self) -> None:
        """Resume from the last step with an undamaged checkpoint of every trial, else continue shorter trials."""
        trial_ids = [replica.spec.trial_id for replica in self.replicas]
        if self.checkpoints is not None:
            self._load(self.checkpoints, trial_ids)
        if self.stable is not None and self.step == 0 and self.keeper is None:  # earlier models would be missing
            self._continue_shorter(self.stable)
        if self.step == self.num_steps or self.stopped:
            return  # only the results are missing
        for replica in self.replicas:
            replica.join(trial_ids)
        if self.checkpoints is not None and self.context.rank == 0:
            self.checkpoints.record_stack(trial_ids)

    def _load(self, checkpoints: Checkpoints, trial_ids: list[str]) -> None:
        self.step, states = checkpoints.latest(trial_ids, self.context.device)
        if self.context.rank == 0:
            # Later checkpoints would count as newer than those saved from now on.
            for trial_id in trial_ids:
                checkpoints.forget_after(trial_id, self.step)
        for index, (replica, saved) in enumerate(zip(self.replicas, states, strict=False)):
            self._restore(index, saved)
            replica.resume(saved["counters"], saved["evaluations"])

    def _restore(self, index: int, saved: dict[str, Any]) -> None:
        """Restore the weights and the optimizer of a replica."""
        for group, weights in self.model.storage.items():
            weights[index].copy_(saved["weights"][str(group)])
        self.optimizer.load_state_of(index, saved["optimizer"])
        self.scaler.load_state_dict(saved["scaler"])

    def _continue_shorter(self, stable: StableCheckpoints) -> None:
        """Continue a stack that differs from this one only in length, if there is one."""
        self.step, states = stable.continue_replicas(
            self.replicas, self.evaluation_steps, self.ends_early, self.context
        )
        for index, (replica, saved) in enumerate(zip(self.replicas, states, strict=False)):
            self._restore(index, saved)
            for evaluation in replica.state.evaluations if replica.spec.trial_id not in self.finished else []:
                self.report(replica.spec.trial_id, evaluation)
