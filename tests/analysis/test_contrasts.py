"""Tests of the comparison of the values that a grid varies, with planted effects of known size."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from raycap.analysis.analyse import Analysis
from raycap.analysis.answer import answer
from raycap.analysis.axes import axes_of
from raycap.analysis.contrasts import BITS_PER_PARAM, Contrast, Effect, Outcome, contrasts
from raycap.analysis.frames import Results
from raycap.analysis.planted import Truth
from raycap.analysis.question import contrast_section, question_answer
from raycap.analysis.readings import headline
from raycap.analysis.summary import summary
from raycap.results import LossRow, Part
from raycap.spec import AnalysisSpec, Kind, Split, TrialSpec
from tests.support import synthetic

READING = headline(AnalysisSpec())
LOSSES = {True: 1.75, False: 18.25}
"""Planted losses of new combinations in bits, with and without a chain of thought."""
COMBINATIONS = Outcome(Kind.TWO_HOP, Split.TUPLES, 0)
RATES = ("grid.training.optimizer.lr=[0.01,0.02,0.03]", "grid.training.seed=[0,1,2]", "grid.model.hidden_size=[10,14]")
BITS = {0.01: 1.6, 0.02: 2.0, 0.03: 2.0}
"""Planted bits per parameter by learning rate."""


def of_new_combinations(spec: TrialSpec, row: LossRow) -> float | None:
    """The loss of the answer carries all bits of a new combination, and differs between seeds."""
    if row.split is not Split.TUPLES or row.kind.hops < 2:
        return None
    loss = LOSSES[spec.questions.chain_of_thought] + 0.1 * (spec.training.seed - 0.5)
    return loss if row.part is Part.ANSWER else 0.0


@cache
def chain() -> Analysis:
    return synthetic.analysed(synthetic.CHAIN, lambda spec: Truth(READING), mean_bits=of_new_combinations)


@cache
def rates() -> Analysis:
    return synthetic.analysed(RATES, lambda spec: Truth(READING, BITS[spec.training.optimizer.lr], noise=0.02))


def by_value(found: list[Contrast]) -> dict[object, Contrast]:
    return {one.axis.values[one.value]: one for one in found}


def chosen(analysis: Analysis, axis: str, outcome: Outcome = BITS_PER_PARAM) -> dict[object, Contrast]:
    found = by_value([one for one in analysis.contrasts if (one.axis.path, one.outcome) == (axis, outcome)])
    assert found
    return found


def test_losses_of_new_combinations_differ_with_a_chain_of_thought() -> None:
    with_chain, without = (
        chosen(chain(), "questions.chain_of_thought", COMBINATIONS)[value] for value in (True, False)
    )
    assert (with_chain.effect, without.effect) == (Effect.BETTER, Effect.WORSE)
    assert (with_chain.mean, without.mean) == pytest.approx((1.75, 18.25))
    assert without.difference.low <= 16.5 <= without.difference.high
    assert (without.num_settings, without.num_seeds, without.paired) == (2, 2, True)


def test_the_answer_begins_with_what_the_sweep_varied() -> None:
    first, *_ = answer(chain()).split(";")
    for text in ("questions.chain_of_thought", "held-out combinations", "1.75", "18.25"):
        assert text in first
    assert answer(chain()).startswith(question_answer(chain()))
    section = contrast_section(chain())
    assert "<td>18.250</td>" in section
    entries = summary(chain())["contrasts"]
    (entry,) = [e for e in entries if e["split"] == "tuples" and e["value"] is False]
    assert (entry["verdict"], entry["mean"]) == ("worse", pytest.approx(18.25))
    frame = Results(chain()).contrasts
    assert len(frame) == len(entries)
    assert frame["mean"].to_list() == [e["mean"] for e in entries]


def test_a_planted_effect_is_decided_and_equal_values_are_not() -> None:
    found = chosen(rates(), "training.optimizer.lr")
    assert found[0.01].effect is Effect.WORSE
    assert found[0.01].difference.low <= -0.4 <= found[0.01].difference.high
    assert {found[0.02].effect, found[0.03].effect} == {Effect.UNDECIDED}
    assert {value: one.mean for value, one in found.items()} == pytest.approx(BITS, rel=0.03)
    sizes = {one.outcome for one in rates().contrasts if one.axis.path == "model.hidden_size"}
    assert sizes == {BITS_PER_PARAM}


def test_one_seed_gives_no_interval_and_no_verdict() -> None:
    overrides = ("grid.training.seed=[0]", *RATES[:1], *RATES[2:])
    analysis = synthetic.analysed(overrides, lambda spec: Truth(READING, BITS[spec.training.optimizer.lr], noise=0.02))
    for one in analysis.contrasts:
        assert one.effect is Effect.UNDECIDED
        assert one.value == one.best or np.isnan([one.difference.low, one.p_value]).all()
    assert "1 seed" in question_answer(analysis)


def redrawn(analysis: Analysis, bits_per_param: np.ndarray, trials: list[int] | None = None) -> list[Contrast]:
    """Contrasts of learning rates if the trials had other bits per parameter; only some trials if they are given."""
    tables = replace(
        analysis.tables, losses=analysis.tables.losses.iloc[:0], split_losses=analysis.tables.split_losses.iloc[:0]
    )
    totals = analysis.totals(final=True).assign(bits_per_param=bits_per_param)
    totals = totals if trials is None else totals.iloc[trials]
    found = contrasts(axes_of(analysis.sweep), analysis.sweep.trials, tables, totals, analysis.other_settings)
    return [one for one in found if one.axis.path == "training.optimizer.lr"]


def rate_of_trials() -> "pd.Series[float]":
    return rates().tables.trials["learning_rate"]


def test_seeds_that_differ_between_cells_are_not_paired_and_incomplete_settings_are_left_out() -> None:
    noise = np.random.default_rng(0).normal(0, 0.01, len(rate_of_trials()))
    bits = rate_of_trials().map(BITS).to_numpy() + noise
    everything = list(range(len(bits)))
    without_one = redrawn(rates(), bits, everything[1:])
    assert {one.paired for one in without_one} == {False}
    assert {(one.num_settings, one.num_seeds) for one in without_one} == {(2, 2)}
    assert by_value(without_one)[0.01].effect is Effect.WORSE
    width, rate = rates().tables.trials["hidden_size"], rate_of_trials()
    incomplete = np.flatnonzero(~((width == 14) & (rate == 0.03))).tolist()
    assert {one.num_settings for one in redrawn(rates(), bits, incomplete)} == {1}


def test_an_effect_that_changes_its_sign_between_settings_is_undecided() -> None:
    width, rate = rates().tables.trials["hidden_size"], rate_of_trials()
    noise = np.random.default_rng(0).normal(0, 0.001, len(rate))
    bits = np.where(rate == 0.01, np.where(width == 10, 0.5, 2.1), 2.0) + noise
    found = by_value(redrawn(rates(), bits))
    assert found[0.01].p_value < 0.05
    assert (found[0.01].effect, found[0.01].mixed) == (Effect.UNDECIDED, True)


def test_values_are_compared_at_the_best_setting_of_training_of_each() -> None:
    """Depth 1 is better at its best learning rate, and worse on average over learning rates."""
    bits = {(1, 0.01): 2.2, (1, 0.1): 0.8, (2, 0.01): 1.4, (2, 0.1): 2.0}
    overrides = (
        "grid.training.optimizer.lr=[0.01,0.1]",
        "grid.training.seed=[0,1,2]",
        "grid.model.num_layers=[1,2]",
        "grid.model.hidden_size=[20]",
    )

    def truth(spec: TrialSpec) -> Truth:
        return Truth(READING, bits[spec.model.num_layers, spec.training.optimizer.lr], noise=0.02)

    found = chosen(synthetic.analysed(overrides, truth), "model.num_layers")
    assert (found[1].effect, found[2].effect) == (Effect.BETTER, Effect.WORSE)
    assert found[1].mean == pytest.approx(2.2, rel=0.05)
    assert found[2].mean == pytest.approx(2.0, rel=0.05)
    assert found[1].num_settings == 1


@pytest.mark.slow
@pytest.mark.parametrize("true_bits", [{0.01: 2.0, 0.02: 2.0, 0.03: 2.0}, BITS, {0.01: 1.9, 0.02: 2.0, 0.03: 2.05}])
def test_at_most_five_percent_of_sweeps_have_a_wrong_verdict(true_bits: dict[float, float]) -> None:
    """A verdict is wrong if it calls a value worse that is the best, or the best value of several equal ones."""
    rng = np.random.default_rng(0)
    num, wrong, decided, missed = 500, 0, 0, 0
    best = max(true_bits.values())
    for _ in range(num):
        bits = rate_of_trials().map(true_bits).to_numpy() + rng.normal(0, 0.05, len(rate_of_trials()))
        found = by_value(redrawn(rates(), bits))
        worse = [value for value, one in found.items() if one.effect is Effect.WORSE]
        winners = [value for value, one in found.items() if one.effect is Effect.BETTER]
        several = list(true_bits.values()).count(best) > 1
        wrong += any(true_bits[value] == best for value in worse) or (several and bool(winners))
        decided += bool(worse)
        for value, one in found.items():
            truth = true_bits[value] - true_bits[one.axis.values[one.best]]
            missed += one.value != one.best and not one.difference.low <= truth <= one.difference.high
    print(f"{true_bits}: wrong {wrong}, decided {decided}, intervals that miss the truth {missed} of {2 * num}")
    assert wrong / num <= 0.07
