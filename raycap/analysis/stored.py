"""What lies in the storage of a sweep's trials: results, checked before anything is computed from them, and failures."""

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

SURELY_MEASURED = 100
"""Rows that so many texts are expected of cannot be missing by chance."""


@dataclass(frozen=True)
class Stored:
    """What there is of a sweep, by trial_id; trials that are in none of these have not finished."""

    measured: dict[str, Measured]
    failures: dict[str, Failure]
    unreadable: dict[str, str]
    """Why a result that is there cannot be analysed, and what to do."""


def read_stored(trials: Iterable[PlannedTrial], storage: Storage) -> Stored:
    """Everything there is, one result after the other: as objects all of them would not fit."""
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
    """A result that cannot be analysed; the message says why."""


def read_result(text: str | bytes) -> TrialResult:
    """A stored result. Raises UnreadableResult for another schema version, missing fields, and numbers that are none."""
    try:
        result = TrialResult.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise UnreadableResult(f"{_format_version(text)}{place}{first['msg'].lower()}{more}") from None
    if result.schema_version != SCHEMA_VERSION:
        raise UnreadableResult(_format_version(text))
    check_complete(result)
    return result


def _format_version(text: str | bytes) -> str:
    """Which schema a result is of, where it is another; a result of another schema usually fails on its fields first."""
    found = re.search(r'"schema_version"\s*:\s*(\d+)', text if isinstance(text, str) else text.decode(errors="replace"))
    if not found or int(found[1]) == SCHEMA_VERSION:
        return ""
    return f"schema version {found[1]}, but this raycap reads {SCHEMA_VERSION}; "


def check_matches_plan(result: TrialResult, trial: PlannedTrial) -> None:
    """Raise UnreadableResult if a result is of another trial than the one whose place it lies in."""
    if result.trial_id != trial.trial_id:
        raise UnreadableResult(f"trial_id: it is the result of {result.trial_id}, but lies where {trial.trial_id} does")
    if result.parameters != trial.parameters:
        raise UnreadableResult(
            f"parameters: {result.parameters.total:,} were trained, but the plan counts {trial.parameters.total:,}"
        )


def check_complete(result: TrialResult) -> None:
    """Raise UnreadableResult if a result lacks what its spec says must have been measured."""
    if not result.evaluations:
        raise UnreadableResult("it holds no evaluation")
    if min(result.parameters.total, result.parameters.non_embedding) <= 0:
        raise UnreadableResult(f"parameters: must be counted, got {result.parameters.model_dump()}")
    rows = {row.key: row for row in result.final.losses.rows}
    measured = {*rows, *((kind, subject, part, None, number) for kind, subject, part, _, number in rows)}
    for (kind, subject, part, split, number), num_texts in expected_rows(result.spec, result.populations).items():
        if num_texts >= SURELY_MEASURED and (kind, subject, part, split, number) not in measured:
            told = f"{kind} losses ({part}{f', {split}' if split else ''}) about {subject} of population {number}"
            raise UnreadableResult(f"{told} are missing")
    for kind in result.spec.questions.kinds:
        for number in range(len(result.populations)):
            if not any(row.trained for row in rows.values() if (row.kind, row.population) == (kind, number)):
                raise UnreadableResult(f"losses of trained {kind} texts about population {number} are missing")
    for evaluation in result.evaluations:
        if [row.key for row in evaluation.losses.rows] != list(rows):
            raise UnreadableResult(f"step {evaluation.step}: other losses were measured than at the last evaluation")
        for row in evaluation.losses.rows:
            if row.num_evaluated < min(2, row.num_texts):
                told = f"{row.kind} losses about {row.subject}: {row.num_evaluated} of {row.num_texts:,} texts"
                raise UnreadableResult(f"step {evaluation.step}: {told} were evaluated, which tells no error")


def expected_rows(
    spec: TrialSpec, populations: tuple[PopulationFacts, ...]
) -> dict[tuple[Kind, str, Part, Split | None, int], float]:
    """What must have been measured, and of about how many texts: a few may by chance be in no split of their own.

    Single hops are expected in some split (None). Subjects held out of longer questions are drawn, and bipartite relations
    have no answer for some: of these nothing is expected.
    """
    expected: dict[tuple[Kind, str, Part, Split | None, int], float] = {}
    fractions = spec.questions.held_out.fractions
    for number, population in enumerate(populations):
        for kind in spec.questions.kinds:
            subjects = [NAME_SUBJECT] if kind.names_are_measured else []
            subjects += [] if kind is Kind.NAME else [*population.attribute_entropies_bits, *population.relations]
            if kind.hops < 2:
                everybody = SURELY_MEASURED  # each subject of anybody
                expected |= {(kind, subject, Part.ANSWER, None, number): everybody for subject in subjects}
                continue
            if Split.SECOND_SUBJECTS in fractions or population.structure is RelationStructure.BIPARTITE:
                continue
            whole = population.num_profiles * len(population.relations) ** (kind.hops - 1)
            for split in (Split.TRAIN, *fractions):
                rest = math.prod(1 - share for other, share in fractions.items() if other is not split)
                num_texts = whole * (fractions.get(split, 1.0) * rest) ** (kind.hops - 1)
                for part in (Part.CHAIN, Part.ANSWER) if spec.questions.chain_of_thought else (Part.ANSWER,):
                    expected |= {(kind, subject, part, split, number): num_texts for subject in subjects}
    return expected
