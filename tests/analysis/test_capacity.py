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
from raycap.results import Evaluation, LossTable
from raycap.spec import AnalysisSpec, EncodingScheme, SelectionScheme
from tests.planted import POPULATION, results, sweep, table

EVERYTHING = AnalysisSpec(schemes=tuple(EncodingScheme), selections=tuple(SelectionScheme))


def estimates(losses: LossTable) -> dict[tuple, CapacityEstimate]:
    evaluation = Evaluation(
        step=1, exposures=1, tokens=1, learning_rate=1, train_loss_bits=1, train_seconds=1, losses=losses
    )
    found = capacities("t", POPULATION, 10_000, 4_000, evaluation, EVERYTHING)
    return {(e.hops, e.scheme, e.selection, e.subject): e for e in found}


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", SelectionScheme)
def test_no_loss_is_the_whole_code_length(hops: int, scheme: EncodingScheme, selection: SelectionScheme) -> None:
    total = estimates(table(POPULATION, 0.0, hops))[hops, scheme, selection, TOTAL]
    assert total.learned_bits == pytest.approx(code_length_bits(POPULATION, scheme, selection, hops=hops))
    assert total.dataset_bits == pytest.approx(total.learned_bits)
    assert total.bits_per_param == total.learned_bits / 10_000
    assert total.bits_per_non_embedding_param == total.learned_bits / 4_000


@pytest.mark.parametrize("hops", [1, 2])
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("selection", [SelectionScheme.SET, SelectionScheme.ENUMERATE])
def test_uniform_answers_are_worth_the_names_alone(
    hops: int, scheme: EncodingScheme, selection: SelectionScheme
) -> None:
    found = estimates(table(POPULATION, 1.0, hops))
    assert found[hops, scheme, selection, TOTAL].learned_bits == pytest.approx(name_set_bits(POPULATION, selection))
    for subject in ("employer", "parent"):
        assert found[hops, scheme, selection, subject].learned_bits == pytest.approx(0, abs=1e-6)


@given(st.floats(0, 3), st.floats(0, 3))
def test_more_loss_is_never_more_capacity_and_is_never_clamped(a: float, b: float) -> None:
    less, more = sorted((a, b))
    for hops in (1, 2):
        low, high = estimates(table(POPULATION, more, hops)), estimates(table(POPULATION, less, hops))
        for key, estimate in low.items():
            assert estimate.learned_bits <= high[key].learned_bits + 1e-6
    if more > 1.01:
        assert (
            estimates(table(POPULATION, more))[1, EncodingScheme.OPTIMAL, SelectionScheme.SET, "parent"].learned_bits
            < 0
        )


def test_subjects_and_names_add_up_to_the_total() -> None:
    found = estimates(table(POPULATION, 0.3))
    for scheme in EncodingScheme:
        for selection in SelectionScheme:
            parts = [
                found[1, scheme, selection, s].learned_bits
                for s in ("birth_date", "employer", "parent", "child", NAMES)
            ]
            assert sum(parts) == pytest.approx(found[1, scheme, selection, TOTAL].learned_bits)


@given(st.floats(0.0, 1.0), st.integers(2, 10_000))
def test_the_two_hop_inversion_inverts(p: float, num_values: int) -> None:
    p = 1 / num_values + p * (1 - 1 / num_values)
    p2 = p * p + (1 - p) / num_values
    loss, slope = hop_loss_bits(-math.log2(p2), math.log2(num_values))
    assert loss == pytest.approx(-math.log2(p), abs=1e-6)
    if 1 / num_values + 0.02 < p < 0.999:  # away from chance, where the inversion has a corner
        step = 1e-5
        nudged, _ = hop_loss_bits(-math.log2(p2) + step, math.log2(num_values))
        assert slope == pytest.approx((nudged - loss) / step, rel=0.02, abs=1e-3)


def test_worse_than_chance_is_charged_for_in_two_hops_too() -> None:
    assert hop_loss_bits(12.0, 10.0) == (12.0, 1.0)


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
    names = name_set_bits(trial.population, enumerate_) / trial.parameters.total
    cases = {
        demanded * 0.99: ExclusionReason.DATASET_EXHAUSTED,
        (demanded + names) / 2: None,
        names * 0.99: ExclusionReason.NOTHING_LEARNED,
    }
    for bits_per_param, reason in cases.items():
        (result,) = results(record, bits_per_param).values()
        assert exclusion(result, optimal, enumerate_) is reason


def test_tables_add_up_and_refuse_hops_that_were_not_evaluated() -> None:
    doubled = table(POPULATION, 0.5) + table(POPULATION, 0.5)
    assert doubled.mean_bits(1) == pytest.approx(table(POPULATION, 0.5).mean_bits(1))
    with pytest.raises(KeyError, match="no 2-hop losses"):
        doubled.mean_bits(2)
