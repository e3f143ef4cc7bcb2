"""Complete small sweeps through Ray Tune, Ray Train, Ray Data and MLflow."""

import json
import shlex
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from mlflow.entities import Run
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import raycap
from raycap import pipeline
from raycap.commands import sweeps
from raycap.learner.trial import run_trial
from raycap.plan.inventory import inventory
from raycap.results import TrialResult
from raycap.spec import Kind
from tests.support.faults import results_in
from tests.support.simulated_cluster import free_port

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

SPEC = """\
# Do all parts work together?
name: small
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training:
    length: {steps: 60}
    batch_size: 32
    num_evaluations: 3
    optimizer: {lr: 0.02, warmup_steps: 5}
grid:
  training.seed: [0, 1, 2]
"""

FILL = """\
# Does the model forget the first population when it learns a second one?
name: filled
trial:
  questions: {hops: [1, 2]}
  training: {length: {steps: 20}, batch_size: 32, num_evaluations: 1}
  fill:
    parent: {trial_id: PARENT}
    profiles: {num_profiles: 50, num_relations: 4, names: {first: 8, middle: 8, last: 8}, seed: 1}
    weights: [1, 3]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*overrides: str) -> int:
    return pipeline.run_spec("spec.yaml", overrides, Console(width=160), time.monotonic())


def train_in_process(overrides: tuple[str, ...]) -> list[TrialResult]:
    """Train each trial of the sweep on its own in this process, without Ray."""
    planned = pipeline.prepare("spec.yaml", overrides)[0].trials
    return [run_trial(trial.spec, source_commit="").result for trial in planned]


def read_summary(folder: Path, name: str = "small") -> dict:
    return json.loads((folder / "runs" / name / "summary.json").read_text())


def mlflow_runs(folder: Path) -> tuple[Run, dict[str, Run]]:
    """Return the parent run, and the child runs by trial_id."""
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("raycap").experiment_id])
    parents = [r for r in found if "raycap.sweep" in r.data.tags]
    children = {r.data.tags["raycap.trial_id"]: r for r in found if "mlflow.parentRunId" in r.data.tags}
    assert len(parents) == 1
    assert len(children) == len(found) - 1, "a trial has two runs"
    assert all(r.data.tags["mlflow.parentRunId"] == parents[0].info.run_id for r in children.values())
    return parents[0], children


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the content of the files directly in a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_sweep_trains_missing_trials_and_runs_from_spec_to_law(folder: Path) -> None:
    trained_before = raycap.run_trial(pipeline.prepare("spec.yaml", ())[0].trials[0].spec, storage="runs")
    (stored,) = folder.glob("runs/trials/*/result.json")
    stamp = stored.stat().st_mtime_ns
    assert run() == 0
    assert stored.stat().st_mtime_ns == stamp
    found = results_in(folder / "runs")
    summary = read_summary(folder)
    assert {trial["trial_id"] for trial in summary["trials"]} == set(found) > {trained_before.trial_id}
    assert [trial["state"] for trial in summary["trials"]] == ["finished"] * 3
    for trial in summary["trials"]:
        result = found[trial["trial_id"]]
        assert trial["loss_bits"] == pytest.approx({"one_hop": result.final.losses.select(Kind.ONE_HOP).mean_bits})
        assert len(result.evaluations) == 3
        assert result.final.step == 60
    for name in ("capacity.png", "exposures.svg", "report.html", "capacity.csv", "capacity.parquet"):
        assert (folder / "runs" / "small" / name).stat().st_size > 0
    assert not list((folder / "runs").rglob("*.tmp"))

    parent, children = mlflow_runs(folder)
    assert parent.info.status == "FINISHED"
    assert "Do all parts work together?" in parent.data.tags["mlflow.note.content"]
    assert set(children) == set(found)
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    assert {"report.html", "capacity.png", "summary.json", "sweep.json"} <= {
        artifact.path for artifact in client.list_artifacts(parent.info.run_id)
    }
    for trial_id, child in children.items():
        assert child.info.status == "FINISHED"
        assert child.data.params["model.hidden_size"] == "8"
        history = client.get_metric_history(child.info.run_id, "loss/one_hop_bits")
        assert [(point.step, point.value) for point in history] == [
            (e.step, pytest.approx(e.losses.select(Kind.ONE_HOP).mean_bits)) for e in found[trial_id].evaluations
        ]
        assert "final/capacity/bits_per_param" in child.data.metrics

    model_folder = folder / "runs" / "trials" / next(iter(found)) / "model"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)
    assert model.num_parameters() == next(iter(found.values())).parameters.total
    assert tokenizer("Question: What was James John Smith's parent? Answer:")["input_ids"]

    before = files_in(folder / "runs" / "small")
    sweeps.report(str(folder / "runs" / "small"))
    after = files_in(folder / "runs" / "small")
    assert set(before) == set(after)
    assert [
        name for name in before if before[name] != after[name]
    ] == []  # the actor and the command write the same files


@pytest.mark.slow
def test_a_finished_sweep_trains_nothing_and_a_larger_one_only_what_is_missing(folder: Path) -> None:
    assert run() == 0
    stamps = {path: path.stat().st_mtime_ns for path in folder.glob("runs/trials/*/result.json")}
    assert run() == 0
    assert run("grid.training.seed=[0, 1, 2, 3]") == 0
    assert len(results_in(folder / "runs")) == 4
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    _, children = mlflow_runs(folder)
    assert len(children) == 4
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    for child in children.values():
        assert len(client.get_metric_history(child.info.run_id, "train/exposures")) == 3


@pytest.mark.slow
def test_a_trial_that_raises_does_not_affect_the_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = ("grid.training.optimizer.lr=[0.02, 1e30]", "grid.training.seed=[0]", "trial.training.optimizer.grad_clip=1e30",
              "trial.training.optimizer.warmup_steps=0")  # fmt: skip
    assert run(*broken) == 1
    output = capsys.readouterr().out
    assert "1 of 2 trials failed" in output
    assert "DivergedError" in output
    states = {trial["state"] for trial in read_summary(folder)["trials"]}
    assert states == {"finished", "failed"}
    parent, children = mlflow_runs(folder)
    assert parent.info.status == "FAILED"
    assert sorted(child.info.status for child in children.values()) == ["FAILED", "FINISHED"]
    assert f"python -m raycap.sweep {shlex.join(['spec.yaml', *broken])} --only-failed" in output
    found = inventory(*pipeline.prepare("spec.yaml", broken))
    failed, finished = sorted(map(str, found.states.values()))
    assert "DivergedError" in failed
    assert finished == "finished"


@pytest.mark.slow
def test_two_workers_train_like_one_and_two_hop_sweeps_run(folder: Path) -> None:
    two_hop = (
        "name=two",
        "trial.questions={hops: [1, 2], one_hop_share: 0.25, held_out: {tuples: 0.1}}",
        "trial.training.curriculum=[{weights: [1, 0], until: {loss_below_bits: 1000}}]",
        "trial.training.length={steps: 130}",
        "trial.profiles.num_profiles=200",
        "trial.profiles.num_relations=4",
        "grid.training.seed=[0]",
        "analysis.schemes=[optimal, 2-hop-double, 2-hop-big-hash]",
    )
    assert run(*two_hop, "execution={num_workers: 2, cpus_per_worker: 0.9}") == 0
    (by_two,) = results_in(folder / "runs").values()
    (by_one,) = train_in_process(two_hop)
    assert (by_one.num_workers, by_two.num_workers) == (1, 2)
    assert by_one.trial_id == by_two.trial_id  # the id does not depend on the execution
    for a, b in zip(by_one.evaluations, by_two.evaluations, strict=True):
        assert b.train_loss_bits == pytest.approx(a.train_loss_bits, rel=1e-3)
        for row, other in zip(a.losses.rows, b.losses.rows, strict=True):
            assert (row.key, row.num_evaluated) == (other.key, other.num_evaluated)
            assert other.mean_bits == pytest.approx(row.mean_bits, rel=2e-2)
    assert by_two.final.losses.kinds == (Kind.ONE_HOP, Kind.TWO_HOP)
    two_hop_rows = [row for row in by_two.final.losses.rows if row.kind is Kind.TWO_HOP]
    assert sum(row.num_texts for row in two_hop_rows) == 200 * 4 * 8
    assert [e.phase for e in by_one.evaluations][-1] == 1
    # A fill trial continues from a finished trial with a second population, and its sweep measures both.
    (folder / "fill.yaml").write_text(FILL.replace("PARENT", by_two.trial_id))
    assert pipeline.run_spec("fill.yaml", (), Console(quiet=True), time.monotonic()) == 0
    (filled,) = read_summary(folder, "filled")["trials"]
    assert set(filled["loss_bits"]) == set(filled["second_loss_bits"]) == {"one_hop", "two_hop"}

    trial = read_summary(folder, "two")["trials"][0]
    assert set(trial["loss_bits"]) == {"one_hop", "two_hop"}
    assert set(trial["generalisation_bits"]) == {"train", "tuples"}
    assert set(trial["learned_bits"]) == {"optimal", "2-hop-double", "2-hop-big-hash"}
    assert np.isfinite(trial["learned_bits"]["2-hop-big-hash"]["set"])


@pytest.mark.slow
def test_replicas_train_as_one_stack_and_have_one_result_each(folder: Path) -> None:
    seeds = ("grid.training.seed=[0, 1]", "grid.training.optimizer.lr=[0.02, 0.01]")
    assert run(*seeds, "execution.replicas=4") == 0
    stacked = results_in(folder / "runs")
    single = {result.trial_id: result for result in train_in_process(seeds)}
    assert stacked.keys() == single.keys()
    assert len(stacked) == 4
    for trial_id, result in stacked.items():
        for a, b in zip(result.evaluations, single[trial_id].evaluations, strict=True):
            assert a.losses.mean_bits == pytest.approx(b.losses.mean_bits, rel=1e-4)
        assert (folder / "runs" / "trials" / trial_id / "model" / "model.safetensors").exists()
        assert not list((folder / "runs" / "trials" / trial_id).glob("checkpoint-*"))
    client = mlflow.MlflowClient("sqlite:///mlflow.db")
    _, children = mlflow_runs(folder)
    assert children.keys() == stacked.keys()
    for child in children.values():
        assert child.info.status == "FINISHED"
        assert len(client.get_metric_history(child.info.run_id, "train/exposures")) == 3


@pytest.mark.slow  # tested faster for single trials above, and without Ray in learner/test_replicas.py
def test_a_replica_that_diverges_fails_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    diverging = ("grid.training.optimizer.lr=[0.02, 1e30]", "grid.training.seed=[0]",
                 "trial.training.optimizer.grad_clip=1e30",
                 "trial.training.optimizer.warmup_steps=0", "execution.replicas=2")  # fmt: skip
    assert run(*diverging) == 1
    assert "DivergedError" in capsys.readouterr().out
    assert {trial["state"] for trial in read_summary(folder)["trials"]} == {"finished", "failed"}


def test_resources_that_the_cluster_can_never_have_are_refused(folder: Path) -> None:
    arithmetic = r"8 workers, each with 64 CPUs and 0 GPUs .*512 and 0.*room for 0 workers"
    with pytest.raises(pipeline.SpecError, match=arithmetic):
        run("execution={num_workers: 8, cpus_per_worker: 64}")
    assert not (folder / "runs" / "trials").exists()


@pytest.mark.parametrize(
    "uri", ["sqlite:///file/mlflow.db", pytest.param("http://127.0.0.1:{port}", marks=pytest.mark.slow)]
)
def test_unusable_mlflow_is_reported_before_any_trial_starts(folder: Path, uri: str) -> None:
    (folder / "file").write_text("not a folder")
    with pytest.raises(pipeline.SpecError, match="MLflow"):
        run(f"tracking.uri={uri.format(port=free_port())}")
    assert not (folder / "runs" / "trials").exists()
