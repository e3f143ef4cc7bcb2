"""Reading of a sweep's results and failures from storage, with checks before anything is computed from them."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from raycap.analysis.measurements import Measured
from raycap.facts.corpus import NAME_SUBJECT
from raycap.results import SCHEMA_VERSION, Failure, Part, PlannedTrial, PopulationFacts, TrialResult, read_failure
from raycap.spec import Kind, RelationStructure, Split, TrialSpec
from raycap.storage import DamagedError, Storage, failure_path, result_path
from raycap.storage.checksum import verify_checksum

MIN_CERTAIN_TEXTS = 100
"""Rows with at least this many expected texts cannot be empty by chance."""


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
                stored.unreadable[trial.trial_id] = f"{error}; delete it to train the trial again"
            else:
                stored.measured[trial.trial_id] = Measured.of(result)
        elif storage.exists(failure_path(trial.trial_id)):
            data = storage.read(failure_path(trial.trial_id))
            stored.failures[trial.trial_id] = read_failure(data, trial.trial_id)
    return stored


class UnreadableResult(ValueError):
    """Raised for a result that cannot be analysed; the message says why."""


def read_result(text: str | bytes) -> TrialResult:
    """Parse and check a stored result.

    Raises:
        UnreadableResult: if the schema version differs, fields or losses are missing, or a number is NaN or infinite.
    """
    try:
        result = TrialResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(map(str, first["loc"]))
        prefix = f"{path}: " if path else ""
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UnreadableResult(f"{_format_version(text)}{prefix}{first['msg'].lower()}{more}") from None
    if result.schema_version != SCHEMA_VERSION:
        raise UnreadableResult(_format_version(text))
    check_complete(result)
    return result


def _format_version(text: str | bytes) -> str:
    """Describe the schema version of a result if it is not the current one, else return "".

    It is read from the raw text because a result of another version usually fails the validation of its fields.
    """
    match = re.search(r'"schema_version"\s*:\s*(\d+)', text if isinstance(text, str) else text.decode(errors="replace"))
    if not match or int(match[1]) == SCHEMA_VERSION:
        return ""
    return f"schema version {match[1]}, but this raycap reads {SCHEMA_VERSION}; "


def check_matches_plan(result: TrialResult, trial: PlannedTrial) -> None:
    """Raise UnreadableResult if a result belongs to another trial than the one whose folder it was read from."""
    if result.trial_id != trial.trial_id:
        raise UnreadableResult(f"trial_id: expected {trial.trial_id}, got {result.trial_id}")
    if result.parameters != trial.parameters:
        raise UnreadableResult(
            f"parameters: expected {trial.parameters.total:,} as planned, got {result.parameters.total:,}"
        )


def check_complete(result: TrialResult) -> None:
    """Raise UnreadableResult if a result lacks evaluations or losses that its spec requires."""
    if not result.evaluations:
        raise UnreadableResult("evaluations: must not be empty")
    if min(result.parameters.total, result.parameters.non_embedding) <= 0:
        raise UnreadableResult(f"parameters: must be positive, got {result.parameters.model_dump()}")
    rows = {row.key: row for row in result.final.losses.rows}
    measured = {*rows, *((kind, subject, part, None, number) for kind, subject, part, _, number in rows)}
    for (kind, subject, part, split, number), num_texts in expected_rows(result.spec, result.populations).items():
        if num_texts >= MIN_CERTAIN_TEXTS and (kind, subject, part, split, number) not in measured:
            name = f"{kind} losses ({part}{f', {split}' if split else ''}) about {subject} of population {number}"
            raise UnreadableResult(f"{name} are missing")
    for kind in result.spec.questions.kinds:
        for number in range(len(result.populations)):
            if not any(row.trained for row in rows.values() if (row.kind, row.population) == (kind, number)):
                raise UnreadableResult(f"losses of trained {kind} texts about population {number} are missing")
    for evaluation in result.evaluations:
        if [row.key for row in evaluation.losses.rows] != list(rows):
            raise UnreadableResult(
                f"step {evaluation.step}: the rows of losses differ from those of the last evaluation"
            )
        for row in evaluation.losses.rows:
            if row.num_evaluated < min(2, row.num_texts):
                count = f"{row.kind} losses about {row.subject}: {row.num_evaluated} of {row.num_texts:,} texts"
                raise UnreadableResult(
                    f"step {evaluation.step}: {count} were evaluated; a standard error needs at least 2"
                )


def expected_rows(
    spec: TrialSpec, populations: tuple[PopulationFacts, ...]
) -> dict[tuple[Kind, str, Part, Split | None, int], float]:
    """Return the expected number of texts of every row of losses that must have been measured.

    The numbers are approximate, because held-out components are drawn at random and a few may select no text. Single
    hops are expected in any split (None). Nothing is expected of longer questions if whole subjects are held out, since
    those are drawn, or if relations are bipartite, since some questions then have no answer.
    """
    expected: dict[tuple[Kind, str, Part, Split | None, int], float] = {}
    fractions = spec.questions.held_out.fractions
    for number, population in enumerate(populations):
        for kind in spec.questions.kinds:
            subjects = [NAME_SUBJECT] if kind.names_are_measured else []
            subjects += [] if kind is Kind.NAME else [*population.attribute_entropies_bits, *population.relations]
            if kind.hops < 2:
                # Every single hop is measured, so its rows must exist however few texts they have.
                expected |= {(kind, subject, Part.ANSWER, None, number): MIN_CERTAIN_TEXTS for subject in subjects}
                continue
            if Split.SECOND_SUBJECTS in fractions or population.structure is RelationStructure.BIPARTITE:
                continue
            num_questions = population.num_profiles * len(population.relations) ** (kind.hops - 1)
            for split in (Split.TRAIN, *fractions):
                # A lower bound: it counts only questions all of whose two-hop parts are in this split and in no other.
                rest = math.prod(1 - share for other, share in fractions.items() if other is not split)
                num_texts = num_questions * (fractions.get(split, 1.0) * rest) ** (kind.hops - 1)
                for part in (Part.CHAIN, Part.ANSWER) if spec.questions.chain_of_thought else (Part.ANSWER,):
                    expected |= {(kind, subject, part, split, number): num_texts for subject in subjects}
    return expected
