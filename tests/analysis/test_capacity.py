"""Tests of capacities: extreme losses, synthetic values, monotonicity, chains of thought and standard errors."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.analysis.analyse import analyse
from raycap.analysis.capacity import NAMES, TOTAL, Capacity, capacities
from raycap.analysis.inversion import hop_loss_bits
from raycap.analysis.measurements import Losses
from raycap.facts.entropy import code_length_bits, name_set_bits
from raycap.results import Evaluation, LossTable, Part, PopulationFacts
from raycap.spec import (
    AnalysisSpec,
    EncodingScheme,
    Kind,
    QuestionsByShare,
    RelationStructure,
    SelectionScheme,
    Split,
    TrialSpec,
)
from tests.support.planted import POPULATION, RUN, measured, results, sweep, table

EVERYTHING = AnalysisSpec(schemes=tuple(EncodingScheme), selections=tuple(SelectionScheme))


def evaluated(losses: LossTable) -> Evaluation:
    numbers = dict.fromkeys(("exposures", "learning_rate", "train_loss_bits", "train_seconds", "parameter_norm"), 1.0)
    return Evaluation(step=1, tokens=1, losses=losses, **numbers)


def losses_of(losses: LossTable, spec: TrialSpec | None = None, population: PopulationFacts = POPULATION) -> Losses:
    return Losses.of(spec or TrialSpec(), (population,), [evaluated(losses)])


def estimates(losses: LossTable) -> dict[tuple, Capacity]:
    found = capacities(losses_of(losses), EVERYTHING)
    return {(c.kind, *c.reading, c.subject): c for c in found if not c.incremental}


@pytest.mark.parametrize("kind", [Kind.ONE_HOP, Kind.TWO_HOP, Kind.THREE_HOP])
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", SelectionScheme)
def test_zero_loss_gives_the_whole_code_length(kind: Kind, scheme: EncodingScheme, selection: SelectionScheme) -> None:
    total = estimates(table(POPULATION, 0.0, kind))[kind, scheme, selection, TOTAL]
    assert total.learned_bits == pytest.approx(code_length_bits(POPULATION, scheme, selection, kind))
    assert total.dataset_bits == pytest.approx(total.learned_bits)


@pytest.mark.parametrize("kind", [Kind.ONE_HOP, Kind.TWO_HOP, Kind.THREE_HOP])
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", [SelectionScheme.SET, SelectionScheme.ENUMERATE])
def test_uniform_answers_give_the_bits_of_the_names_alone(
    kind: Kind, scheme: EncodingScheme, selection: SelectionScheme
) -> None:
    found = estimates(table(POPULATION, 1.0, kind))
    assert found[kind, scheme, selection, TOTAL].learned_bits == pytest.approx(name_set_bits(POPULATION, selection))
    for subject in ("employer", "parent"):
        assert found[kind, scheme, selection, subject].learned_bits == pytest.approx(0, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.floats(0, 3), st.floats(0, 3))
def test_learned_bits_decrease_with_the_loss_and_are_not_clamped(a: float, b: float) -> None:
    less, more = sorted((a, b))
    for kind in (Kind.ONE_HOP, Kind.TWO_HOP, Kind.THREE_HOP):
        low, high = estimates(table(POPULATION, more, kind)), estimates(table(POPULATION, less, kind))
        for key, estimate in low.items():
            assert estimate.learned_bits <= high[key].learned_bits + 1e-6
    if more > 1.01:
        assert (
            estimates(table(POPULATION, more))[
                Kind.ONE_HOP, EncodingScheme.OPTIMAL, SelectionScheme.SET, "parent"
            ].learned_bits
            < 0
        )


def test_subjects_and_names_add_up_to_the_total() -> None:
    found = estimates(table(POPULATION, 0.3))
    for scheme in EncodingScheme:
        for selection in SelectionScheme:
            parts = [
                found[Kind.ONE_HOP, scheme, selection, s].learned_bits
                for s in ("birth_date", "employer", "parent", "child", NAMES)
            ]
            assert sum(parts) == pytest.approx(found[Kind.ONE_HOP, scheme, selection, TOTAL].learned_bits)


@settings(deadline=None)
@given(st.floats(0.0, 1.0), st.integers(2, 10_000), st.integers(2, 4))
def test_hop_loss_inverts_the_probability_of_several_hops(p: float, num_values: int, hops: int) -> None:
    p = 1 / num_values + p * (1 - 1 / num_values)
    answer = p**hops + (1 - p ** (hops - 1)) / num_values
    loss = hop_loss_bits(np.array(-math.log2(answer)), math.log2(num_values), hops)
    if answer > 1.05 / num_values:  # near chance the curve is too flat to recover p
        assert loss == pytest.approx(-math.log2(p), abs=1e-5)


def test_two_hop_losses_above_uniform_are_returned_unchanged() -> None:
    assert hop_loss_bits(np.array([12.0]), 10.0, 2) == [12.0]


def test_planted_bits_per_parameter_are_recovered() -> None:
    record = sweep([12, 16])
    analysis = analyse(record, RUN, measured(results(record, 1.7)), {})
    totals = analysis.totals(final=True)
    assert totals["bits_per_param"].tolist() == pytest.approx([1.7, 1.7])
    shares = [p.parameters.non_embedding / p.parameters.total for p in record.trials]
    non_embedding = (totals["bits_per_non_embedding_param"] * shares).tolist()
    assert non_embedding == pytest.approx([1.7, 1.7])
    assert len(analysis.totals()) == 4


def test_trials_near_exhaustion_and_near_the_names_are_excluded_with_a_reason() -> None:
    record = sweep([16])
    (trial,) = record.trials
    demanded = trial.demanded_bits_per_param("enumerate")
    names = name_set_bits(trial.populations[0], SelectionScheme.ENUMERATE) / trial.parameters.total
    cases = {
        demanded * 0.99: {trial.trial_id: "dataset exhausted"},
        (demanded + names) / 2: {},
        names * 0.99: {trial.trial_id: "answers near chance"},
    }
    for bits_per_param, excluded in cases.items():
        assert analyse(record, RUN, measured(results(record, bits_per_param)), {}).law.excluded == excluded


def capacities_by_subject(
    losses: LossTable, spec: TrialSpec | None = None, population: PopulationFacts = POPULATION
) -> dict[str, Capacity]:
    """Capacities by subject under the reading `optimal`, `set`."""
    found = capacities(losses_of(losses, spec, population), AnalysisSpec(selections=(SelectionScheme.SET,)))
    return {c.subject: c for c in found}


def with_chain(answer_lost: float, chain_lost: float) -> LossTable:
    """Losses of two-hop questions with a chain of thought. The chain is a name for every subject."""
    answers, names = table(POPULATION, answer_lost, Kind.TWO_HOP).rows, math.log2(1000)
    chains = tuple(
        row.model_copy(update={"part": Part.CHAIN, "sum_bits": chain_lost * names * row.num_texts}) for row in answers
    )
    return LossTable(rows=answers + chains)


def learned_with_chain(scheme: EncodingScheme, answer_lost: float, chain_lost: float, subject: str = "parent") -> float:
    questions = QuestionsByShare(hops=(1, 2), chain_of_thought=True)
    spec = TrialSpec(questions=questions)
    analysis = AnalysisSpec(schemes=(scheme,), selections=(SelectionScheme.SET,))
    found = capacities(losses_of(with_chain(answer_lost, chain_lost), spec), analysis)
    return {c.subject: float(c.learned_bits[0]) for c in found}[subject]


def test_chain_and_answer_losses_both_enter_under_every_scheme() -> None:
    """With a chain of thought the answer is a single hop, and the chain measures the relations that are followed.

    A relation that is stored once gets the mean of both losses. One that is stored twice gets each its own. Under the big
    hash the losses of chain and answer are added.
    """
    name = math.log2(1000)
    assert learned_with_chain(EncodingScheme.OPTIMAL, 0.5, 0.1) == pytest.approx(0.7 * 1000 * name)
    assert learned_with_chain(EncodingScheme.TWO_HOP_DOUBLE, 0.5, 0.1) == pytest.approx((0.5 + 0.9) * 1000 * name)
    assert learned_with_chain(EncodingScheme.TWO_HOP_BIG_HASH, 0.5, 0.1) == pytest.approx((0.5 + 0.9) * 2000 * name)
    assert learned_with_chain(EncodingScheme.OPTIMAL, 0.5, 0.1, "employer") == pytest.approx(0.5 * 1000 * 6.0)
    assert learned_with_chain(EncodingScheme.OPTIMAL, 0.0, 2.5) < 0


def test_latent_two_hop_losses_are_inverted() -> None:
    """A model that loses half of the entropy over two hops loses less than half of it over one."""
    learned = capacities_by_subject(table(POPULATION, 0.5, Kind.TWO_HOP))["parent"].learned_bits
    assert learned > 0.5 * 1000 * math.log2(1000)


def test_measured_names_are_read_from_their_loss() -> None:
    """Biographies give N log2 M - N p1 for the names and N (entropy - p2) for each value [2404.05405 §3]."""
    rows = table(POPULATION, 0.25).rows
    name = rows[0].model_copy(update={"subject": "name", "sum_bits": 11.0 * 1000, "sum_squares_bits2": 121_000.0})
    losses = LossTable(rows=tuple(row.model_copy(update={"kind": Kind.BIOGRAPHY}) for row in (*rows, name)))
    found = estimates(losses)
    set_bits = name_set_bits(POPULATION, SelectionScheme.SET)
    learned = {
        SelectionScheme.ENUMERATE: 1000 * (math.log2(16_000) - 11.0),
        SelectionScheme.SET: set_bits
        - 1000 * (11.0 - math.log2(1000)),  # all bits of the set at the least possible loss
    }
    for selection, bits in learned.items():
        names = found[Kind.BIOGRAPHY, EncodingScheme.OPTIMAL, selection, NAMES]
        assert names.learned_bits == pytest.approx(bits)
        value = found[Kind.BIOGRAPHY, EncodingScheme.OPTIMAL, selection, "employer"]
        assert value.learned_bits == pytest.approx(0.75 * 6.0 * 1000)


def test_inverse_relations_share_the_bits_of_one_bijection() -> None:
    """Bipartite parents and children together hold one bijection. A model that loses half of the entropy learns half."""
    paired = POPULATION.model_copy(update={"structure": RelationStructure.BIPARTITE})
    found = capacities_by_subject(table(paired, 0.5), population=paired)
    together = found["parent"].dataset_bits + found["child"].dataset_bits
    assert together == pytest.approx(math.lgamma(1001) / math.log(2) - math.lgamma(501) / math.log(2))
    assert found["parent"].learned_bits + found["child"].learned_bits == pytest.approx(together / 2)


def test_the_big_hash_counts_trained_answers_only() -> None:
    """The code length and the losses are those of each subject's trained answers."""
    whole = table(POPULATION, 0.0, Kind.TWO_HOP)
    half = [row.model_copy(update={"num_texts": 1000, "num_evaluated": 1000}) for row in whole.rows]
    held_out = [row.model_copy(update={"split": Split.TUPLES, "sum_bits": 1e4}) for row in half]
    key = Kind.TWO_HOP, EncodingScheme.TWO_HOP_BIG_HASH, SelectionScheme.SET
    for subject in ("parent", "employer"):
        everything, some = (estimates(t)[*key, subject] for t in (whole, LossTable(rows=(*half, *held_out))))
        assert some.learned_bits == some.dataset_bits == pytest.approx(everything.learned_bits / 2)


