"""Sweeps that are run from Python have the files of those that the command runs."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

import raycap
from raycap import pipeline
from raycap.storage.checksum import verify_checksum
from tests.support.notebook import run_notebook

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("ray_instance")]

TREE = {
    "name": "small",
    "trial": {
        "profiles": {"num_profiles": 60, "num_relations": 2, "names": {"first": 8, "middle": 8, "last": 8}},
        "model": {"num_layers": 1, "hidden_size": 8, "tie_embeddings": True, "heads": {"num_heads": 1}},
        "training": {
            "length": {"steps": 60},
            "batch_size": 32,
            "num_evaluations": 3,
            "optimizer": {"lr": 0.02, "warmup_steps": 5},
        },
    },
    "grid": {"training.seed": [0, 1]},
}
MEASURED_TIMES = {"train_seconds"}
"""Fields of an evaluation that differ from run to run."""


def results(folder: Path) -> dict[str, dict]:
    """Return the stored results by trial id, without times and provenance."""
    found = {}
    for path in sorted(folder.glob("runs/trials/*/result.json")):
        result = json.loads(verify_checksum(path.read_bytes()))
        del result["provenance"]
        result["evaluations"] = [
            {name: value for name, value in each.items() if name not in MEASURED_TIMES}
            for each in result["evaluations"]
        ]
        found[path.parent.name] = result
    return found


def names(folder: Path) -> set[str]:
    """Return the paths of all files under runs/."""
    return {str(path.relative_to(folder)) for path in folder.glob("runs/**/*") if path.is_file()}


def test_the_command_and_both_ways_in_python_leave_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = {name: tmp_path / name for name in ("command", "sweep", "trials")}
    for name, folder in folders.items():
        folder.mkdir()
        monkeypatch.chdir(folder)
        sweep = raycap.Sweep.from_dict(TREE, question="Do both ways agree?")
        if name == "command":
            Path("small.yaml").write_text(sweep._loaded.text)
            assert pipeline.run_spec("small.yaml", (), Console(quiet=True), time.monotonic()) == 0
            continue
        if name == "trials":
            for trial in sweep.trials:
                raycap.run_trial(trial.spec, storage="runs")
        found = sweep.run(quiet=True)  # with all trials trained already, without Ray
        assert set(found.trials["state"]) == {"finished"}
        assert found.answer == sweep.report().answer
    assert len(results(folders["command"])) == 2
    assert results(folders["command"]) == results(folders["sweep"]) == results(folders["trials"])
    assert names(folders["command"]) == names(folders["sweep"])
    assert names(folders["command"]) >= names(folders["trials"])  # Ray Train writes a few files of its own
    for path in folders["command"].glob("runs/trials/*/model/*"):
        same = path.relative_to(folders["command"])
        assert path.read_bytes() == (folders["sweep"] / same).read_bytes() == (folders["trials"] / same).read_bytes()


def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    sweep = raycap.Sweep.from_dict(TREE, "trial.training.length.steps=20000")

    def interrupt() -> None:
        while not list(tmp_path.glob("runs/trials/*/checkpoint*")):
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        sweep.run(quiet=True)
    assert set(sweep.plan()["state"]) <= {"resumable", "new"}
    assert "resumable" in set(sweep.plan()["state"])


MODULE = """\
import torch
from raycap.facts.biographies import BiographyCorpus
from raycap.spec import Biographies

class OwnTexts(BiographyCorpus):
    pass

def texts(profiles, per_person):
    return OwnTexts(profiles, Biographies(kind="biographies", per_person=per_person))

def sgd(groups, momentum):
    return torch.optim.SGD(groups, momentum=momentum)

def falling(step, num_steps):
    return 1 - step / num_steps
"""


def test_workers_find_modules_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("own_of_ray.py").write_text(MODULE)
    schedule = {"function": "own_of_ray:falling"}
    sgd = {"kind": "custom", "function": "own_of_ray:sgd", "options": {"momentum": 0.9}, "schedule": schedule}
    own = {
        "questions": {"kind": "custom", "function": "own_of_ray:texts", "per_person": 2},
        "training": TREE["trial"]["training"] | {"optimizer": sgd},
    }
    sweep = raycap.Sweep.from_dict(TREE | {"trial": TREE["trial"] | own})
    sweep.run(quiet=True)
    found = results(tmp_path)
    assert len(found) == 2
    for trial in sweep.trials:
        here = raycap.run_trial(trial.spec)
        losses = [json.loads(each.losses.model_dump_json()) for each in here.evaluations]
        assert [each["losses"] for each in found[trial.trial_id]["evaluations"]] == losses


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    variables = run_notebook()
    assert set(variables["results"].trials["state"]) == {"finished"}
