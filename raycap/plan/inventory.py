"""Stored state of each trial of a sweep with its reason, and stale trials that only earlier runs planned."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ValidationError

from raycap.plan.spec_diff import PreviousTrial, changes, shorten_value
from raycap.results import EarlierTrials, PlannedTrial, StopReason, SweepRecord, read_failure
from raycap.storage import (
    FAILURE_FILE,
    RESULT_FILE,
    STACK_FILE,
    TRIALS_FOLDER,
    DamagedError,
    Storage,
    checkpoint_steps,
    failure_path,
    read_stack,
    result_path,
)
from raycap.storage.checksum import verify_checksum
from raycap.storage.sweep_folder import InvalidRecordError, SweepFolder

READERS = 16
"""Files that are read concurrently, because each read from an object store has a latency."""
CAUSE_LENGTH = 120
"""Maximum number of characters shown of a failure's cause."""


class TrialState(StrEnum):
    """State of a trial by its stored files."""

    NEW = "new"
    """No result, failure or checkpoint."""
    RESUMABLE = "resumable"
    """At least one checkpoint."""
    FAILED = "failed before"
    """The last run failed; the next run resumes from a checkpoint if there is one."""
    DAMAGED = "damaged"
    """A result whose checksum does not match."""
    FINISHED = "finished"
    """A result, possibly of another schema version."""


@dataclass(frozen=True)
class InventoryEntry:
    """State of a trial with its reason; `str()` gives both."""

    state: TrialState
    reason: str = ""
    checkpoints: tuple[int, ...] = ()
    """Steps of the checkpoints, ascending; a finished trial may have some until its whole stack is finished."""
    stack: tuple[str, ...] = ()
    """Ids of the trials of the stack in which the trial trained last; empty if it has not begun or began alone."""

    @property
    def steps_done(self) -> int:
        """Steps of the last checkpoint; 0 if there is none or the trial is finished."""
        return 0 if self.state is TrialState.FINISHED else max(self.checkpoints, default=0)

    def __str__(self) -> str:
        separator = " " if self.state in (TrialState.FINISHED, TrialState.RESUMABLE) else ": "
        return f"{self.state}{separator}{self.reason}" if self.reason else self.state


@dataclass(frozen=True)
class StaleTrial:
    """A trial with stored files that an earlier run of the sweep planned and the current spec does not."""

    trial_id: str
    label: str
    finished: bool


@dataclass(frozen=True)
class Inventory:
    """Stored states of the trials of a sweep."""

    states: Mapping[str, InventoryEntry]
    """State of each trial of the sweep, by trial_id."""
    stale: tuple[StaleTrial, ...]

    def to_run(self, trials: Iterable[PlannedTrial], *, only_failed: bool = False) -> list[PlannedTrial]:
        """Return the trials that a run trains: all unfinished ones, or only those whose last run failed."""
        kinds = {TrialState.FAILED} if only_failed else set(TrialState) - {TrialState.FINISHED}
        return [trial for trial in trials if self.states[trial.trial_id].state in kinds]


def inventory(sweep: SweepRecord, storage: Storage) -> Inventory:
    """Return the stored states of a sweep's trials. Verifies the checksum of every result; changes nothing."""
    inside = storage.folders(TRIALS_FOLDER)
    states = {trial.trial_id: InventoryEntry(TrialState.NEW) for trial in sweep.trials}
    begun = [trial for trial in sweep.trials if inside.get(trial.trial_id)]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda trial: _state(trial, inside[trial.trial_id], storage), begun)
        states |= {trial.trial_id: state for trial, state in zip(begun, found, strict=True)}
    folder = SweepFolder(storage, sweep.spec.name)
    before = _previous_trials(folder)
    new = [trial for trial in sweep.trials if states[trial.trial_id].state is TrialState.NEW]
    states |= {trial_id: InventoryEntry(TrialState.NEW, reason) for trial_id, reason in changes(new, before).items()}
    labels = _earlier_labels(folder) | {trial.trial_id: trial.label for trial in before}
    stale = tuple(
        StaleTrial(trial_id, label, RESULT_FILE in inside[trial_id])
        for trial_id, label in labels.items()
        if trial_id not in states and inside.get(trial_id)
    )
    return Inventory(states, stale)


