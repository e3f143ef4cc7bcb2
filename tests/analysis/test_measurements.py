"""Tests of losses as arrays: they agree with the tables of each evaluation, however trials are joined."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.analysis.measurements import Losses, Measured, cells
from raycap.analysis.tables import joined_blocks, tables
from raycap.results import Evaluation, LossRow, LossTable, Part
from raycap.spec import AnalysisSpec, Kind, Split, TrialSpec
from tests.support.planted import POPULATION, measured, results, sweep

SUBJECTS = ("birth_date", "employer", "parent", "child")


@st.composite
def rows(draw: st.DrawFn, kind: Kind, subject: str, part: Part, split: Split) -> LossRow:
    """Draw a row that was evaluated in full or on a sample, with a mean and a spread of losses."""
    num_texts = draw(st.integers(3, 1000))
    num_evaluated = draw(st.one_of(st.just(num_texts), st.integers(2, num_texts)))
    mean, spread = draw(st.floats(0, 20)), draw(st.floats(0, 5))
    return LossRow(
        kind=kind,
        subject=subject,
        part=part,
        split=split,
        sum_bits=mean * num_evaluated,
        sum_squares_bits2=(mean**2 + spread**2) * num_evaluated,
        num_evaluated=num_evaluated,
        num_texts=num_texts,
    )


@st.composite
def loss_tables(draw: st.DrawFn) -> LossTable:
    keys = [(Kind.ONE_HOP, subject, Part.ANSWER, Split.TRAIN) for subject in SUBJECTS]
    keys += [(Kind.ONE_HOP, "parent", Part.ANSWER, Split.RELATIONS)]
    keys += [
        (Kind.TWO_HOP, subject, Part.ANSWER, split) for subject in SUBJECTS for split in (Split.TRAIN, Split.TUPLES)
    ]
    keys += [(Kind.TWO_HOP, subject, Part.CHAIN, Split.TRAIN) for subject in SUBJECTS]
    return LossTable(rows=tuple(draw(rows(*key)) for key in keys))


def evaluation(losses: LossTable, step: int = 1) -> Evaluation:
    numbers = dict.fromkeys(("exposures", "learning_rate", "train_loss_bits", "train_seconds", "parameter_norm"), 1.0)
    return Evaluation(step=step, tokens=1, losses=losses, **numbers)


def mean_and_standard_error(table: LossTable) -> tuple[float, float]:
    """Return both. The variance of a mean of n of m texts is s^2 / n (1 - n / m), s^2 the sample variance."""
    total = variance = 0.0
    for row in table.rows:
        n, m = row.num_evaluated, row.num_texts
        mean = row.sum_bits / n
        total += m * mean
        if n < m:
            sample_variance = max(row.sum_squares_bits2 / n - mean**2, 0.0) * n / (n - 1) if n > 1 else math.inf
            variance += m**2 * sample_variance / n * (1 - n / m)
    num_texts = sum(row.num_texts for row in table.rows)
    return total / num_texts, math.sqrt(variance) / num_texts


@settings(max_examples=30, deadline=None)
@given(loss_tables(), loss_tables())
def test_columns_means_and_errors_agree_with_the_tables(one: LossTable, other: LossTable) -> None:
    other = LossTable(rows=tuple(b.model_copy(update={"num_texts": max(a.num_texts, b.num_evaluated)})
                                 for a, b in zip(one.rows, other.rows, strict=True)))  # fmt: skip
    one = LossTable(rows=tuple(a.model_copy(update={"num_texts": b.num_texts})
                               for a, b in zip(one.rows, other.rows, strict=True)))  # fmt: skip
    losses = Losses.of(TrialSpec(), (POPULATION,), [evaluation(one), evaluation(other, 2)])
    for kind in (Kind.ONE_HOP, Kind.TWO_HOP):
        for part, split in ((Part.ANSWER, None), (Part.ANSWER, Split.TUPLES), (Part.CHAIN, None)):
            for subject in (None, "parent"):
                columns = losses.columns(kind, part=part, split=split, subject=subject)
                try:
                    selected = [t.select(kind, part=part, split=split, subject=subject) for t in (one, other)]
                except KeyError:
                    assert columns == []
                    continue
                means, errors = losses.mean_bits(columns), losses.standard_error_bits(columns)
                expected = [mean_and_standard_error(table) for table in selected]
                assert list(zip(means, errors, strict=True)) == [pytest.approx(pair, abs=1e-6) for pair in expected]
                assert [(table.mean_bits, table.standard_error_bits) for table in selected] == [
                    pytest.approx(pair, abs=1e-6) for pair in expected
                ]


def test_tables_keep_the_numbers_of_every_trial() -> None:
    """Trials have different numbers of evaluations and one is missing. Every row belongs to its trial."""
    record = sweep([12, 14, 16, 20], seeds=(0, 1))
    found = {}
    for index, trial in enumerate(record.trials):
        result = results(record, 1.0 + 0.1 * index)[trial.trial_id]
        if index % 2:
            result = result.model_copy(update={"evaluations": result.evaluations[1:]})
        if index != 3:
            found[index] = Measured.of(result)
    frames = tables(record.trials, found, AnalysisSpec())
    (block,) = joined_blocks(found)
    assert len(block[0]) == block[1].num_evaluations == sum(len(one.curve.step) for one in found.values())
    finals = frames.capacities.query("final and subject == 'total' and selection == 'enumerate'")
    assert finals["trial"].tolist() == sorted(found)
    assert finals["bits_per_param"].tolist() == pytest.approx([1.0 + 0.1 * index for index in sorted(found)])
    assert [str(trial_id) for trial_id in finals["trial_id"]] == [record.trials[p].trial_id for p in sorted(found)]
    assert frames.trials["finished"].tolist() == [index in found for index in range(8)]
    steps = {index: rows["step"].tolist() for index, rows in frames.evaluations.groupby("trial")}
    assert steps == {index: [100] if index % 2 else [10, 100] for index in found}


def test_trials_of_one_cell_differ_only_in_their_seeds() -> None:
    record = sweep([12, 14], seeds=(0, 1, 2))
    of_cell = cells(record.trials)
    assert [of_cell[trial.trial_id] for trial in record.trials] == [0, 0, 0, 1, 1, 1]


def test_measured_keeps_all_evaluations() -> None:
    record = sweep([12])
    (result,) = results(record, 1.8).values()
    (one,) = measured({result.trial_id: result}).values()
    assert one.losses.num_evaluations == len(result.evaluations)
    assert np.array_equal(one.curve.step, [e.step for e in result.evaluations])
    assert one.losses.mean_bits(one.losses.columns(Kind.ONE_HOP))[-1] == pytest.approx(
        result.final.losses.select(Kind.ONE_HOP).mean_bits
    )
