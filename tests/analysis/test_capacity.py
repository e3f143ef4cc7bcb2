"""Losses become capacities: the ends of the scale, planted values, and monotony."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.analysis.capacity import (
    NAMES,
    TOTAL,
    CapacityEstimate,
    ExclusionReason,
    capacities,
    capacity_table,
    exclusion,
    hop_loss_bits,
)
from raycap.facts.entropy import code_length_bits, name_set_bits
from raycap.losses import LossTable
from raycap.results import Evaluation, ParameterCounts, PopulationFacts
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
from tests.planted import POPULATION, results, sweep, table

EVERYTHING = AnalysisSpec(schemes=tuple(EncodingScheme), selections=tuple(SelectionScheme))


def evaluated(losses: LossTable) -> Evaluation:
    return Evaluation(step=1, exposures=1, tokens=1, learning_rate=1, train_loss_bits=1, train_seconds=1, losses=losses)


def estimates(losses: LossTable) -> dict[tuple, CapacityEstimate]:
    (planned,) = sweep([16]).trials
    parameters = ParameterCounts(embedding=6_000, attention=2_000, mlp=2_000, norms=0, unembedding=0)
    trial = planned.model_copy(update={"populations": (POPULATION,), "parameters": parameters})
    return {(e.kind, e.scheme, e.selection, e.subject): e for e in capacities(trial, evaluated(losses), EVERYTHING)}


@pytest.mark.parametrize("kind", [Kind.ONE_HOP, Kind.TWO_HOP, Kind.THREE_HOP])
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", SelectionScheme)
def test_no_loss_is_the_whole_code_length(kind: Kind, scheme: EncodingScheme, selection: SelectionScheme) -> None:
    total = estimates(table(POPULATION, 0.0, kind))[kind, scheme, selection, TOTAL]
    assert total.learned_bits == pytest.approx(code_length_bits(POPULATION, scheme, selection, kind))
    assert total.dataset_bits == pytest.approx(total.learned_bits)
    assert total.bits_per_param == total.learned_bits / 10_000
    assert total.bits_per_non_embedding_param == total.learned_bits / 4_000


@pytest.mark.parametrize("kind", [Kind.ONE_HOP, Kind.TWO_HOP, Kind.THREE_HOP])
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", [SelectionScheme.SET, SelectionScheme.ENUMERATE])
def test_uniform_answers_are_worth_the_names_alone(
    kind: Kind, scheme: EncodingScheme, selection: SelectionScheme
) -> None:
    found = estimates(table(POPULATION, 1.0, kind))
    assert found[kind, scheme, selection, TOTAL].learned_bits == pytest.approx(name_set_bits(POPULATION, selection))
    for subject in ("employer", "parent"):
        assert found[kind, scheme, selection, subject].learned_bits == pytest.approx(0, abs=1e-6)


@given(st.floats(0, 3), st.floats(0, 3))
def test_more_loss_is_never_more_capacity_and_is_never_clamped(a: float, b: float) -> None:
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


@given(st.floats(0.0, 1.0), st.integers(2, 10_000), st.integers(2, 4))
def test_the_inversion_of_hops_inverts(p: float, num_values: int, hops: int) -> None:
    p = 1 / num_values + p * (1 - 1 / num_values)
    answer = p**hops + (1 - p ** (hops - 1)) / num_values
    loss, slope = hop_loss_bits(-math.log2(answer), math.log2(num_values), hops)
    if answer > 1.05 / num_values:  # near chance the curve is flat, and what p was no answer tells
        assert loss == pytest.approx(-math.log2(p), abs=1e-5)
    if p < 0.999 and answer > 1.2 / num_values:
        step = 1e-5
        nudged, _ = hop_loss_bits(-math.log2(answer) + step, math.log2(num_values), hops)
        assert slope == pytest.approx((nudged - loss) / step, rel=0.02, abs=1e-3)


def test_worse_than_chance_is_charged_for_in_two_hops_too() -> None:
    assert hop_loss_bits(12.0, 10.0, 2) == (12.0, 1.0)


def test_planted_bits_per_parameter_are_read_off() -> None:
    record = sweep([12, 16])
    frame = capacity_table(list(results(record, 1.7).values()), record.spec.analysis)
    totals = frame[(frame["subject"] == TOTAL) & (frame["selection"] == "enumerate") & frame["final"]]
    assert totals["bits_per_param"].tolist() == pytest.approx([1.7, 1.7])
    assert not frame[~frame["final"]].empty


def test_exclusions_have_their_reasons() -> None:
    record = sweep([16])
    (trial,) = record.trials
    optimal, enumerate_ = EncodingScheme.OPTIMAL, SelectionScheme.ENUMERATE
    demanded = trial.demanded_bits_per_param("enumerate")
    names = name_set_bits(trial.populations[0], enumerate_) / trial.parameters.total
    cases = {
        demanded * 0.99: ExclusionReason.DATASET_EXHAUSTED,
        (demanded + names) / 2: None,
        names * 0.99: ExclusionReason.NOTHING_LEARNED,
    }
    for bits_per_param, reason in cases.items():
        (result,) = results(record, bits_per_param).values()
        assert exclusion(result, optimal, enumerate_) is reason


def read(
    losses: LossTable, spec: TrialSpec | None = None, population: PopulationFacts = POPULATION
) -> dict[str, CapacityEstimate]:
    """Estimates by subject, names as a set, each fact once."""
    (planned,) = sweep([16]).trials
    trial = planned.model_copy(update={"populations": (population,), "spec": spec or planned.spec})
    return {e.subject: e for e in capacities(trial, evaluated(losses), AnalysisSpec()) if e.selection == "set"}


def test_a_chain_of_thought_makes_the_answer_a_single_hop() -> None:
    """Given every step before the last, an answer's loss is that of one fact: nothing is to be inverted."""

    def learned(chain_of_thought: bool) -> float:
        questions = QuestionsByShare(hops=(1, 2), chain_of_thought=chain_of_thought)
        spec = sweep([16]).trials[0].spec.model_copy(update={"questions": questions})
        return read(table(POPULATION, 0.5, Kind.TWO_HOP), spec)["parent"].learned_bits

    assert learned(True) == pytest.approx(0.5 * 1000 * math.log2(1000))
    assert learned(False) > learned(True)


