"""Checks of a trial's result before anything is computed from it: against its own spec, and against the plan.

The checksum of a file only shows that the file is as it was written. These checks find values that a trial cannot have:
populations, models and numbers of texts that do not follow from its spec, and losses that no set of texts has.
"""

import math
from itertools import pairwise

from raycap.facts.build import facts_of
from raycap.facts.corpus import NAME_SUBJECT
from raycap.facts.splits import share_without
from raycap.results import (
    HISTOGRAM_EDGES_BITS,
    LossKey,
    LossRow,
    LossTable,
    Part,
    PlannedTrial,
    PopulationFacts,
    TrialResult,
)
from raycap.spec import (
    Biographies,
    Kind,
    LoadedProfiles,
    ModelByWidth,
    RelationStructure,
    ResolvedModel,
    Split,
    TrialSpec,
    UserTexts,
)

MIN_CERTAIN_TEXTS = 100
"""Rows with at least this many expected texts cannot be empty by chance."""
MIN_MEAN_BITS, MAX_MEAN_BITS = -1e-4, 1e9
"""Range of the mean loss of a text. Rounding can make a loss of 0 slightly negative."""
MAX_EXPOSURES = 1e12
TOLERANCE = 1e-6
"""Relative rounding error of sums of losses and of entropies, on any machine."""
ESTIMATED_STEPS = 2
"""A trial whose planned length is an estimate may train for this multiple of it."""


class UnreadableResult(ValueError):
    """Raised for a result that cannot be analysed; the message says why, and `remedy` what to do."""

    remedy = "delete it to train the trial again"


def check_matches_plan(result: TrialResult, trial: PlannedTrial) -> None:
    """Raise UnreadableResult if a result belongs to another trial than the planned one, or the plan is not its own."""
    if result.trial_id != trial.trial_id:
        raise UnreadableResult(f"trial_id: expected {trial.trial_id}, got {result.trial_id}")
    if trial.spec.trial_id != trial.trial_id:
        error = UnreadableResult(f"sweep.json: the spec of trial {trial.trial_id} was changed")
        error.remedy = "run the sweep's spec once more to write sweep.json again"
        raise error
    if len(result.populations) != len(trial.populations):
        raise UnreadableResult(
            f"populations: expected {len(trial.populations)} as planned, got {len(result.populations)}"
        )
    if result.parameters != trial.parameters:
        raise UnreadableResult(
            f"parameters: expected {trial.parameters.total:,} as planned, got {result.parameters.total:,}"
        )
    for number, (found, planned) in enumerate(zip(result.populations, trial.populations, strict=True)):
        _check_population(found, planned, f"populations.{number}", "as planned")
        if planned.observed not in (None, found.observed):
            raise UnreadableResult(f"populations.{number}.observed: differs from the plan")
    most = trial.steps if trial.tokens_exact else ESTIMATED_STEPS * trial.steps
    if result.num_steps > most:
        raise UnreadableResult(f"num_steps: expected at most {most:,} as planned, got {result.num_steps:,}")


def check_own(result: TrialResult) -> None:
    """Raise UnreadableResult if a result contradicts its own spec, lacks losses, or has values that no trial has."""
    _check_spec(result)
    _check_training(result)
    rows = {row.key: row for row in result.final.losses.rows}
    _check_complete(result, rows)
    _check_counts(result, rows)
    for evaluation in reversed(result.evaluations):  # the last one is what the others are compared with
        _check_losses(f"step {evaluation.step}", evaluation.losses, rows)
        if (evaluation.base_losses is None) != (result.spec.adapter is None):
            raise UnreadableResult(
                f"step {evaluation.step}: base_losses: must be those of the frozen model of a trial with an adapter, and "
                "null without one"
            )
        if evaluation.base_losses:
            _check_losses(f"step {evaluation.step}, base", evaluation.base_losses, rows)


def _check_spec(result: TrialResult) -> None:
    """Check that id, populations and parameters follow from the spec."""
    spec = result.spec
    if not isinstance(spec.model, ResolvedModel) or spec.trial_id != result.trial_id:
        raise UnreadableResult(f"spec: is not that of trial {result.trial_id}")
    demanded = [spec.profiles, *([spec.fill.profiles] if spec.fill else [])]
    if len(result.populations) != len(demanded):
        raise UnreadableResult(f"populations: expected {len(demanded)}, got {len(result.populations)}")
    for number, (found, profiles) in enumerate(zip(result.populations, demanded, strict=True)):
        if found.observed is None:
            raise UnreadableResult(f"populations.{number}.observed: is missing")
        if expected := facts_of(profiles):
            # A second population does not use names of the first, so it has up to that many possible names less.
            fewer = result.populations[0].num_profiles if number else 0
            if expected.num_names - fewer <= found.num_names <= expected.num_names:
                expected = expected.model_copy(update={"num_names": found.num_names})
            _check_population(found, expected, f"populations.{number}", "by its spec")
        elif found.num_profiles > found.num_names:
            raise UnreadableResult(
                f"populations.{number}.num_names: must be at least num_profiles {found.num_profiles:,}, "
                f"got {found.num_names:,}"
            )
    parameters = result.parameters
    if min(parameters.total, parameters.non_embedding) <= 0:
        raise UnreadableResult(f"parameters: must be positive, got {parameters.model_dump()}")
    # Embeddings of models of transformers may have another width, and those of positions are counted with them.
    if isinstance(spec.model, ModelByWidth) and parameters.embedding != result.vocab_size * spec.model.hidden_size:
        raise UnreadableResult(
            f"parameters.embedding: expected vocab_size {result.vocab_size:,} x width {spec.model.hidden_size:,}, "
            f"got {parameters.embedding:,}"
        )


