"""Tests of the comparison of two sweeps: differing settings, ratios of laws, and trials at the same coordinates."""

import copy
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.compare import SideBySide, compare_html, comparison_tables, headings, ratio
from raycap.analysis.planted import Truth
from raycap.analysis.readings import headline
from raycap.pipeline import prepare
from raycap.results import SweepRecord
from raycap.spec import AnalysisSpec, EncodingScheme, SelectionScheme
from tests.support import synthetic
from tests.support.planted import RUN, measured, results, sweep


def analysed(record: SweepRecord, bits_per_param: float) -> Analysis:
    return analyse(record, RUN, measured(results(record, bits_per_param)), {})


@cache
def four_widths() -> Analysis:
    return analysed(sweep([12, 14, 16, 20], name="one"), 1.8)


def other_analysis(record: SweepRecord, **changes: object) -> SweepRecord:
    spec = record.spec.model_copy(update={"name": "other", "analysis": AnalysisSpec(**changes)})
    return record.model_copy(update={"spec": spec})


def test_specs_laws_and_trials_of_two_sweeps_are_compared() -> None:
    one = four_widths().sweep
    other = other_analysis(sweep([12, 16, 20, 24]), per_subject=False)
    both = SideBySide(four_widths(), analysed(other, 1.5))
    assert both.shared == 3
    assert both.differences() == [
        ["analysis.per_subject", "true", "false"],
        ["trial.model.hidden_size", "[12, 14, 16, 20]", "[12, 16, 20, 24]"],
    ]
    laws = {row[1]: row for row in both.laws()}
    assert laws["optimal, enumerate names"][2:5] == [
        "1.800 [1.800, 1.800]",
        "1.500 [1.500, 1.500]",
        "0.833 [0.833, 0.833]",
    ]
    assert both.verdicts()[0][1:] == ["undecided", "undecided"]
    trials = both.trials()
    assert [row[1:] for row in trials] == [["1.800", "1.500", "0.833"]] * 3
    assert trials[0][0] == one.trials[0].label


def test_each_compared_value_is_compared_with_its_like() -> None:
    """Depths have laws of their own, so they are not pooled."""
    bits = {1: 2.0, 2: 1.5}
    reading = headline(AnalysisSpec())
    depths, deep = (
        synthetic.analysed(
            ("grid.model.hidden_size=[14,20,28]", f"grid.model.num_layers={layers}"),
            lambda spec: Truth(reading, bits[spec.model.num_layers], noise=0.0),
        )
        for layers in ("[1,2]", "[2]")
    )
    both = SideBySide(depths, deep)
    found = {row[0]: row for row in both.laws() if row[1] == str(reading)}
    numbers = [[float(cell.split()[0]) for cell in found[f"num_layers {layers}"][2:5]] for layers in (1, 2)]
    assert numbers[0] == pytest.approx([2.0, 1.5, 0.75], rel=0.02)
    assert numbers[1] == pytest.approx([1.5, 1.5, 1.0], rel=0.02)
    assert len(SideBySide(depths, depths).laws()) == 2 * len(both.readings)


def test_a_default_that_is_spelled_out_is_no_difference(tmp_path: Path) -> None:
    """A default is no difference either as an axis with one value or in another notation of the same value."""
    base = {"grid": {"model.hidden_size": [16, 32]}, "trial": {"profiles": {"num_profiles": 300}}}
    spelled = copy.deepcopy(base)
    spelled["trial"] |= {
        "training": {"optimizer": {"kind": "adamw", "warmup_steps": 100}, "batch_size": 512},
        "questions": {"hops": [1]},
    }
    spelled["grid"] |= {"training.seed": [0], "model.num_layers": [4]}
    spelled["analysis"] = {"per_subject": True}
    changed = copy.deepcopy(spelled)
    changed["trial"]["training"]["batch_size"] = 256
    records = []
    for number, tree in enumerate((base, spelled, changed)):
        (tmp_path / f"s{number}.yaml").write_text(json.dumps(tree))
        records.append(prepare(str(tmp_path / f"s{number}.yaml"), ())[0])
    one, other, third = (analyse(record, RUN, {}, {}) for record in records)
    assert SideBySide(one, other).differences() == []
    assert SideBySide(one, third).differences() == [["trial.training.batch_size", "512", "256"]]


def test_the_interval_of_a_ratio_combines_those_of_both_laws() -> None:
    rng = np.random.default_rng(0)
    record = sweep([12, 14, 16, 20], seeds=(0, 1))
    noisy = {}
    for trial in record.trials:
        noisy |= {trial.trial_id: results(record, 1.8 * float(np.exp(0.05 * rng.standard_normal())))[trial.trial_id]}
    one, exact = analyse(record, RUN, measured(noisy), {}).law, four_widths().law
    quotient = ratio(one, exact)
    assert quotient.estimate == pytest.approx(1.8 / one.alpha.estimate)
    assert np.log(quotient.high / quotient.low) == pytest.approx(np.log(one.alpha.high / one.alpha.low), rel=1e-3)
    assert np.isnan(ratio(one, analysed(sweep([12]), 1.8).law).low)


def test_sweeps_without_common_readings_and_trials_can_be_compared() -> None:
    one = four_widths()
    record = other_analysis(sweep([24]), schemes=(EncodingScheme.TWO_HOP_DOUBLE,), selections=(SelectionScheme.SET,))
    both = SideBySide(one, analyse(record, RUN, {}, {}))
    assert both.readings == []
    assert both.trials() == []
    assert "0 trials" in compare_html(both)


def test_the_page_holds_every_table_and_is_self_contained() -> None:
    both = SideBySide(four_widths(), analysed(sweep([12, 16, 20, 24]), 1.5))
    html = compare_html(both)
    assert html.count("data:image/svg+xml;base64,") == 1
    assert "http://" not in html
    for title, rows in comparison_tables(both).items():
        assert len(headings(both)[title]) == (len(rows[0]) if rows else len(headings(both)[title]))
        assert (title in html) == bool(rows)
    assert compare_html(both) == html