def test_held_out_relations_count_as_followed_and_held_out_attributes_do_not_count() -> None:
    """No two-hop question needs an attribute that is never asked for, but a relation may still be followed."""
    rows = table(POPULATION, 0.0, Kind.TWO_HOP).rows
    found = estimates(LossTable(rows=tuple(row for row in rows if row.subject not in ("employer", "child"))))
    for scheme, copies in zip(EncodingScheme, (1, 1, 0), strict=True):
        child = found[Kind.TWO_HOP, scheme, SelectionScheme.SET, "child"]
        assert child.learned_bits == child.dataset_bits == pytest.approx(copies * 1000 * math.log2(1000))
        assert found[Kind.TWO_HOP, scheme, SelectionScheme.SET, "employer"].dataset_bits == 0


def test_tables_add_up_and_select_raises_for_kinds_not_evaluated() -> None:
    doubled = table(POPULATION, 0.5) + table(POPULATION, 0.5)
    assert doubled.mean_bits == pytest.approx(table(POPULATION, 0.5).mean_bits)
    assert doubled.rows[0].num_evaluated == 2 * doubled.rows[0].num_texts
    with pytest.raises(KeyError, match="no two_hop losses"):
        doubled.select(Kind.TWO_HOP)


def two_kinds(one_hop_lost: float, two_hop_lost: float) -> LossTable:
    rows = (*table(POPULATION, one_hop_lost).rows, *table(POPULATION, two_hop_lost, Kind.TWO_HOP).rows)
    return LossTable(rows=rows)


