"""Reading of a sweep's results and failures from storage, with checks before anything is computed from them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from pydantic import ValidationError

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.checks import UnreadableResult, check_matches_plan, check_own
from raycap.analysis.inspected import Inspected
from raycap.analysis.measurements import Measured
from raycap.results import (
    READABLE_VERSIONS,
    Failure,
    PlannedTrial,
    SweepRecord,
    TrialResult,
    describe_invalid,
    read_failure,
)
from raycap.storage import DamagedError, Storage, failure_path, result_path
from raycap.storage.checksum import verify_checksum
from raycap.storage.sweep_folder import InvalidRecordError, SweepFolder


@dataclass(frozen=True)
class Stored:
    """Stored outcomes of a sweep's trials by trial_id. A trial that is in none of these has not finished."""

    measured: dict[str, Measured]
    failures: dict[str, Failure]
    unreadable: dict[str, str]
    """Reasons why stored results cannot be analysed, and what to do about it."""


def read_stored(trials: Iterable[PlannedTrial], storage: Storage) -> Stored:
    """Read the results and failures of some trials.

    Each result is converted to arrays before the next is read, since thousands of results as Pydantic objects would not
    fit into memory.
    """
    stored = Stored({}, {}, {})
    for trial in trials:
        if storage.exists(result_path(trial.trial_id)):
            try:
                result = read_result(verify_checksum(storage.read(result_path(trial.trial_id))))
                check_matches_plan(result, trial)
            except DamagedError as error:
                stored.unreadable[trial.trial_id] = f"{error}; a run sets it aside and trains the trial again"
            except UnreadableResult as error:
                stored.unreadable[trial.trial_id] = f"{error}; {error.remedy}"
            except (IsADirectoryError, PermissionError) as error:
                stored.unreadable[trial.trial_id] = f"{error.strerror or error}; {UnreadableResult.remedy}"
            else:
                stored.measured[trial.trial_id] = Measured.of(result)
        elif storage.exists(failure_path(trial.trial_id)):
            data = storage.read(failure_path(trial.trial_id))
            stored.failures[trial.trial_id] = read_failure(data, trial.trial_id)
    return stored


def analyse_stored(sweep: SweepRecord, storage: Storage) -> Analysis:
    """Analyse a sweep from its stored records. Records that cannot be read are left out and named.

    Raises NotASweepError if the sweep has not run.
    """
    try:
        run = None if sweep.spec.pool else SweepFolder(storage, sweep.spec.name).read_run()
    except InvalidRecordError:  # it holds only the duration of the run, which the report then lacks
        run = None
    stored = read_stored(sweep.trials, storage)
    analysis = analyse(sweep, run, stored.measured, stored.failures, stored.unreadable)
    finished = [trial for trial in sweep.trials if trial.trial_id in stored.measured]
    return replace(analysis, inspected=Inspected.read(finished, storage))


def read_result(text: str | bytes) -> TrialResult:
    """Parse and check a stored result.

    Raises:
        UnreadableResult: if the schema version differs, fields or losses are missing, or a value is not one that the
            trial can have.
    """
    try:
        result = TrialResult.model_validate_json(text)
    except ValidationError as error:
        raise UnreadableResult(f"{_format_version(text)}{describe_invalid(error)}") from None
    if result.schema_version not in READABLE_VERSIONS:
        raise UnreadableResult(
            _format_version(text).removesuffix("; ") or f"schema_version: got {result.schema_version}"
        )
    check_own(result)
    return result


def _format_version(text: str | bytes) -> str:
    """Describe the schema version of a result if it cannot be read, else return "".

    It is read from the raw text because a result of another version usually fails the validation of its fields.
    """
    match = re.search(
        r'"schema_version"\s*:\s*(\d{1,9})\b', text if isinstance(text, str) else text.decode(errors="replace")
    )
    if not match or int(match[1]) in READABLE_VERSIONS:
        return ""
    return f"schema version {match[1]}, but this raycap reads {' and '.join(map(str, READABLE_VERSIONS))}; "
