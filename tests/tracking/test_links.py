"""raycap ui: the page that MLflow shows of a sweep, in a real browser, and how it is asked for."""

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

from raycap.cluster.analyst import sync
from raycap.commands.ui import ui
from raycap.spec.file import SpecError
from raycap.tracking.links import VIEW_TAG, colours, shared_view
from raycap.tracking.tracker import Tracker, find_pages
from tests.support import planted
from tests.support.browser import CHROMIUM, TEXT, chromium
from tests.support.mlflow_runs import placed, runs_of, store, trained, wait_until

ROOT = Path(__file__).parent.parent.parent
RAYCAP = [sys.executable, "-c", "from raycap.cli import main; main()"]
COLUMNS = "[...document.querySelectorAll('.ag-header-cell')].map(cell => cell.innerText)"


@contextmanager
def served(*arguments: str, browser: Path) -> Iterator[list[str]]:
    """`raycap ui` as long as it is wanted, and the links that it prints; what it opens, it opens with a program."""
    server = subprocess.Popen(
        [*RAYCAP, "ui", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT,
        env=os.environ | {"BROWSER": f"{browser} %s"},
    )  # fmt: skip
    try:
        yield [server.stdout.readline().split()[-1] for _ in range(2)]
    finally:
        server.send_signal(signal.SIGTERM)  # to it alone: it has to end the server that it started
        assert server.wait(30) == 0
        server.stdout.close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_a_browser_shows_the_trials_side_by_side_and_the_figure(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db", widths=(10, 12, 14, 16), seeds=(0, 1))
    store(record, trained(record))
    assert sync(record).problems == ()
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
            assert "1.80 bits per parameter, 95 % interval" in shown
            assert all(label in shown for label in labels)
    with socket.socket() as one:
        assert one.connect_ex(("127.0.0.1", port)) != 0  # nobody is left behind


def rgb(colour: str) -> str:
    """#440154 as a browser says it."""
    return f"rgb({', '.join(str(int(colour[place : place + 2], 16)) for place in (1, 3, 5))})"


def test_without_a_shared_view_the_link_says_what_to_show(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    Tracker(record, record.spec.tracking)
    client, parent, _ = runs_of(record)
    asked = (record.spec.tracking, "planted", record.spec.storage)
    link = find_pages(*asked).comparison("http://here")
    assert link.startswith(f"http://here/#/experiments/{parent.info.experiment_id}/runs?viewStateShareKey=")
    assert "searchFilter" not in link  # beside which MLflow passes over the shared view
    client.delete_experiment_tag(parent.info.experiment_id, f"{VIEW_TAG}{parent.info.run_id}")
    link = find_pages(*asked).comparison("http://here")
    assert f"searchFilter=tags.mlflow.parentRunId%20%3D%20%27{parent.info.run_id}%27" in link
    assert "viewStateShareKey" not in link


def test_the_shared_view_has_what_was_varied_in_columns_and_fits_a_tag() -> None:
    record = planted.sweep([12, 14])
    trial = record.trials[0]
    several = trial.model_copy(update={"coordinates": trial.coordinates | {"training.optimizer": {"lr": 0.1}}})
    view = shared_view(record.model_copy(update={"trials": (several,)}), "0" * 32)
    assert len(view) < 2000  # an experiment's tag holds 5000 characters
    kind, packed = view.split(";")
    told = json.loads(zlib.decompress(base64.b64decode(packed)))
    assert kind == "deflate"
    varied = [column for column in told["selectedColumns"] if column.startswith("params.")]
    assert {"params.`model.hidden_size`", "params.`training.seed`", "params.`training.optimizer.lr`"} <= set(varied)
    assert not any("tie_embeddings" in column for column in varied)


def test_every_width_has_a_colour_of_its_own() -> None:
    widths = [8, 16, 32, 64, 128, 256, 512, 1024]
    of_width = colours([*widths, *widths])
    assert list(of_width) == widths
    assert len(set(of_width.values())) == len(widths)
    assert of_width[8] == "#440154"  # dark where they are small


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    record = placed(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    store(record, [])
    folder = f"{tmp_path}/runs/planted"

    def told(sweep: str, overrides: list[str] | None = None, port: int = 5000) -> str:
        with pytest.raises(SpecError) as caught:
            ui(sweep, overrides, port)
        (line,) = caught.value.problems
        return line

    assert "overrides belong to a spec, but this is a folder; leave name=x out" in told(folder, ["name=x"])
    assert "not the folder of a sweep that has run" in told(f"{tmp_path}/runs")
    assert "no sweep 'planted'" in told(folder)
    Tracker(record, record.spec.tracking)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        port = one.getsockname()[1]
        assert told(folder, port=port) == f"--port: {port} cannot be used (Address already in use); take another"
