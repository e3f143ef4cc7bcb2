"""Faults of the storage while a sweep runs: folders that vanish and locks that are taken over."""

import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

import mlflow
import pytest
from rich.console import Console

from raycap import pipeline
from raycap.storage import Storage, claims
from raycap.storage.claims import Holder
from tests.support.faults import last_step, wait_until
from tests.support.object_store import Faults, ObjectStore

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

SPEC = """\
# Does a sweep survive faults of its storage?
name: faults
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 30000}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
execution: {checkpoint_every_s: 0.2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*overrides: str, **options: Any) -> int:
    return pipeline.run_spec("spec.yaml", overrides, Console(width=160, file=sys.stdout), time.monotonic(), **options)


def statuses(folder: Path) -> list[str]:
    """Return the statuses of MLflow's runs of the sweep."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("raycap").experiment_id
    return [run.info.status for run in client.search_runs([experiment])]


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["deleted", "taken"])
def test_a_sweep_that_loses_its_lock_stops(
    folder: Path, loss: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.5)
    storage = folder / "runs"

    def lose() -> None:
        wait_until(lambda: last_step(storage) > 100, 200)
        if loss == "deleted":
            storage.rename(folder / "deleted")  # at once, so that the deletion does not run into a checkpoint
            shutil.rmtree(folder / "deleted")
        else:
            successor = Holder.of_this_process().model_copy(update={"host": "elsewhere", "pid": 77})
            (storage / f"faults/lock/000099-{'a' * 32}.json").write_text(successor.model_dump_json())

    fault = threading.Thread(target=lose)
    fault.start()
    code = run()
    fault.join()
    output = capsys.readouterr().out
    assert code == 1
    assert "Stopping: " in output
    assert "python -m raycap.sweep spec.yaml" in output
    assert "trials failed" not in output
    if loss == "deleted":
        assert str(storage / "faults") in output
        assert not storage.exists()
        assert set(statuses(folder)) == {"KILLED"}
    else:
        assert "process 77 of" in output
        assert [path.name for path in (storage / "faults/lock").iterdir()] == [f"000099-{'a' * 32}.json"]
        assert "RUNNING" in statuses(folder)  # the successor closes the runs


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [{"error_rate": 1.0, "status": 403}, {"down": True}, {"error_rate": 1.0, "status": 404}]
)
def test_no_trial_fails_while_an_object_store_is_away(
    folder: Path, s3: ObjectStore, fault: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Some of twenty trials run and the others wait when the store refuses everything for a minute."""
    uri = s3.uri(f"{folder.name}/runs")
    storage = Storage.at(uri)

    def interrupt() -> None:
        wait_until(lambda: num_finished(storage) >= 2, 200)
        for name, value in fault.items():
            setattr(s3.faults, name, value)
        time.sleep(60)
        for name in fault:
            setattr(s3.faults, name, getattr(Faults(), name))

    outage = threading.Thread(target=interrupt)
    outage.start()
    code = run(f"storage={uri}", "grid.training.seed=[0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19]",
               "trial.training.length={steps: 400}")  # fmt: skip
    outage.join()
    assert code == 0
    assert "failed after" not in capsys.readouterr().out
    assert num_finished(storage) == 20


def num_finished(storage: Storage) -> int:
    """Return the number of trials with a result; 0 while the storage does not answer."""
    try:
        return sum("result.json" in names for names in storage.folders("trials").values())
    except OSError:
        return 0
