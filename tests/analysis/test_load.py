"""Tests of `raycap.load`, which gives notebooks a sweep's results without Ray and MLflow."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import raycap
from raycap import pipeline
from raycap.commands.arguments import open_sweep
from raycap.results import Failure, SweepRecord, TrialResult
from raycap.spec.file import SpecError
from raycap.storage import Storage, failure_path, result_path
from raycap.storage.checksum import with_checksum
from raycap.terminal.status import read_status
from tests.support import planted

ROOT = Path(__file__).parents[2]
WIDTHS = [12, 16, 20]


def sweep_at(folder: Path, stored: slice = slice(None)) -> tuple[SweepRecord, list[TrialResult]]:
    """Store a sweep of six trials named grid, with some of their results, under runs/ of a folder."""
    record = planted.sweep(WIDTHS, seeds=(0, 1), name="grid")
    storage = Storage.at(f"{folder}/runs")
    storage.write("grid/sweep.json", record.model_dump_json())
    storage.write("grid/run.json", planted.RUN.model_dump_json())
    results = list(planted.results(record, 1.8).values())[stored]
    for result in results:
        storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json()))
    return record, results


def test_the_notebook_example_of_the_readme_runs(tmp_path: Path) -> None:
    sweep_at(tmp_path)
    (lines,) = re.findall(r"```python\n(import raycap\n.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(list(filter(None, lines.splitlines()))) == 5
    loaded = "import sys; print([m for m in ('torch', 'ray', 'mlflow', 'transformers') if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", f"{lines}{loaded}"], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert run.returncode == 0, run.stderr
    *shown, heavy_modules = run.stdout.splitlines()
    assert heavy_modules == "[]"
    rows = [line.split()[:2] for line in shown]
    assert all([str(width), "1.8"] in rows for width in WIDTHS)
    assert (tmp_path / "capacity.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.slow
def test_a_copied_folder_is_a_sweep_of_its_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep_at(tmp_path)
    shutil.copytree(tmp_path / "runs/grid", tmp_path / "runs/before [1]")
    (tmp_path / "runs/grid/summary.json").write_text("of grid")
    monkeypatch.chdir(tmp_path / "runs/before [1]")
    assert raycap.load(".").answer == raycap.load("../grid/").answer
    for folder in (".", str(tmp_path / "runs/before [1]/")):
        sweep, storage = open_sweep(folder)
        assert (sweep.spec.name, storage.root) == ("before [1]", f"{tmp_path}/runs")
        assert {line.state for line in read_status(sweep, storage).rows} == {"finished"}
    pipeline.write_report(sweep, storage)
    assert Path("report.html").exists()
    assert Path("../grid/summary.json").read_text() == "of grid"
    with pytest.raises(SpecError, match=r"sweep\.json"):
        open_sweep("..")
    with pytest.raises(SpecError, match=r"^foo://a/b: .*'foo://a'"):
        open_sweep("foo://a/b")


def test_importing_raycap_imports_no_heavy_module() -> None:
    code = "import sys, raycap; print([m for m in ('numpy', 'pydantic', 'pandas', 'pyarrow') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


def test_frames_hold_the_stored_results(tmp_path: Path) -> None:
    record, results = sweep_at(tmp_path)
    sweep = raycap.load(tmp_path / "runs/grid")
    assert (sweep.name, len(sweep.trials), len(sweep.evaluations), len(sweep.laws)) == ("grid", 18, 36, 3)
    assert list(sweep.trials)[:7] == [
        "trial_id", "label", "state", "scheme", "selection", "model.hidden_size", "training.seed",
    ]  # fmt: skip
    one = sweep.trials[sweep.trials["selection"] == "enumerate"]
    assert list(one["trial_id"]) == [trial.trial_id for trial in record.trials]
    assert one["bits_per_param"].to_list() == pytest.approx([1.8] * 6)
    assert one["num_params"].to_list() == [trial.parameters.total for trial in record.trials]
    assert (one["learned_bits"] / one["num_params"]).to_list() == pytest.approx([1.8] * 6)
    assert set(one["state"]) == {"finished"}
    assert one["excluded"].isna().all()
    curve = sweep.evaluations.query("selection == 'enumerate' and trial_id == @results[0].trial_id")
    assert curve["step"].to_list() == [e.step for e in results[0].evaluations]
    assert curve["bits_per_param"].iloc[-1] == pytest.approx(1.8)
    assert curve["bits_per_param"].iloc[0] < 1.8
    (law,) = sweep.laws.query("selection == 'enumerate'").to_dict("records")
    assert (law["alpha"], law["num_trials"], law["status"]) == (pytest.approx(1.8), 6, "ok")
    assert "1.80" in sweep.answer


@pytest.mark.parametrize("num_finished", [0, 1])
def test_a_sweep_with_few_results_can_be_loaded(tmp_path: Path, num_finished: int) -> None:
    record, _ = sweep_at(tmp_path, slice(num_finished))
    failed = record.trials[5].trial_id
    failure = Failure(trial_id=failed, cause="OSError: gone", traceback="")
    Storage.at(f"{tmp_path}/runs").write(failure_path(failed), failure.model_dump_json())
    sweep = raycap.load(f"{tmp_path}/runs/grid/")
    states = sweep.trials.drop_duplicates("trial_id")["state"].to_list()
    assert states == ["finished"] * num_finished + ["missing"] * (5 - num_finished) + ["failed"]
    assert sweep.trials["learned_bits"].isna().sum() == 3 * (6 - num_finished)
    assert len(sweep.evaluations) == 3 * 2 * num_finished
    assert pd.api.types.is_float_dtype(sweep.trials["learned_bits"])
    assert sweep.figure("capacity").axes
    assert f"{num_finished} of 6 trials finished" in repr(sweep)


def test_loading_names_the_missing_or_invalid_file_and_figure(tmp_path: Path) -> None:
    sweep_at(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"runs: .*sweep\.json"):
        raycap.load(tmp_path / "runs")
    with pytest.raises(ValueError, match="nowhere://else"):
        raycap.load("nowhere://else/grid")
    sweep = raycap.load(tmp_path / "runs/grid")
    with pytest.raises(ValueError, match=r"'capacities'.*capacity, .*law"):
        sweep.figure("capacities")
    with pytest.raises(ValueError, match=r"'phase_map'.*grid"):
        sweep.figure("phase_map")
    (tmp_path / "runs/grid/sweep.json").write_text('{"question": ""}')
    with pytest.raises(ValueError, match=r"grid/sweep.json: spec: "):
        raycap.load(tmp_path / "runs/grid")