@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", SelectionScheme)
def test_incremental_bits_count_the_names_once(scheme: EncodingScheme, selection: SelectionScheme) -> None:
    """The sum is that of the two-hop bits and of the one-hop bits without the names, which are known already."""
    found = list(capacities(losses_of(two_kinds(0.25, 0.75)), AnalysisSpec(schemes=(scheme,), selections=(selection,))))
    totals = {(c.kind, c.incremental): c for c in found if c.subject == TOTAL}
    one, two, both = totals[Kind.ONE_HOP, False], totals[Kind.TWO_HOP, False], totals[Kind.TWO_HOP, True]
    names = name_set_bits(POPULATION, selection)
    assert both.learned_bits == pytest.approx(two.learned_bits + one.learned_bits - names)
    assert both.dataset_bits == pytest.approx(two.dataset_bits + one.dataset_bits - names)
    assert both.baseline_bits == two.baseline_bits == names
    parts = [c.learned_bits for c in found if c.incremental and c.subject != TOTAL]
    assert sum(parts) == pytest.approx(both.learned_bits)


@pytest.mark.parametrize("kind", [Kind.ONE_HOP, Kind.TWO_HOP])
def test_mean_losses_suffice_if_every_subject_loses_the_same_share(kind: Kind) -> None:
    losses = losses_of(table(POPULATION, 0.4, kind))
    each, mean = (
        list(capacities(losses, EVERYTHING.model_copy(update={"per_subject": per_subject})))
        for per_subject in (True, False)
    )
    for one, other in zip(each, mean, strict=True):
        assert one.learned_bits == pytest.approx(other.learned_bits)


