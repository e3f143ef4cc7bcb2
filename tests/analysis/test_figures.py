"""Figures show the numbers of the tables, are omitted if they would be empty, and are reproducible to the byte."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import rc_context, rcParams
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure

from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.axes import Role, axes_of
from raycap.analysis.contrasts import compared_axes
from raycap.analysis.exclusions import ExclusionReason
from raycap.analysis.figures import capacities, laws, losses, schemes, training
from raycap.analysis.figures.all import FIGURES, draw
from raycap.analysis.figures.generalising import split_gaps
from raycap.analysis.figures.groups import MAX_ENTRIES, grouped, trial_series
from raycap.analysis.figures.points import final_points, lost_shares
from raycap.analysis.figures.style import COLUMN_INCHES, MAX_VECTORS, PAGE_INCHES, STYLE, for_paper, image, short
from raycap.analysis.laws import FitStatus
from raycap.analysis.measurements import Measured, cells
from raycap.analysis.planted import Truth, plant
from raycap.analysis.readings import Reading, headline
from raycap.analysis.report import files, paper_files
from raycap.analysis.selection import MARGIN
from raycap.plan.expand import expand
from raycap.results import RunRecord, SweepRecord
from raycap.spec import EncodingScheme
from raycap.spec.file import load_sweep

SPEC = str(Path(__file__).parents[2] / "sweeps" / "specs" / "grid.yaml")
HOPS = (
    "trial.questions.hops=[1,2]",
    "trial.questions.held_out={first_people: 0.05, tuples: 0.1}",
    "analysis.schemes=[optimal,2-hop-double]",
    "grid.questions.one_hop_share=[0.05,0.5]",
    "grid.profiles.num_profiles=[300,500]",
)
SWEEPS: dict[str, tuple[str, ...]] = {
    "widths": (),
    "people": ("grid.training.seed=[0,1]", "grid.profiles.num_profiles=[300,1000,3000]"),
    "hops": HOPS,
    "rates": ("grid.training.optimizer.lr=[0.01,0.02]", "grid.model.hidden_size=[10,14]"),
    "chain": (
        "trial.questions.hops=[1,2]",
        "trial.questions.held_out={tuples: 0.1}",
        "grid.questions.chain_of_thought=[false,true]",
        "grid.model.hidden_size=[20,28]",
    ),
}
ALWAYS = {"capacity", "exposures", "subjects"}
HELD_OUT = {"generalisation", "generalisation_gap", "gap_vs_size", "held_out_vs_learned", "steps_to_minimum"}
MEASURED = ALWAYS | {
    "contrasts",
    "loss_by_kind",
    "law",
    "loss_derivatives",
    "loss_vs_content",
    "histograms",
    "capacity_vs_norm",
    "schemes",
}


@cache
def planted(name: str, bits_per_param: float = 2.0) -> tuple[SweepRecord, dict[str, Measured]]:
    loaded = load_sweep(SPEC, ("grid.training.seed=[0]", *SWEEPS[name]))
    trials = tuple(expand(loaded))
    record = SweepRecord(spec=loaded.spec, question=loaded.question, spec_yaml=loaded.text, trials=trials)
    numbers = cells(trials)
    cell_of = np.array([numbers[trial.trial_id] for trial in trials])
    truth = Truth(reading=headline(loaded.spec.analysis), bits_per_param=bits_per_param)
    results = plant(trials, truth, loaded.spec.analysis, cell_of, rng=np.random.default_rng(0))
    return record, {result.trial_id: Measured.of(result) for result in results}


@cache
def analysed(name: str, bits_per_param: float = 2.0, num: int | None = None, unreadable: int = 0) -> Analysis:
    """Analyse the first `num` results (default: all); the last `unreadable` trials have unreadable results."""
    record, measured = planted(name, bits_per_param)
    trial_ids = list(measured)
    kept = {trial_id: measured[trial_id] for trial_id in trial_ids[:num]}
    broken = dict.fromkeys(trial_ids[len(trial_ids) - unreadable :], "it has no evaluation")
    return analyse(record, RunRecord(wall_seconds=1.0, slots=1), kept, {}, broken)


@cache
def all_drawn(name: str) -> dict[str, Figure]:
    return draw(analysed(name))


@cache
def drawn(name: str, figure: str) -> Figure:
    """Draw one figure of a sweep, which takes much less time than all of them."""
    one = FIGURES[figure](analysed(name))
    assert one is not None
    return one


def caption(figure: Figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


def labels(figure: Figure) -> set[str]:
    return {text.get_text() for legend in figure.legends for text in legend.get_texts()}


def offsets(axes: Any, label: str | None = None) -> np.ndarray:
    """Return the points of all scatters in the axes, or of those with a label, sorted."""
    scatters = [c for c in axes.collections if isinstance(c, PathCollection) and label in (None, c.get_label())]
    points = np.concatenate([np.asarray(c.get_offsets()) for c in scatters])
    return points[np.lexsort(points.T)]


def sorted_points(x: Any, y: Any) -> np.ndarray:
    points = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1)
    return points[np.lexsort(points.T)]


def line(axes: Any, label: str) -> tuple[np.ndarray, np.ndarray]:
    (matching,) = [line for line in axes.lines if line.get_label().startswith(label)]
    return np.asarray(matching.get_xdata(), dtype=float), np.asarray(matching.get_ydata(), dtype=float)


VARIED: dict[str, tuple[set[str], set[str]]] = {
    "widths": (set(), set()),
    "people": ({"capacity_by_profiles", "capacity_vs_profiles"}, set()),
    "hops": (
        {"capacity_by_profiles", "capacity_vs_profiles", "capacity_by_scheme", "hops", "phase_map"} | HELD_OUT,
        {"law"},  # each arm has fewer than two sizes that are limited by the model
    ),
    "rates": ({"learning_rates"}, {"schemes"}),  # two trials have the best rates
    "chain": ({"hops"} | HELD_OUT, set()),
}
"""Figures that each sweep has beside MEASURED, and figures of MEASURED that it lacks."""


@pytest.mark.parametrize(
    "name", [name if name == "hops" else pytest.param(name, marks=pytest.mark.slow) for name in VARIED]
)
def test_a_sweep_has_the_figures_of_what_it_varies(name: str) -> None:
    more, less = VARIED[name]
    assert set(all_drawn(name)) == (MEASURED | more) - less
    assert list(all_drawn(name)) == [figure for figure in FIGURES if figure in all_drawn(name)]  # the report's order


@pytest.mark.parametrize("name", ["widths", "people", "rates", "chain"])
def test_a_sweep_lacks_the_figures_of_what_it_does_not_vary(name: str) -> None:
    """A figure without data costs nothing; of the others, those that not every sweep has are drawn."""
    more, less = VARIED[name]
    for figure in FIGURES.keys() - (MEASURED - less) - more:
        assert FIGURES[figure](analysed(name)) is None, figure
    for figure in more - HELD_OUT:
        assert drawn(name, figure)


@pytest.mark.parametrize(
    "name", ["hops", *(pytest.param(name, marks=pytest.mark.slow) for name in ("people", "chain", "rates"))]
)
def test_texts_and_axes_are_not_clipped_and_do_not_overlap(name: str) -> None:
    for figure_name, figure in all_drawn(name).items():
        with rc_context(STYLE):  # ticks are created lazily
            renderer = FigureCanvasAgg(figure).get_renderer()
            boxes = [text.get_window_extent(renderer) for text in figure.texts]
            boxes += [legend.get_window_extent(renderer) for legend in figure.legends]
            boxes += [axes.get_tightbbox(renderer) for axes in figure.axes]
        assert COLUMN_INCHES <= figure.get_size_inches()[0] <= PAGE_INCHES
        for index, one in enumerate(boxes):
            assert min(one.x0, one.y0) >= -1, figure_name
            assert one.x1 <= figure.bbox.width + 1, figure_name
            assert one.y1 <= figure.bbox.height + 1, figure_name
            for other in boxes[index + 1 :]:
                apart = max(one.x0 - other.x1, other.x0 - one.x1, one.y0 - other.y1, other.y0 - one.y1)
                assert apart >= -2, (figure_name, one, other)
        assert len(labels(figure)) <= MAX_ENTRIES, figure_name


@pytest.mark.parametrize("name", ["widths", "hops", "chain"])
def test_series_never_merge_values_of_an_axis(name: str) -> None:
    analysis = analysed(name)
    varied = [axis for axis in compared_axes(axes_of(analysis.sweep)) if axis.role is not Role.SIZE]
    series = trial_series(analysis, range(len(analysis.sweep.trials))).series
    assert np.sum([one.members for one in series], axis=0).tolist() == [1] * len(analysis.sweep.trials)
    for axis in varied[:2]:
        values = np.array([axis.index(trial) for trial in analysis.sweep.trials])
        assert all(len(set(values[one.members])) == 1 for one in series)
    assert len({one.look for one in series}) == len(series)


def test_the_gap_of_each_split_is_that_of_the_tables() -> None:
    analysis = analysed("hops")
    gaps = split_gaps(analysis)
    table = analysis.tables.splits[analysis.tables.splits["kind"] == "two_hop"]
    final = table.pivot(index="trial", columns="split", values="loss_bits")
    for split in ("first_people", "tuples"):
        ends = gaps[gaps["split"] == split].set_index("trial")
        assert ends["end"].to_numpy() == pytest.approx((final[split] - final["train"]).to_numpy())
        assert (ends["largest"] >= ends["end"]).all()


def test_figures_for_papers_have_embedded_fonts_and_neither_title_nor_caption() -> None:
    figure = training.exposures(analysed("widths"))
    height, legends = figure.get_figheight(), len(figure.legends)
    assert for_paper(figure).get_figheight() < height
    assert len(figure.legends) == legends
    assert not [text for text in figure.texts if text.get_visible() and text.get_text()]
    pdf = image(figure, "pdf")
    assert b"/FontFile2" in pdf  # an embedded TrueType font
    assert b"/Type3" not in pdf
    assert (figure.title, figure.caption) != ("", "")
    assert dict(paper_files(analysed("widths", num=0))).keys() == {f"paper/{name}.pdf" for name in ALWAYS} | {
        "paper/captions.txt"
    }


@pytest.mark.parametrize("num", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_figures_are_drawn_with_few_or_no_finished_trials(num: int) -> None:
    figures = draw(analysed("widths", num=num))
    assert set(figures) >= ALWAYS
    if num == 0:
        assert set(figures) == ALWAYS
        assert all("(4 planned)" in caption(figure) for figure in figures.values())
    else:
        assert f"{num} trial{'s' * (num > 1)} of 4 planned, 1 seed per cell." in caption(figures["capacity"])
    assert "law" not in figures  # the sizes differ by less than a factor of 1.5
    for figure in figures.values():
        assert image(figure, "svg")


@pytest.mark.slow
def test_no_law_is_drawn_without_capacity_limited_trials() -> None:
    exhausted = analysed("widths", 50.0)
    assert exhausted.law.status is FitStatus.NO_TRIALS
    figures = draw(exhausted)
    assert not any(label.startswith("law") for label in labels(figures["capacity"]))
    assert "not in the law: dataset exhausted (4)." in caption(figures["capacity"])
    assert "exhausted dataset (4)" in caption(figures["law"])
    ignorant = draw(analysed("widths", 0.5))
    assert "law" not in ignorant
    assert "answers near chance (4)" in caption(ignorant["capacity"])


def test_the_capacity_figure_shows_the_totals_of_the_table() -> None:
    selections = analysed("widths").sweep.spec.analysis.selections
    readings = [Reading(EncodingScheme.OPTIMAL, selection) for selection in selections]
    for name, shown in (("widths", readings), ("people", [analysed("people").headline])):
        (axes,) = capacities.capacity(analysed(name)).axes
        points = pd.concat([final_points(analysed(name), reading) for reading in shown])
        points = points[points["learned_bits"] > 0]
        assert offsets(axes) == pytest.approx(sorted_points(points["num_params"], points["learned_bits"]))
    analysis = analysed("widths")
    x, y = line(capacities.capacity(analysis).axes[0], "law")
    assert y == pytest.approx(analysis.law.alpha.estimate * x)
    analysis = analysed("people")
    figure = capacities.capacity(analysis)
    (axes,) = figure.axes
    slopes = [np.divide(line.get_ydata(), line.get_xdata()) for line in axes.lines if len(line.get_xdata()) == 2]
    laws = [arm.laws[analysis.headline].alpha.estimate for arm in analysis.arms]
    assert len(laws) == 3
    for alpha in laws:
        assert np.isnan(alpha) or any(slope == pytest.approx([alpha] * 2) for slope in slopes)
    x, y = line(axes, "2 bits/param")
    assert y == pytest.approx(2 * x)
    assert not any("all data" in label for label in labels(figure))  # three populations have no common level


def test_a_single_population_has_lines_for_its_data_and_names() -> None:
    analysis = analysed("widths")
    figure = capacities.capacity(analysis)
    _, bits = line(figure.axes[0], "all data")
    assert bits == pytest.approx([analysis.totals(final=True)["dataset_bits"].iloc[0]] * 2)
    _, names = line(figure.axes[0], "names alone")
    assert names == pytest.approx([analysis.totals(final=True)["baseline_bits"].iloc[0]] * 2)


def test_captions_count_trials_seeds_and_exclusions() -> None:
    analysis = analysed("people", num=23, unreadable=1)
    text = caption(capacities.capacity(analysis))
    assert "23 trials of 24 planned, 1–2 seeds per cell." in text
    reasons = list(analysis.law.excluded.values())
    for reason in (ExclusionReason.EXHAUSTED, ExclusionReason.NEAR_CHANCE):
        count = reasons.count(str(reason))
        assert count > 0
        assert f"{reason} ({count})" in text
    assert "unreadable (1)" in text
    assert "24 trials, 2 seeds per cell." in caption(drawn("people", "exposures"))


def test_excluded_trials_have_open_markers() -> None:
    analysis = analysed("people")
    points = final_points(analysis)
    (axes,) = capacities.capacity(analysis).axes
    blue = [c for c in axes.collections if isinstance(c, PathCollection) and c.get_zorder() == 4]
    open_ones = [c for c in blue if len(c.get_facecolors()) == 0]
    filled = [c for c in blue if len(c.get_facecolors())]
    assert sum(len(c.get_offsets()) for c in open_ones) == (points["excluded"] != "").sum() > 0
    assert sum(len(c.get_offsets()) for c in filled) == (points["excluded"] == "").sum() > 0


def test_each_panel_shows_the_trials_of_its_value() -> None:
    analysis = analysed("people")
    figure = drawn("people", "capacity_by_profiles")
    points = final_points(analysis)
    for axes, (number, members) in zip(figure.axes, points.groupby("num_profiles"), strict=True):
        assert axes.get_title(loc="left") == f"N = {number:,.0f}"
        assert offsets(axes) == pytest.approx(sorted_points(members["num_params"], members["learned_bits"]))
    hops = analysed("hops")
    for axes, scheme in zip(
        all_drawn("hops")["capacity_by_scheme"].axes, hops.sweep.spec.analysis.schemes, strict=True
    ):
        assert axes.get_title(loc="left") == str(scheme)
        totals = final_points(hops, Reading(scheme, hops.headline.selection))
        assert len(offsets(axes)) == (totals["learned_bits"] > 0).sum()


def test_dataset_bits_and_norms_are_those_of_the_tables() -> None:
    analysis = analysed("people")
    (axes,) = drawn("people", "capacity_vs_profiles").axes
    people, bits = line(axes, "all data")
    totals = analysis.totals(final=True)
    data = totals.groupby(analysis.tables.trials["num_profiles"].to_numpy()[totals["trial"]])["dataset_bits"].first()
    assert (people, bits) == (pytest.approx(data.index.to_numpy(dtype=float)), pytest.approx(data.to_numpy()))
    (axes,) = drawn("people", "capacity_vs_norm").axes
    norms = analysis.tables.evaluations["parameter_norm"].to_numpy(dtype=float)
    learned = analysis.totals()["learned_bits"].to_numpy()
    drawn_points = segments(axes)
    assert sorted_points(*drawn_points.T) == pytest.approx(sorted_points(norms[learned > 0], learned[learned > 0]))


def test_the_hops_figure_shows_one_hop_against_two_hop_bits() -> None:
    analysis = analysed("hops")
    (axes,) = all_drawn("hops")["hops"].axes
    table = analysis.tables.capacities
    chosen = table["final"] & (table["subject"] == "total") & ~table["incremental"]
    table = table[chosen & (table["scheme"] == "optimal") & (table["selection"] == "enumerate")]
    one, two = (table[table["kind"] == kind].set_index("trial")["bits_per_param"] for kind in ("one_hop", "two_hop"))
    assert offsets(axes) == pytest.approx(sorted_points(two, one.reindex(two.index)))
    x, y = line(axes, "sum of")
    assert x + y == pytest.approx([2.0, 2.0])


def segments(axes: Any) -> np.ndarray:
    collections = [c for c in axes.collections if isinstance(c, LineCollection)]
    return np.concatenate([np.asarray(path) for c in collections for path in c.get_segments()])


def test_training_curves_show_every_evaluation() -> None:
    analysis = analysed("hops")
    totals = analysis.totals()
    drawn_points = segments(all_drawn("hops")["exposures"].axes[0])
    assert sorted_points(*drawn_points.T) == pytest.approx(sorted_points(totals["exposures"], totals["bits_per_param"]))
    estimated = analysis.training["refused"] == ""
    assert 0 < estimated.sum() <= len(estimated)
    assert f"asymptotes of {estimated.sum()} trials" in caption(all_drawn("hops")["exposures"])

    rows = analysis.tables.losses
    rows = rows[(rows["kind"] == "two_hop") & (rows["part"] == "answer")]
    gaps = rows["held_out_bits"] - rows["loss_bits"]
    drawn_points = segments(all_drawn("hops")["generalisation_gap"].axes[0])
    assert sorted_points(*drawn_points.T) == pytest.approx(sorted_points(rows["exposures"], gaps))
    largest = gaps.groupby(rows["trial"]).max().mean()
    assert f"mean {largest:.2f} bits" in caption(all_drawn("hops")["generalisation_gap"])

    first = rows[rows["trial"] == 0]
    falls = -np.diff(first["loss_bits"]) / np.diff(np.log2(first["exposures"]))
    drawn_points = segments(all_drawn("hops")["loss_derivatives"].axes[0])
    assert all(np.isclose(drawn_points[:, 1], fall).any() for fall in falls)
    assert len(drawn_points) == len(rows) - len(analysis.measured)


def test_loss_figures_show_the_losses_of_the_tables() -> None:
    analysis = analysed("hops")
    table = analysis.tables.subjects
    table = table[table["kind"] == "two_hop"]
    (axes,) = all_drawn("hops")["subjects"].axes
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(
        table.groupby("subject", sort=False)["uniform_bits"].max().tolist()
    )
    series = trial_series(analysis, table["trial"]).series
    means = [table[one.members].groupby("subject")["loss_bits"].mean() for one in series]
    assert np.sort(offsets(axes)[:, 0]) == pytest.approx(np.sort(np.concatenate(means)))

    totals = analysis.totals(final=True).set_index("trial")
    rows = analysis.tables.losses
    rows = rows[rows["final"] & (rows["kind"] == "two_hop")].set_index("trial")
    (axes,) = all_drawn("hops")["loss_vs_content"].axes
    bits_per_param = totals["dataset_bits"] / totals["num_params"]
    assert offsets(axes) == pytest.approx(sorted_points(bits_per_param, rows["loss_bits"].reindex(totals.index)))


def test_histograms_are_percentages_per_series() -> None:
    analysis = analysed("hops")
    figure = all_drawn("hops")["histograms"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["one-hop questions", "two-hop questions"]
    series = trial_series(analysis, range(len(analysis.sweep.trials))).series
    for axes, counts in zip(figure.axes, analysis.tables.histograms.values(), strict=True):
        for patch, one in zip(axes.patches, series, strict=True):
            values = patch.get_data().values  # type: ignore[attr-defined]
            total = counts[one.members].sum(0)
            assert values == pytest.approx(100 * total / total.sum())


def test_generalisation_separates_chains_from_answers() -> None:
    figure = drawn("chain", "generalisation")
    assert labels(figure) >= {"two-hop questions", "two-hop questions, given the chain"}
    assert "two-hop questions, the chain itself" in labels(figure)
    analysis = analysed("chain")
    table = analysis.tables.splits
    chained = [planned.spec.questions.chain_of_thought for planned in analysis.sweep.trials]
    rows = table[np.array(chained)[table["trial"]] & (table["part"] == "answer") & (table["kind"] == "two_hop")]
    expected = rows.groupby("split")["loss_bits"].mean().reindex(["train", "tuples"])
    assert np.sort(offsets(figure.axes[0], "two-hop questions, given the chain")[:, 0]) == pytest.approx(
        np.sort(expected)
    )


def test_the_law_saturates_at_the_bits_of_the_data() -> None:
    analysis = analysed("people")
    above, below = drawn("people", "law").axes
    powers = [arm.laws[analysis.headline].power for arm in analysis.arms]
    data = np.unique(analysis.totals(final=True)["dataset_bits"])
    drawn_lines = [line for line in above.lines if len(line.get_xdata()) > 2]
    fitted = [(power, bits) for power, bits in zip(powers, data, strict=True) if np.isfinite(power.gamma.estimate)]
    assert len(fitted) == len(drawn_lines) > 0
    for drawn_line, (power, bits) in zip(drawn_lines, fitted, strict=True):
        x, y = np.asarray(drawn_line.get_xdata(), dtype=float), drawn_line.get_ydata()
        assert y == pytest.approx(power.learned_bits(x, float(bits)))
        assert (np.asarray(y) < bits).all()
    residuals = np.concatenate([list(power.residuals.values()) for power, _ in fitted])
    assert np.sort(offsets(below)[:, 1]) == pytest.approx(np.sort(100 * np.expm1(residuals)))
    power = analysed("widths").law.power
    title = caption(drawn("widths", "law"))
    assert f"γ = {power.gamma.estimate:.2f} [{power.gamma.low:.2f}, {power.gamma.high:.2f}]" in title


def test_the_phase_map_shows_the_excess_one_hop_loss_of_each_cell() -> None:
    analysis = analysed("hops")
    axes = all_drawn("hops")["phase_map"].axes[0]
    _, share = line(axes, "predicted end")
    assert share == pytest.approx([1 / 5, 1 / 5])
    lost = lost_shares(analysis)
    excess = (lost["one_hop"] - lost["two_hop"]).groupby(analysis.tables.trials["cell"]).mean()
    marks = [c for c in axes.collections if isinstance(c, PathCollection)]
    assert np.sort(np.concatenate([np.asarray(c.get_array()) for c in marks])) == pytest.approx(
        np.sort(excess.to_numpy()), abs=1e-9
    )
    facts = analysis.tables.capacities
    facts = facts[(facts["kind"] == "one_hop") & (facts["subject"] == "total") & facts["final"]]
    facts = facts[(facts["scheme"] == "optimal") & (facts["selection"] == "enumerate")]
    room = np.sort(facts["num_params"] / facts["dataset_bits"])
    assert np.sort(offsets(axes)[:, 0]) == pytest.approx(room)


def test_the_schemes_figure_compares_readings_with_the_leading_one() -> None:
    analysis = analysed("hops")
    comparison = analysis.comparison
    scores, weights, *trends = all_drawn("hops")["schemes"].axes
    ahead = comparison.ahead
    assert ahead is not None
    assert scores.get_yticklabels()[0].get_text() == str(ahead)
    differences = sorted(
        comparison.scores_bits[reading] - comparison.scores_bits[ahead] for reading in comparison.readings
    )
    assert np.sort(offsets(scores)[:, 0]) == pytest.approx(differences)
    verdicts = [text.get_text() for text in scores.texts]
    for reading, verdict in zip(
        sorted(comparison.readings, key=lambda r: -comparison.scores_bits[r]), verdicts, strict=True
    ):
        expected = "leading" if reading == ahead else str(schemes.against(comparison, reading, ahead)[1])
        assert verdict == expected
    assert sorted(bar.get_width() for bar in weights.patches) == pytest.approx(sorted(comparison.weights.values()))
    for axes in trends:
        estimates = [trend.exponent.estimate for trend in comparison.trends]
        assert np.sort(offsets(axes)[:, 0]) == pytest.approx(sorted(estimates))
        (margin,) = axes.patches
        assert (margin.get_x(), margin.get_width()) == pytest.approx((-MARGIN, 2 * MARGIN))


def test_the_best_learning_rate_is_ringed() -> None:
    analysis = analysed("rates")
    (axes,) = drawn("rates", "learning_rates").axes
    finals = analysis.tables.losses[analysis.tables.losses["final"]].set_index("trial")["loss_bits"]
    trials = analysis.tables.trials.assign(loss=finals)
    best = trials.loc[trials.groupby("hidden_size")["loss"].idxmin()]
    assert offsets(axes) == pytest.approx(sorted_points(best["learning_rate"], best["loss"]))


@pytest.mark.slow
def test_drawing_an_analysis_again_gives_the_same_bytes() -> None:
    """The figures that every sweep has are compared in tests/analysis/test_laws.py."""
    for name in all_drawn("hops").keys() - MEASURED:
        again = FIGURES[name](analysed("hops"))
        assert image(all_drawn("hops")[name], "svg") == image(again, "svg"), name
        if name == "phase_map":
            assert image(all_drawn("hops")[name], "png") == image(again, "png")


def test_early_evaluations_far_below_zero_bits_are_cut_off() -> None:
    analysis = analysed("widths")
    table = analysis.tables.capacities
    early = table["exposures"] < 5
    negative = table.assign(bits_per_param=np.where(early, -20.0, table["bits_per_param"]))
    figure = training.exposures(replace(analysis, tables=replace(analysis.tables, capacities=negative)))
    assert "Evaluations below -0.5" in caption(figure)
    assert figure.axes[0].get_ylim()[0] > -1
    assert figure.axes[0].get_xlim()[0] > table["exposures"][early].max() / 1.3
    assert "Evaluations below" not in caption(drawn("widths", "exposures"))


def test_drawing_does_not_change_the_global_style() -> None:
    before = dict(rcParams)
    image(capacities.capacity(analysed("widths")), "png")
    assert dict(rcParams) == before


def test_dense_lines_are_rasterised_and_have_medians_on_top() -> None:
    figure, ((axes,),) = training.panels()
    num = MAX_VECTORS
    trial = np.repeat(np.arange(num), 2)
    x, y = np.tile([1.0, 2.0], num), np.arange(2.0 * num)
    training.curves(axes, trial, x, y, losses.LOOKS[0], label="many", dense=True)
    (lines,) = [c for c in axes.collections if isinstance(c, LineCollection)]
    assert lines.get_rasterized()
    assert len(lines.get_segments()) <= 250
    assert offsets(axes) == pytest.approx(sorted_points([1.0, 2.0], [np.median(y[::2]), np.median(y[1::2])]))
    assert len(image(figure, "svg")) < 300_000


def test_groups_consist_of_neighbouring_values() -> None:
    groups = grouped(np.arange(1, 21) * 1000, "params")
    assert len(groups) == 6
    assert np.sum([group.members for group in groups], axis=0).tolist() == [1] * 20
    assert groups[0].label == "1k–4k params"
    assert len({group.look.marker for group in groups}) == len({str(group.look.line) for group in groups}) == 6
    assert [group.label for group in grouped([90e3, 93e3, 300e3, 310e3, 310e3], "params", most=2)] == [
        "90k–93k params",
        "300k–310k params",
    ]
    assert grouped([], "params") == []


@pytest.mark.parametrize(
    ("value", "text"), [(0.0125, "0.0125"), (12, "12"), (999_600, "1M"), (1_170_000, "1.17M"), (890_320, "890k")]
)
def test_short_formats_three_digits_with_a_suffix(value: float, text: str) -> None:
    assert short(value) == text


EMPTY: list[Callable[[Analysis], Figure | None]] = [
    laws.law,
    laws.phase_map,
    schemes.schemes,
    training.generalisation_gap,
]


@pytest.mark.parametrize("make", EMPTY)
def test_figures_without_data_are_none(make: Callable[[Analysis], Figure | None]) -> None:
    assert make(analysed("widths", num=0)) is None


USERS_STYLE = {
    "axes.facecolor": "black",
    "lines.marker": "x",
    "savefig.bbox": "tight",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "monospace",
    "axes.prop_cycle": "cycler('color', ['r'])",
    "figure.figsize": (1, 1),
    "axes.unicode_minus": False,
    "figure.autolayout": True,
}


def test_settings_of_the_user_change_no_figure() -> None:
    expected = image(FIGURES["law"](analysed("widths")), "svg")
    with rc_context(USERS_STYLE):
        assert image(FIGURES["law"](analysed("widths")), "svg") == expected
    with rc_context({"text.usetex": True}):  # would need LaTeX
        assert image(FIGURES["law"](analysed("widths")), "svg") == expected


@pytest.mark.slow
def test_unusable_backends_and_files_of_the_user_do_not_prevent_figures(tmp_path: Path) -> None:
    """Jupyter exports MPLBACKEND to every command, also to one whose environment lacks that backend."""
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nonsense\nno colon\n")
    code = (
        "from raycap.analysis.figures.style import STYLE, image, panels; import matplotlib, os;"
        "figure, _ = matplotlib.rc_context(STYLE)(panels)(); assert image(figure, 'svg'); print(os.environ['MPLBACKEND'])"
    )
    backend = "module://matplotlib_inline.backend_inline"
    environment = {**os.environ, "MPLBACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == backend


def test_a_figure_that_cannot_be_drawn_costs_only_that_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(analysis: Analysis) -> Figure:
        raise RuntimeError("no <font>")

    monkeypatch.setattr("raycap.analysis.report.FIGURES", {"capacity": FIGURES["capacity"], "broken_one": broken})
    contents = list(files(analysed("widths")))
    names = [name for name, _ in contents]
    assert names == [
        "summary.json", "capacity.parquet", "capacity.csv", "capacity.svg", "capacity.png", "interactive.html",
        "report.html",
    ]  # fmt: skip
    html = dict(contents)["report.html"].decode()
    assert "Figures that could not be drawn: broken one (RuntimeError: no &lt;font&gt;)" in html
