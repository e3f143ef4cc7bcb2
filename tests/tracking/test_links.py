"""Tests of `raycap ui`, of its links, and of the pages that a browser shows."""

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from raycap.cluster.analyst import sync_sweep
from raycap.commands.ui import ui
from raycap.spec.file import SpecError
from raycap.tracking.links import VIEW_TAG, colours, shared_view
from raycap.tracking.runs import find_pages
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.browser import CHROMIUM, TEXT, chromium
from tests.support.mlflow_runs import make_results, planned_sweep, runs_of, store, wait_until

ROOT = Path(__file__).parent.parent.parent
RAYCAP = [sys.executable, "-m", "raycap"]
COLUMNS = "[...document.querySelectorAll('.ag-header-cell')].map(cell => cell.innerText)"


@contextmanager
def served(*arguments: str, browser: Path) -> Iterator[list[str]]:
    """Run `raycap ui` and yield the links that it prints. It opens links with the program `browser`."""
    server = subprocess.Popen(
        [*RAYCAP, "ui", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env=os.environ | {"BROWSER": f"{browser} %s"},
    )  # fmt: skip
    try:
        yield [server.stdout.readline().split()[-1] for _ in range(2)]
    finally:
        server.send_signal(signal.SIGTERM)  # to the process alone, which must end the server that it started
        assert server.wait(30) == 0
        server.stdout.close()


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_shows_the_trials_side_by_side_and_the_figure(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri, widths=(10, 12, 14, 16), seeds=(0, 1))
    store(record, make_results(record))
    assert sync_sweep(record).problems == ()
    _, _, children = runs_of(record)
    labels = [trial.label for trial in record.trials]
    opened, browser, port = tmp_path / "opened", tmp_path / "browser.sh", free_port()
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    with served(f"{tmp_path}/runs/planted", "--port", str(port), "--open", browser=browser) as (comparison, sweep):
        wait_until(lambda: opened.exists() and opened.read_text().strip() == comparison)
        with chromium(tmp_path / "profile") as page:
            page.open(comparison)
            page.wait("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 4")
            page.wait("document.querySelectorAll('.js-plotly-plot .bars .point').length >= 8")
            page.wait("document.querySelectorAll('.js-plotly-plot .scatterlayer .point').length >= 80")
            page.shot(tmp_path / "comparison.png")
            shown = " ".join(page.value(TEXT).split())
            assert all(label in shown for label in labels)
            assert "planted (4)" in shown
            for metric in ("final/capacity/learned_bits", "final/capacity/bits_per_param", "capacity/learned_bits"):
                assert metric in shown
            filled = set(
                page.value("[...document.querySelectorAll('.bars .point path')].map(bar => getComputedStyle(bar).fill)")
            )
            assert filled == {rgb(run.data.tags["mlflow.runColor"]) for run in children.values()}
            assert len(filled) == 4

            page.open(comparison.replace("compareRunsMode=CHART", "compareRunsMode=TABLE"))
            page.wait(f"{COLUMNS}.includes('model.hidden_size')")
            page.shot(tmp_path / "table.png")
            assert {"training.seed", "plan.num_params", "final/capacity/bits_per_param"} <= set(page.value(COLUMNS))

            page.open(sweep)
            figure = page.wait("document.querySelector('img[src*=\"get-artifact?path=capacity.svg\"]')?.naturalWidth")
            assert figure > 300
            page.value("[...document.querySelectorAll('button')].find(one => one.innerText == 'Show more').click()")
            page.wait(f"{TEXT}.includes('Show less')")
            page.shot(tmp_path / "sweep.png")
            shown = page.value(TEXT)
            assert "1.80 [1.80, 1.80]" in shown
            assert all(label in shown for label in labels)
    with socket.socket() as sock:
        assert sock.connect_ex(("127.0.0.1", port)) != 0  # no server is left


def rgb(colour: str) -> str:
    """Return a colour such as #440154 in the form of a browser: rgb(68, 1, 84)."""
    return f"rgb({', '.join(str(int(colour[start : start + 2], 16)) for start in (1, 3, 5))})"


def test_the_link_has_a_filter_if_there_is_no_shared_view(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    Tracker(record)
    client, parent, _ = runs_of(record)
    link = find_pages(record).comparison("http://host")
    assert link.startswith(f"http://host/#/experiments/{parent.info.experiment_id}/runs?viewStateShareKey=")
    assert "searchFilter" not in link  # MLflow ignores the shared view if there is a filter
    client.delete_experiment_tag(parent.info.experiment_id, f"{VIEW_TAG}{parent.info.run_id}")
    link = find_pages(record).comparison("http://host")
    assert f"searchFilter=tags.mlflow.parentRunId%20%3D%20%27{parent.info.run_id}%27" in link
    assert "viewStateShareKey" not in link


def test_runs_that_a_killed_command_left_as_running_are_ended_before_they_are_shown(
    tmp_path: Path, tracking_uri: str
) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    Tracker(record).start_trial(record.trials[0].trial_id, afresh=True, time_ms=1)
    find_pages(record, is_running=True)
    _, parent, trials = runs_of(record)
    assert [parent.info.status, *(run.info.status for run in trials.values())] == ["RUNNING", "RUNNING"]
    find_pages(record, is_running=False)
    _, parent, trials = runs_of(record)
    assert [parent.info.status, *(run.info.status for run in trials.values())] == ["KILLED", "KILLED"]


def test_the_shared_view_has_columns_for_varied_params_and_fits_a_tag() -> None:
    record = planted.sweep([12, 14])
    trial = record.trials[0]
    several = trial.model_copy(update={"coordinates": trial.coordinates | {"training.optimizer": {"lr": 0.1}}})
    view = shared_view(record.model_copy(update={"trials": (several,)}), "0" * 32)
    assert len(view) < 2000  # tags of experiments are limited to 5000 characters in older MLflow
    kind, packed = view.split(";")
    content = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert kind == "deflate"
    varied = [column for column in content["selectedColumns"] if column.startswith("params.")]
    assert {"params.`model.hidden_size`", "params.`training.seed`", "params.`training.optimizer.lr`"} <= set(varied)
    assert not any("tie_embeddings" in column for column in varied)


def test_every_width_has_its_own_colour() -> None:
    widths = [8, 16, 32, 64, 128, 256, 512, 1024]
    by_width = colours([*widths, *widths])
    assert list(by_width) == widths
    assert len(set(by_width.values())) == len(widths)


def test_a_sweep_that_cannot_be_shown_is_an_error(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    store(record, [])
    folder = f"{tmp_path}/runs/planted"

    def error_of(sweep: str, overrides: list[str] | None = None, port: int = 5000) -> str:
        with pytest.raises(SpecError) as caught:
            ui(sweep, overrides, port)
        (line,) = caught.value.problems
        return line

    assert "name=x" in error_of(folder, ["name=x"])
    assert f"{tmp_path}/runs" in error_of(f"{tmp_path}/runs")
    assert "raycap sync" in error_of(folder)
    Tracker(record)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = sock.getsockname()[1]
        assert error_of(folder, port=port).startswith(f"--port: {port} ")