def prepare_folder(sweep: SweepRecord, found: Inventory, storage: Storage) -> None:
    """Prepare the storage for a run: set damaged files aside, record the stale trials, and write sweep.json."""
    for trial_id, entry in found.states.items():
        if entry.state is TrialState.DAMAGED:
            storage.set_aside(result_path(trial_id))
    folder = SweepFolder(storage, sweep.spec.name)
    if folder.exists(SweepFolder.RUN):
        try:
            folder.read_run()
        except InvalidRecordError:
            storage.set_aside(folder.path(SweepFolder.RUN))
    # earlier.json is written first. If the process is killed between the two writes, every stale trial is still listed
    # in earlier.json or in the previous sweep.json.
    earlier = EarlierTrials(labels={trial.trial_id: trial.label for trial in found.stale})
    folder.write(SweepFolder.EARLIER, earlier.model_dump_json(indent=1))
    folder.write_sweep(sweep)


def _state(trial: PlannedTrial, names: list[str], storage: Storage) -> InventoryEntry:
    """Return the state of a trial from the names of its files."""
    steps = tuple(checkpoint_steps(names))
    try:
        if RESULT_FILE in names:
            result = verify_checksum(storage.read(result_path(trial.trial_id)))
            return InventoryEntry(TrialState.FINISHED, _how_early(result), steps, _stack_of(result))
        stack = read_stack(storage, trial.trial_id) if STACK_FILE in names else ()
        if FAILURE_FILE in names:
            cause = read_failure(storage.read(failure_path(trial.trial_id)), trial.trial_id).cause
            return InventoryEntry(TrialState.FAILED, shorten_value(cause, CAUSE_LENGTH), steps, stack)
    except DamagedError:
        return InventoryEntry(TrialState.DAMAGED, "trained again", steps)
    except FileNotFoundError:  # deleted or set aside by a concurrent run after the folder was listed
        stack = ()
    if steps:
        return InventoryEntry(TrialState.RESUMABLE, f"at {100 * steps[-1] // trial.steps} %", steps, stack)
    return InventoryEntry(TrialState.NEW, stack=stack)


def _how_early(result: str) -> str:
    """Return why a trial stopped before its full length. The JSON is searched, because parsing it is 100 times slower."""
    found = re.search(r'"stop_reason":\s*"(\w+)"', result)
    match found and found[1]:
        case None | StopReason.LENGTH:
            return ""
        case StopReason.EARLY:
            return "early"
        case reason:
            return f"early: {reason}"


def _stack_of(result: str) -> tuple[str, ...]:
    """Return the ids of the stack in which a trial trained last, from the JSON of its result."""
    found = re.search(r'"stack":\s*\[([^\]]*)\]', result)
    return tuple(re.findall(r'"(\w+)"', found[1])) if found else ()


class _PreviousSweep(BaseModel):
    """The fields of a previous sweep.json that are needed; others may belong to another schema version."""

    trials: tuple[PreviousTrial, ...]


def _previous_trials(folder: SweepFolder) -> tuple[PreviousTrial, ...]:
    """Return the trials of the previous run; empty if sweep.json does not exist or is not valid."""
    try:
        return _PreviousSweep.model_validate_json(folder.read(SweepFolder.SWEEP)).trials
    except (FileNotFoundError, ValidationError):
        return ()


def _earlier_labels(folder: SweepFolder) -> dict[str, str]:
    """Return the labels of the trials that were stale at the previous run; empty if earlier.json is not valid."""
    try:
        return EarlierTrials.model_validate_json(folder.read(SweepFolder.EARLIER)).labels
    except (FileNotFoundError, ValidationError):
        return {}
