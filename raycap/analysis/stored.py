"""What lies in the storage of a sweep's trials: results, checked before anything is computed from them, and failures."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from raycap.analysis.measurements import Measured
from raycap.results import SCHEMA_VERSION, Failure, PlannedTrial, TrialResult
from raycap.spec import Split
from raycap.storage import Storage, failure_path, result_path


@dataclass(frozen=True)
class Stored:
    """What there is of a sweep, by trial_id; trials that are in none of these have not finished."""

    measured: dict[str, Measured]
    failures: dict[str, Failure]
    unreadable: dict[str, str]
    """Why a result that is there cannot be analysed."""


def read_stored(trials: Iterable[PlannedTrial], storage: Storage) -> Stored:
    """Everything there is, one result after the other: as objects all of them would not fit."""
    stored = Stored({}, {}, {})
    for trial in trials:
        if storage.exists(result_path(trial.trial_id)):
            try:
                result = read_result(storage.read_text(result_path(trial.trial_id)))
            except UnreadableResult as error:
                stored.unreadable[trial.trial_id] = str(error)
            else:
                stored.measured[trial.trial_id] = Measured.of(result)
        elif storage.exists(failure_path(trial.trial_id)):
            failure = Failure.model_validate_json(storage.read_text(failure_path(trial.trial_id)))
            stored.failures[trial.trial_id] = failure
    return stored


class UnreadableResult(ValueError):
    """A result that cannot be analysed; the message says why and what to do."""


def read_result(text: str | bytes) -> TrialResult:
    """A stored result. Raises UnreadableResult for another schema version, missing fields, and numbers that are none."""
    try:
        result = TrialResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UnreadableResult(f"{_told_version(text)}{place}{first['msg'].lower()}{more}") from None
    if result.schema_version != SCHEMA_VERSION:
        raise UnreadableResult(_told_version(text))
    check_whole(result)
    return result


def _told_version(text: str | bytes) -> str:
    """Which schema a result is of, where it is another; a result of another schema usually fails on its fields first."""
    found = re.search(r'"schema_version"\s*:\s*(\d+)', text if isinstance(text, str) else text.decode(errors="replace"))
    if not found or int(found[1]) == SCHEMA_VERSION:
        return ""
    return f"schema version {found[1]}, but this raycap reads {SCHEMA_VERSION}; "


def check_whole(result: TrialResult) -> None:
    """Raise UnreadableResult if a result lacks what its spec says must have been measured."""
    if not result.evaluations:
        raise UnreadableResult("it holds no evaluation")
    if min(result.parameters.total, result.parameters.non_embedding) <= 0:
        raise UnreadableResult(f"parameters: must be counted, got {result.parameters.model_dump()}")
    keys = [row.key for row in result.final.losses.rows]
    trained = {(row.kind, row.population) for row in result.final.losses.rows if row.trained and row.num_evaluated}
    for kind in result.spec.questions.kinds:
        for population in range(len(result.populations)):
            if (kind, population) not in trained:
                raise UnreadableResult(f"losses of trained {kind} texts about population {population} are missing")
    if result.spec.questions.held_out.fractions and all(row.split is Split.TRAIN for row in result.final.losses.rows):
        raise UnreadableResult("questions are held out, but no held-out split was measured")
    for evaluation in result.evaluations:
        if [row.key for row in evaluation.losses.rows] != keys:
            raise UnreadableResult(f"step {evaluation.step}: other losses were measured than at the last evaluation")