def _check_population(found: PopulationFacts, expected: PopulationFacts, field: str, source: str) -> None:
    """Check the numbers of a population, except `observed`; entropies and frequencies may differ by rounding."""
    for name, value in expected:
        got = getattr(found, name)
        if name == "observed":
            continue
        if name in ("attribute_entropies_bits", "relation_entropies_bits"):
            same = list(got) == list(value) and all(math.isclose(got[s], value[s], rel_tol=TOLERANCE) for s in value)
        elif name == "frequencies":
            same = [(each.name, each.num_people) for each in got] == [(each.name, each.num_people) for each in value]
            same &= all(
                math.isclose(a.frequency, b.frequency, rel_tol=TOLERANCE) for a, b in zip(got, value, strict=False)
            )
        else:
            same = got == value
        if not same:
            raise UnreadableResult(f"{field}.{name}: expected {_short(value)} {source}, got {_short(got)}")


def _short(value: object) -> str:
    """Return a value in at most 60 characters. An integer of thousands of digits cannot be printed."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    text = f"{value:,}" if isinstance(value, int) else str(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _check_training(result: TrialResult) -> None:
    """Check that the evaluations are a course of training."""
    evaluations = result.evaluations
    if not evaluations:
        raise UnreadableResult("evaluations: must not be empty")
    if result.final.step != result.num_steps:
        raise UnreadableResult(
            f"num_steps: the last evaluation is at step {result.final.step:,}, got {result.num_steps:,}"
        )
    for index, evaluation in enumerate(evaluations):
        if not 0 < evaluation.exposures <= MAX_EXPOSURES:
            raise UnreadableResult(
                f"evaluations.{index}.exposures: must be positive and at most {MAX_EXPOSURES:g}, "
                f"got {evaluation.exposures:g}"
            )
    for name in ("step", "exposures", "tokens", "train_seconds"):
        for index, (before, after) in enumerate(pairwise(getattr(one, name) for one in evaluations), start=1):
            if after < before:
                raise UnreadableResult(f"evaluations.{index}.{name}: must not decrease, got {after:g} after {before:g}")


def _check_complete(result: TrialResult, rows: dict[LossKey, LossRow]) -> None:
    """Check that no losses are missing that the spec requires."""
    measured = {
        (kind, subject, part, split_or_any, number)
        for kind, subject, part, split, number, _ in rows
        for split_or_any in (split, None)
    }
    for (kind, subject, part, split, number), num_texts in expected_rows(result.spec, result.populations).items():
        if num_texts >= MIN_CERTAIN_TEXTS and (kind, subject, part, split, number) not in measured:
            name = f"{kind} losses ({part}{f', {split}' if split else ''}) about {subject} of population {number}"
            raise UnreadableResult(f"{name} are missing")
    for kind in result.spec.questions.kinds:
        for number in range(len(result.populations)):
            if not any(row.trained for row in rows.values() if (row.kind, row.population) == (kind, number)):
                raise UnreadableResult(f"losses of trained {kind} texts about population {number} are missing")


def _check_counts(result: TrialResult, rows: dict[LossKey, LossRow]) -> None:
    """Check which texts are counted: of kinds and populations of the spec, and no more than the population has."""
    questions = result.spec.questions
    totals: dict[tuple[Kind, str, Part, int], int] = {}
    for key, row in rows.items():
        kind, subject, part, _, number, frequency_class = key
        known = number < len(result.populations) and kind in questions.kinds
        if known and frequency_class >= max(1, len(result.populations[number].frequencies)):
            raise UnreadableResult(
                f"{kind} losses about {subject} of population {number}: frequency_class: there is none with the number "
                f"{frequency_class}"
            )
        if not known or subject not in _subjects(kind, result.populations[number]):
            raise UnreadableResult(f"{kind} losses about {subject} of population {number}: the spec has no such texts")
        group = kind, subject, part, number
        totals[group] = totals.get(group, 0) + row.num_texts
    per_person = questions.per_person if isinstance(questions, Biographies | UserTexts) else 1
    specs = [result.spec.profiles, *([result.spec.fill.profiles] if result.spec.fill else [])]
    for (kind, subject, _, number), total in totals.items():
        population = result.populations[number]
        most = population.num_profiles * len(population.relations) ** max(kind.hops - 1, 0)
        most *= per_person if isinstance(questions, Biographies | UserTexts) else population.num_phrasings
        # Where every person has every relation, every question has an answer and is in exactly one split.
        complete = population.structure is RelationStructure.UNIFORM and not isinstance(specs[number], LoadedProfiles)
        if total > most or (complete and kind is not Kind.BIOGRAPHY and total < most):
            raise UnreadableResult(
                f"{kind} losses about {subject} of population {number}: expected "
                f"{'' if complete else 'at most '}{most:,} texts, got {_short(total)}"
            )


def _check_losses(at: str, losses: LossTable, final: dict[LossKey, LossRow]) -> None:
    """Check that losses are possible, and of the same texts as the final ones. `at` begins the messages of errors."""
    rows = losses.rows
    if [row.key for row in rows] != list(final):
        raise UnreadableResult(f"{at}: the rows of losses differ from those of the last evaluation")
    for row in rows:
        name, last = f"{at}: {row.kind} losses about {row.subject}", final[row.key]
        least = min(2, row.num_texts) if row.kind.hops > 1 else row.num_texts  # a standard error needs two texts
        if not least <= row.num_evaluated <= row.num_texts:
            raise UnreadableResult(
                f"{name}: {row.num_evaluated:,} of {row.num_texts:,} texts were evaluated, expected at least {least:,}"
            )
        if (row.num_texts, row.num_evaluated) != (last.num_texts, last.num_evaluated):
            raise UnreadableResult(f"{name}: the numbers of texts differ from those of the last evaluation")
        if not MIN_MEAN_BITS <= row.mean_bits <= MAX_MEAN_BITS:
            raise UnreadableResult(
                f"{name}: sum_bits: the mean must lie in 0..{MAX_MEAN_BITS:g}, got {row.mean_bits:g}"
            )
        # The mean of squares is at least the square of the mean (Cauchy-Schwarz).
        if row.sum_squares_bits2 < row.mean_bits * row.sum_bits * (1 - TOLERANCE) - TOLERANCE:
            raise UnreadableResult(
                f"{name}: sum_squares_bits2: must be at least {row.mean_bits * row.sum_bits:g}, the square of sum_bits "
                f"over num_evaluated, got {row.sum_squares_bits2:g}"
            )
        if row.sum_squares_bits2 > MAX_MEAN_BITS**2 * row.num_evaluated:
            raise UnreadableResult(f"{name}: sum_squares_bits2: is too large, got {row.sum_squares_bits2:g}")
        if row.histogram and (
            len(row.histogram) != 1 + len(HISTOGRAM_EDGES_BITS) or sum(row.histogram) != row.num_evaluated
        ):
            raise UnreadableResult(
                f"{name}: histogram: expected {1 + len(HISTOGRAM_EDGES_BITS)} bins with {row.num_evaluated:,} texts, "
                f"got {len(row.histogram)} with {_short(sum(row.histogram))}"
            )


def _subjects(kind: Kind, population: PopulationFacts) -> list[str]:
    """Return the subjects of a kind of text, whose losses are measured."""
    subjects = [NAME_SUBJECT] if kind.names_are_measured else []
    return subjects + ([] if kind is Kind.NAME else [*population.attribute_entropies_bits, *population.relations])


def expected_rows(
    spec: TrialSpec, populations: tuple[PopulationFacts, ...]
) -> dict[tuple[Kind, str, Part, Split | None, int], float]:
    """Return the expected number of texts of every row of losses that must have been measured.

    The numbers are approximate, because held-out components are drawn at random and a few may select no text. Single
    hops are expected in any split (None). Nothing is expected of longer questions if whole subjects are held out, since
    those are drawn, or if some people lack facts, since some questions then have no answer.
    """
    expected: dict[tuple[Kind, str, Part, Split | None, int], float] = {}
    fractions = spec.questions.held_out.fractions
    for number, population in enumerate(populations):
        for kind in spec.questions.kinds:
            subjects = _subjects(kind, population)
            if kind.hops < 2:
                # Every single hop is measured, so its rows must exist however few texts they have.
                expected |= {(kind, subject, Part.ANSWER, None, number): MIN_CERTAIN_TEXTS for subject in subjects}
                continue
            subjects_lack_facts = any(population.num_facts(s) < population.num_profiles for s in subjects)
            may_be_empty = subjects_lack_facts or population.structure is RelationStructure.BIPARTITE
            if Split.SECOND_SUBJECTS in fractions or may_be_empty:
                continue
            num_questions = population.num_profiles * len(population.relations) ** (kind.hops - 1)
            for split in (Split.TRAIN, *fractions):
                # A lower bound: it counts only questions all of whose two-hop parts are in this split and in no other.
                rest = math.prod(
                    share_without(other, share) for other, share in fractions.items() if other is not split
                )
                num_texts = num_questions * (fractions.get(split, 1.0) * rest) ** (kind.hops - 1)
                for part in (Part.CHAIN, Part.ANSWER) if spec.questions.chain_of_thought else (Part.ANSWER,):
                    expected |= {(kind, subject, part, split, number): num_texts for subject in subjects}
    return expected