def test_one_hop_totals_depend_on_the_mean_loss_only() -> None:
    """Each one-hop question is one fact, so the total does not depend on which facts are lost."""
    rows = table(POPULATION, 0.4).rows
    uneven = [
        row.model_copy(update={"sum_bits": row.sum_bits * factor})
        for row, factor in zip(rows, (0, 1, 2, 0.5), strict=True)
    ]
    losses = losses_of(LossTable(rows=tuple(uneven)))
    each, mean = (
        list(capacities(losses, EVERYTHING.model_copy(update={"per_subject": per_subject})))
        for per_subject in (True, False)
    )
    for one, other in zip(each, mean, strict=True):
        same = one.learned_bits == pytest.approx(other.learned_bits)
        assert same == (one.subject in (TOTAL, NAMES))


def test_standard_errors_of_sampled_losses_add_up_to_that_of_the_total() -> None:
    rows = table(POPULATION, 0.5).rows
    sampled = [
        row.model_copy(
            update={
                "num_evaluated": 100,
                "sum_bits": row.mean_bits * 100,
                "sum_squares_bits2": (row.mean_bits**2 + 4.0) * 100,  # a standard deviation of 2 bits
            }
        )
        for row in rows
    ]
    (total, *_parts) = capacities(
        losses_of(LossTable(rows=tuple(sampled))), AnalysisSpec(selections=(SelectionScheme.SET,))
    )
    each = (
        2.0 * math.sqrt(100 / 99) / 10 * math.sqrt(0.9) * 1000
    )  # error of a sum over 1,000 people, estimated from 100
    assert total.standard_error_bits == pytest.approx(each * 2)  # four subjects
    whole = next(iter(capacities(losses_of(table(POPULATION, 0.5)), AnalysisSpec())))
    assert whole.standard_error_bits == 0


@pytest.mark.parametrize("chained", [False, True])
@pytest.mark.parametrize("per_subject", [True, False])
@pytest.mark.parametrize("scheme", EncodingScheme)
def test_standard_errors_match_the_spread_of_resampled_losses(
    scheme: EncodingScheme, per_subject: bool, chained: bool
) -> None:
    """Losses are redrawn 400 times. The error must account for losses that enter the total more than once."""
    rng = np.random.default_rng(0)
    questions = QuestionsByShare(hops=(2,), chain_of_thought=chained)
    rows = with_chain(0.5, 0.3).rows if chained else table(POPULATION, 0.5, Kind.TWO_HOP).rows
    n, deviation = 200, 1.5
    sampled = tuple(
        row.model_copy(
            update={
                "num_evaluated": n,
                "sum_bits": row.mean_bits * n,
                "sum_squares_bits2": (row.mean_bits**2 + deviation**2) * n,
            }
        )
        for row in rows
    )
    one = losses_of(LossTable(rows=sampled), TrialSpec(questions=questions))
    error = deviation / math.sqrt(n - 1) * np.sqrt(1 - n / np.array([row.num_texts for row in rows]))
    drawn = one[np.zeros(400, int)]
    for column, column_error in enumerate(error):
        drawn = drawn.shifted(column, column_error * rng.standard_normal(400))
    analysis = AnalysisSpec(schemes=(scheme,), selections=(SelectionScheme.SET,), per_subject=per_subject)
    predicted = next(iter(capacities(one, analysis))).standard_error_bits[0]
    spread = next(iter(capacities(drawn, analysis))).learned_bits.std()
    assert predicted == pytest.approx(spread, rel=0.12)
