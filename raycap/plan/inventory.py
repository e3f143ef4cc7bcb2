"""What is there of every trial of a sweep and why, and what is left of trials that only earlier runs asked for."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum

from pydantic import BaseModel, ValidationError

from raycap.plan.spec_diff import PreviousTrial, changes, shorten_value
from raycap.results import EarlierTrials, PlannedTrial, RunRecord, StopReason, SweepRecord, read_failure
from raycap.storage import DamagedError, Storage, checkpoint_steps, failure_path, result_path
from raycap.storage.checksum import verify_checksum

READERS = 16
"""Files read at once: a result in an object store is waited for."""
CAUSE_LENGTH = 120
"""Characters of a failure's cause that are told."""


class TrialState(StrEnum):
    """What is there of a trial."""

    NEW = "new"
    """Nothing that training could go on from."""
    RESUMABLE = "resumable"
    """Checkpoints."""
    FAILED = "failed before"
    """The cause of its last run's failure; the next one goes on from its checkpoints, if there are any."""
    DAMAGED = "damaged"
    """A result that is not as it was written."""
    FINISHED = "finished"
    """A result, be it of another schema."""


@dataclass(frozen=True)
class InventoryEntry:
    """What is there of a trial, and why or how far; str() is both in a few words."""

    what: TrialState
    reason: str = ""
    steps_done: int = 0
    """Of its last checkpoint; 0 where there is none, or training is over."""

    def __str__(self) -> str:
        between = " " if self.what in (TrialState.FINISHED, TrialState.RESUMABLE) else ": "
        return f"{self.what}{between}{self.reason}" if self.reason else self.what


@dataclass(frozen=True)
class StaleTrial:
    """A trial that an earlier run of the sweep asked for, that the spec does not ask for now, and that left something."""

    trial_id: str
    label: str
    finished: bool


@dataclass(frozen=True)
class Inventory:
    """What the storage holds of a sweep."""

    states: Mapping[str, InventoryEntry]
    """Of every trial of the sweep, by trial_id."""
    stale: tuple[StaleTrial, ...]

    def to_run(self, trials: Iterable[PlannedTrial], *, only_failed: bool = False) -> list[PlannedTrial]:
        """Those of the trials that a run trains: all that are not finished, or those alone whose last run failed."""
        kinds = {TrialState.FAILED} if only_failed else set(TrialState) - {TrialState.FINISHED}
        return [trial for trial in trials if self.states[trial.trial_id].what in kinds]


def inventory(sweep: SweepRecord, storage: Storage) -> Inventory:
    """Look through the storage, read every result and check its seal. Nothing is changed."""
    inside = storage.folders("trials")
    states = {trial.trial_id: InventoryEntry(TrialState.NEW) for trial in sweep.trials}
    begun = [trial for trial in sweep.trials if inside.get(trial.trial_id)]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda trial: _state(trial, inside[trial.trial_id], storage), begun)
        states |= {trial.trial_id: state for trial, state in zip(begun, found, strict=True)}
    before = _previous_trials(sweep, storage)
    new = [trial for trial in sweep.trials if states[trial.trial_id].what is TrialState.NEW]
    states |= {trial_id: InventoryEntry(TrialState.NEW, reason) for trial_id, reason in changes(new, before).items()}
    labels = _earlier_labels(sweep, storage) | {trial.trial_id: trial.label for trial in before}
    stale = tuple(
        StaleTrial(trial_id, label, "result.json" in inside[trial_id])
        for trial_id, label in labels.items()
        if trial_id not in states and inside.get(trial_id)
    )
    return Inventory(states, stale)


def prepare_folder(sweep: SweepRecord, found: Inventory, storage: Storage) -> None:
    """Ready the storage for a run: set aside what is damaged, note the stale trials, write sweep.json."""
    for trial_id, state in found.states.items():
        if state.what is TrialState.DAMAGED:
            storage.set_aside(result_path(trial_id))
    folder = sweep.spec.name
    if storage.exists(f"{folder}/run.json"):
        try:
            RunRecord.model_validate_json(storage.read(f"{folder}/run.json"))
        except ValidationError:
            storage.set_aside(f"{folder}/run.json")
    # In this order: killed in between, every stale trial is still in one of the two.
    earlier = EarlierTrials(labels={trial.trial_id: trial.label for trial in found.stale})
    storage.write(f"{folder}/earlier.json", earlier.model_dump_json(indent=1))
    storage.write(f"{folder}/sweep.json", sweep.model_dump_json(indent=1))


def _state(trial: PlannedTrial, names: list[str], storage: Storage) -> InventoryEntry:
    steps_done = max(checkpoint_steps(names), default=0)
    try:
        if "result.json" in names:
            result = verify_checksum(storage.read(result_path(trial.trial_id)))
            return InventoryEntry(TrialState.FINISHED, _how_early(result))
        if "failure.json" in names:
            cause = read_failure(storage.read(failure_path(trial.trial_id)), trial.trial_id).cause
            return InventoryEntry(TrialState.FAILED, shorten_value(cause, CAUSE_LENGTH), steps_done)
    except DamagedError:
        return InventoryEntry(TrialState.DAMAGED, "trained again")
    except FileNotFoundError:  # a run that goes on meanwhile deletes failures, and sets damaged results aside
        pass
    if steps_done:
        return InventoryEntry(TrialState.RESUMABLE, f"at {100 * steps_done // trial.steps} %", steps_done)
    return InventoryEntry(TrialState.NEW)


def _how_early(result: str) -> str:
    """Why a trial ended before its full length. Found, not parsed: ten thousand results would take a minute."""
    found = re.search(r'"stop_reason":\s*"(\w+)"', result)
    match found and found[1]:
        case None | StopReason.LENGTH:
            return ""
        case StopReason.EARLY:
            return "early"
        case reason:
            return f"early: {reason}"


class _PreviousSweep(BaseModel):
    """What is needed of the sweep.json of a run before, be it of another schema."""

    trials: tuple[PreviousTrial, ...]


def _previous_trials(sweep: SweepRecord, storage: Storage) -> tuple[PreviousTrial, ...]:
    """The trials of the last run; none where there is no sweep.json, or a damaged one."""
    try:
        return _PreviousSweep.model_validate_json(storage.read(f"{sweep.spec.name}/sweep.json")).trials
    except (FileNotFoundError, ValidationError):
        return ()


def _earlier_labels(sweep: SweepRecord, storage: Storage) -> dict[str, str]:
    """Trials that were stale at the last run; none where nothing sound says so."""
    try:
        return EarlierTrials.model_validate_json(storage.read(f"{sweep.spec.name}/earlier.json")).labels
    except (FileNotFoundError, ValidationError):
        return {}