def test_measured_names_are_not_inferred() -> None:
    """A-Z's ratio for biographies: N log2 M - N p1 for the names, N (entropy - p2) for each value."""
    rows = table(POPULATION, 0.25).rows
    name = rows[0].model_copy(update={"subject": "name", "sum_bits": 11.0 * 1000, "sum_squares_bits2": 121_000.0})
    losses = LossTable(rows=tuple(row.model_copy(update={"kind": Kind.BIOGRAPHY}) for row in (*rows, name)))
    found = estimates(losses)
    for selection in (SelectionScheme.SET, SelectionScheme.ENUMERATE):
        names = found[Kind.BIOGRAPHY, EncodingScheme.OPTIMAL, selection, NAMES]
        assert names.learned_bits == pytest.approx(1000 * (math.log2(16_000) - 11.0))
        value = found[Kind.BIOGRAPHY, EncodingScheme.OPTIMAL, selection, "employer"]
        assert value.learned_bits == pytest.approx(0.75 * 6.0 * 1000)


def test_facts_that_imply_each_other_are_counted_once() -> None:
    """Bipartite: knowing all parents and children is worth one bijection, and half of a loss costs half of it."""
    paired = POPULATION.model_copy(update={"structure": RelationStructure.BIPARTITE})
    found = read(table(paired, 0.5), population=paired)
    together = found["parent"].dataset_bits + found["child"].dataset_bits
    assert together == pytest.approx(math.lgamma(1001) / math.log(2) - math.lgamma(501) / math.log(2))
    assert found["parent"].learned_bits + found["child"].learned_bits == pytest.approx(together / 2)


def test_memorised_answers_are_charged_for_what_is_trained() -> None:
    """Big hash counts the trained share of the questions, and the losses of those."""
    trained = table(POPULATION, 0.0, Kind.TWO_HOP)
    held_out = table(POPULATION, 1.0, Kind.TWO_HOP).rows
    both = trained + LossTable(rows=tuple(row.model_copy(update={"split": Split.TUPLES}) for row in held_out))
    key = Kind.TWO_HOP, EncodingScheme.TWO_HOP_BIG_HASH, SelectionScheme.SET, TOTAL
    names = name_set_bits(POPULATION, SelectionScheme.SET)
    whole, half = estimates(trained)[key].learned_bits - names, estimates(both)[key].learned_bits - names
    assert half == pytest.approx(whole / 2)


def test_tables_add_up_and_refuse_what_was_not_evaluated() -> None:
    doubled = table(POPULATION, 0.5) + table(POPULATION, 0.5)
    assert doubled.mean_bits == pytest.approx(table(POPULATION, 0.5).mean_bits)
    assert doubled.rows[0].num_evaluated == 2 * doubled.rows[0].num_texts
    with pytest.raises(KeyError, match="no two_hop losses"):
        doubled.select(Kind.TWO_HOP)
