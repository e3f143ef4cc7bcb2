"""Laws recover what was planted, with intervals that mean what they say, and say so where there is no number."""

import json

import numpy as np
import pytest

from raycap.analysis.laws import FitStatus, Point, fit_proportional
from raycap.analysis.report import files
from raycap.analysis.summary import analyse, summary
from raycap.results import Failure
from tests.planted import RUN, results, sweep

SIZES = [10_000, 20_000, 40_000, 80_000]


def noisy(alpha: float, gamma: float, noise: float, rng: np.random.Generator, repeats: int = 3) -> list[Point]:
    return [
        Point(
            f"{size}-{i}",
            size,
            alpha * 10_000 * (size / 10_000) ** gamma * float(np.exp(noise * rng.standard_normal())),
        )
        for size in SIZES
        for i in range(repeats)
    ]


def test_an_exact_law_is_recovered_exactly() -> None:
    rng = np.random.default_rng(0)
    law = fit_proportional(noisy(2.0, 1.0, 0.0, rng), {}, rng=rng)
    assert (law.alpha, law.low, law.high, law.gamma) == pytest.approx((2.0, 2.0, 2.0, 1.0))
    assert law.status is FitStatus.OK
    assert law.learned_bits(np.array([100.0])) == pytest.approx([200.0])


def test_an_exponent_is_recovered() -> None:
    rng = np.random.default_rng(0)
    law = fit_proportional(noisy(2.0, 0.8, 0.01, rng), {}, rng=rng)
    assert law.gamma == pytest.approx(0.8, abs=0.02)
    assert law.gamma_low < 0.8 < law.gamma_high


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    fits = [fit_proportional(noisy(2.0, 1.0, 0.1, rng), {}, rng=rng) for _ in range(150)]
    covered = np.mean([fit.low <= 2.0 <= fit.high for fit in fits])
    assert 0.85 <= covered <= 0.99  # the percentile bootstrap of 12 points is a little short of 95 %


def test_too_few_trials_have_no_interval_and_none_have_no_number() -> None:
    rng = np.random.default_rng(0)
    few = fit_proportional([Point("a", 10, 20.0), Point("b", 10, 20.0)], {"c": "dataset exhausted"}, rng=rng)
    assert few.alpha == pytest.approx(2.0)
    assert few.status is FitStatus.TOO_FEW
    assert np.isnan(few.low)
    none = fit_proportional([], {"c": "dataset exhausted"}, rng=rng)
    assert none.status is FitStatus.NO_TRIALS
    assert np.isnan(none.alpha)


def test_a_summary_holds_what_was_planted_and_says_what_is_missing() -> None:
    record = sweep([12, 14, 16, 20])
    found = results(record, 1.8)
    failed, missing = record.trials[1].trial_id, record.trials[2].trial_id
    failure = Failure(trial_id=failed, cause="ValueError: planted", traceback="")
    complete = summary(analyse(record, RUN, found, {}))
    law = complete["laws"]["optimal"]["enumerate"]
    assert (law["alpha"], law["low"], law["high"]) == pytest.approx((1.8, 1.8, 1.8))
    assert (law["num_trials"], law["status"]) == (4, "ok")
    assert complete["train_seconds_ideal"] == pytest.approx(4 * 10 / 2)
    assert complete["wall_seconds"] == 20.0

    del found[failed], found[missing]
    partial = summary(analyse(record, RUN, found, {failed: failure}))
    assert [trial["state"] for trial in partial["trials"]] == ["finished", "failed", "missing", "finished"]
    assert partial["laws"]["optimal"]["enumerate"]["status"] == "too few trials"
    assert partial["laws"]["optimal"]["enumerate"]["low"] is None
    first = partial["trials"][0]
    assert first["bits_per_param"]["optimal"]["enumerate"] == pytest.approx(1.8)
    assert first["num_params"] == record.trials[0].parameters.total
    assert set(first["dataset_bits"]) == {"set", "enumerate", "independent"}
    assert first["loss_bits"]["one_hop"] > 0
    assert first["capacity_limited"] is True
    json.dumps(partial, allow_nan=False)


def test_exhausted_trials_are_left_out_with_their_reason() -> None:
    record = sweep([12, 14, 16, 20])
    found = results(record, 1.8)
    big = record.trials[3]
    found[big.trial_id] = results(record, big.demanded_bits_per_param("enumerate") * 0.999)[big.trial_id]
    law = summary(analyse(record, RUN, found, {}))["laws"]["optimal"]["enumerate"]
    assert law["excluded"] == {big.trial_id: "dataset exhausted"}
    assert law["alpha"] == pytest.approx(1.8)


@pytest.mark.parametrize("case", ["complete", "one", "none", "exhausted"])
def test_every_file_is_made_whatever_has_finished(case: str) -> None:
    record = sweep([12, 14, 16, 20])
    found = results(record, 1.8)
    if case == "one":
        found = {record.trials[0].trial_id: found[record.trials[0].trial_id]}
    if case == "none":
        found = {}
    if case == "exhausted":
        big = record.trials[3]
        found[big.trial_id] = results(record, big.demanded_bits_per_param("enumerate") * 0.999)[big.trial_id]
    failed = record.trials[1].trial_id
    failure = {failed: Failure(trial_id=failed, cause="Boom: <b>", traceback="")} if case == "one" else {}
    made = files(analyse(record, RUN, found, failure))
    figures = {f"{name}.{kind}" for name in ("capacity", "exposures", "subjects") for kind in ("png", "svg")}
    assert set(made) == {"summary.json", "capacity.parquet", "capacity.csv", "report.html"} | figures
    html = made["report.html"].decode()
    assert html.count("data:image/svg+xml;base64,") == 3
    assert "http://" not in html.replace("http://www.w3.org", "")
    if case == "one":
        assert "Boom: &lt;b&gt;" in html
    if case == "complete":
        assert "1.80 bits per parameter, 95 % interval [1.80, 1.80]" in html
    if case == "exhausted":
        assert "dataset exhausted" in html
    assert made == files(analyse(record, RUN, found, failure))  # the same records give the same files
