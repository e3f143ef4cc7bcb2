"""Tests of the tidy frames and of the interactive page: they hold the losses and the settings of every trial."""

import io
import json
import re
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyarrow import csv

from raycap.analysis.analyse import Analysis
from raycap.analysis.frames import Results
from raycap.analysis.interactive import interactive_page
from raycap.analysis.planted import Truth
from raycap.analysis.readings import headline
from raycap.analysis.report import files
from raycap.analysis.summary import summary
from raycap.analysis.tables import grid_columns
from raycap.results import LossRow
from raycap.spec import AnalysisSpec, Split, TrialSpec
from tests.support import synthetic
from tests.support.browser import CHROMIUM, chromium

GRID = ["model.hidden_size", "training.seed", "questions.chain_of_thought"]
LOSSES = {True: 1.75, False: 18.25}
"""Planted losses of new combinations in bits, with and without a chain of thought."""


def new_combinations(spec: TrialSpec, row: LossRow) -> float | None:
    chosen = row.split is Split.TUPLES and row.kind.hops == 2
    return LOSSES[spec.questions.chain_of_thought] if chosen else None


@cache
def analysed() -> Analysis:
    truth = Truth(headline(AnalysisSpec()))
    return synthetic.analysed(synthetic.CHAIN, lambda spec: truth, mean_bits=new_combinations)


def test_losses_have_the_mean_error_and_count_of_every_row_with_the_settings_of_its_trial() -> None:
    sweep = Results(analysed())
    losses = sweep.losses
    assert set(GRID) < set(losses)
    (trial, *_) = analysed().measured.values()
    of_trial = losses[losses["trial_id"] == trial.trial_id]
    assert of_trial["num_texts"].to_list() == [*trial.losses.questions.num_texts] * len(trial.curve.step)
    assert of_trial["loss_bits"].to_numpy() == pytest.approx(
        (trial.losses.sum_bits / trial.losses.num_evaluated).ravel()
    )
    ends = losses.query("final and kind == 'two_hop' and split == 'tuples' and part == 'answer'")
    means = ends.groupby("questions.chain_of_thought")["loss_bits"].mean()
    assert means.to_dict() == pytest.approx(LOSSES)
    assert (losses["standard_error_bits"] == 0).all()
    assert {"answer", "chain"} == set(losses["part"])


def test_the_spread_over_seeds_is_the_standard_deviation_within_cells() -> None:
    analysis = synthetic.analysed(
        ("grid.model.hidden_size=[10,14]", "grid.training.seed=[0,1,2]"),
        lambda spec: Truth(headline(AnalysisSpec()), noise=0.05),
    )
    trials = Results(analysis).trials
    for _, cell in trials.groupby(["scheme", "selection", "cell"]):
        assert cell["seed_spread_bits"].to_numpy() == pytest.approx([cell["learned_bits"].std()] * 3)
    assert (trials["seed_spread_bits"] > 0).all()
    entry = summary(analysis)["trials"][0]
    (first,) = trials[(trials["trial_id"] == entry["trial_id"]) & (trials["selection"] == "enumerate")].to_dict(
        "records"
    )
    assert entry["seed_spread_bits"]["optimal"]["enumerate"] == pytest.approx(first["seed_spread_bits"])


def test_the_generalisation_matrix_has_a_row_per_trial_and_split_and_a_column_per_kind() -> None:
    matrix = Results(analysed()).generalisation
    answers = matrix[matrix["part"] == "answer"]
    assert len(answers) == 3 * len(analysed().measured)
    assert answers["split"].iloc[:3].to_list() == ["train", "first_people", "tuples"]
    ends = answers[answers["split"] == "tuples"].groupby("questions.chain_of_thought")["two_hop"].mean()
    assert ends.to_dict() == pytest.approx(LOSSES)
    assert answers["one_hop"].notna().any()


def test_values_of_the_grid_can_be_grouped_by_and_written() -> None:
    record = synthetic.planned(["grid.model.loop=[null,{times: 2}]", "grid.training.seed=[0]"])
    grid = grid_columns(record.trials)
    assert list(grid) == ["model.hidden_size", "training.seed", "model.loop"]
    assert sorted(set(grid["model.loop"])) == ["null", '{"times": 2}']
    contents = dict(islice(files(analysed()), 3))  # the tables come first, before anything is drawn
    table = csv.read_csv(io.BytesIO(contents["capacity.csv"])).to_pandas()
    assert list(table)[2:5] == GRID
    frame = Results(analysed()).trials.query("selection == 'enumerate'")
    totals = table.query("final and headline and subject == 'total' and selection == 'enumerate'")
    merged = frame.merge(totals, on=["trial_id", *GRID])
    assert merged["learned_bits_x"].to_numpy() == pytest.approx(merged["learned_bits_y"].to_numpy())
    assert len(merged) == len(frame)


def embedded(page: str) -> dict[str, Any]:
    """The data that a page holds for its script."""
    (line,) = re.findall(r"^const DATA = (.*);$", page.replace("<script>const", "<script>\nconst"), re.MULTILINE)
    data: dict[str, Any] = json.loads(line)
    return data


def test_the_interactive_page_holds_settings_bits_and_losses_of_every_trial() -> None:
    page = interactive_page(analysed())
    data = embedded(page)
    assert (data["settings"], data["varied"]) == (GRID, [GRID[2], GRID[0]])
    assert 'src="http' not in page
    ends, during = (data["points"][name] for name in ("end of training", "all evaluations"))
    frame = Results(analysed()).trials
    for scheme, selection in analysed().laws:
        chosen = frame[(frame["scheme"] == str(scheme)) & (frame["selection"] == str(selection))]
        values = ends["bits"]["learned_bits"][f"{scheme} encoding, {selection} names"]
        assert values == pytest.approx(chosen["learned_bits"].to_list(), rel=1e-5)
        assert ends["trial_id"] == chosen["trial_id"].to_list()
    name = "loss of two_hop, tuples"
    by_chain = pd.Series(ends["columns"][name]).groupby(ends["columns"]["questions.chain_of_thought"]).mean()
    assert by_chain.to_dict() == pytest.approx({str(chain): bits for chain, bits in LOSSES.items()})
    assert during["trial_id"] == Results(analysed()).evaluations.query("selection == 'set'")["trial_id"].to_list()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_the_chosen_quantities(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(interactive_page(analysed()))
    data = embedded((tmp_path / "page.html").read_text())

    def choose(name: str, value: str) -> None:
        page.value(f"controls.{name}.value = {value!r}; controls.{name}.dispatchEvent(new Event('change'))")

    with chromium(tmp_path / "profile") as page:
        page.open(f"file://{tmp_path}/page.html")
        num = len(analysed().measured)
        assert page.wait("document.querySelectorAll('.scatterlayer .point').length") == num
        assert page.value("plot.data.length") == 4  # chain of thought x width
        choose("reading", "optimal encoding, set names")
        choose("colour", "none")
        choose("marker", "none")
        bits = data["points"]["end of training"]["bits"]["learned_bits"]["optimal encoding, set names"]
        assert page.value("plot.data[0].y") == bits
        choose("points", "all evaluations")
        choose("x", "exposures")
        choose("y", "loss of two_hop, held out")
        assert page.value("plot.data[0].y.filter(y => y !== null).length") == len(analysed().tables.evaluations)
        assert page.value("plot.data[0].y.filter(y => y === null).length") == num - 1  # gaps between the trials
