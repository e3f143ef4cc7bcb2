"""Sweeps that end by their budget, and trials that are stopped early."""

import sys
import time
from pathlib import Path

import pytest
from ray.util.placement_group import placement_group_table
from rich.console import Console

from raycap import pipeline
from raycap.cluster.budget import UNBOUNDED, Budget
from raycap.learner.trial import run_trial
from raycap.results import StopReason
from raycap.storage.sweep_folder import SweepFolder
from tests.support.faults import last_step, results_in

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

SPEC = """\
# How far do trials get?
name: steered
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 40000}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
execution: {max_concurrent_trials: 1}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*overrides: str, budget: Budget = UNBOUNDED) -> int:
    console = Console(width=160, file=sys.stdout)
    return pipeline.run_spec("spec.yaml", overrides, console, time.monotonic(), budget=budget)


@pytest.mark.slow
def test_a_trial_pauses_when_the_budget_is_spent_and_resumes_later(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long, seconds = "trial.training.length={steps: 6000}", 10.0
    while not last_step(folder / "runs"):  # on a busy machine, the workers take longer to start
        assert run(long, budget=Budget(seconds=seconds)) == pipeline.EXIT_BUDGET
        assert "The budget is spent: 1 of 1 trials" in capsys.readouterr().out
        seconds *= 2
    assert last_step(folder / "runs") < 6000
    assert run(long) == 0
    assert "resumable at" in capsys.readouterr().out
    (result,) = results_in(folder / "runs").values()
    alone = run_trial(result.spec, source_commit="test").result
    assert [evaluation.losses for evaluation in result.evaluations] == [e.losses for e in alone.evaluations]


@pytest.mark.slow
def test_no_trial_starts_that_would_exceed_the_budget(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The duration of the first trial predicts that the others take more than the remaining budget."""
    three = ("trial.training.length={steps: 9000}", "grid.training.seed=[0, 1, 2]")  # longer than their start
    began = time.monotonic()
    assert run(*three, "grid.training.seed=[7]") == 0
    alone = time.monotonic() - began
    capsys.readouterr()
    assert run(*three, budget=Budget(seconds=1.4 * alone)) == pipeline.EXIT_BUDGET
    output = capsys.readouterr().out
    assert output.count(": started") == output.count(": finished") == 1
    assert "The budget is spent: 2 of 3 trials" in output
    assert not list((folder / "runs").rglob("checkpoint-*"))


@pytest.mark.slow
def test_a_budget_of_money_counts_the_runs_before(folder: Path) -> None:
    prices = "execution.prices={default: 360}"  # 0.1 dollars per second
    assert run(prices, budget=Budget(usd=3)) == pipeline.EXIT_BUDGET
    spent, step = SweepFolder.at("runs/steered").read_cost(), last_step(folder / "runs")
    assert spent.spent_usd >= spent.budget_usd == 3
    assert 0 < step < 40000
    assert run(prices, budget=Budget(usd=3)) == pipeline.EXIT_BUDGET
    assert last_step(folder / "runs") == step  # nothing was trained
    assert SweepFolder.at("runs/steered").read_cost().spent_usd > spent.spent_usd


def test_money_without_prices_is_refused(folder: Path) -> None:
    with pytest.raises(pipeline.SpecError, match="--budget"):
        run(budget=Budget(usd=3))


def test_gpu_hours_of_trials_without_gpus_are_refused(folder: Path) -> None:
    with pytest.raises(pipeline.SpecError, match="--budget"):
        run(budget=Budget(gpu_seconds=3600))


@pytest.mark.slow
def test_exhausted_trials_end_early_and_are_finished(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All placement groups are removed afterwards."""
    early = ("execution.early_stop=[exhausted]", "trial.training.num_evaluations=8", "trial.model.hidden_size=32",
             "trial.profiles.num_profiles=20", "trial.training.length={steps: 4000}", "trial.training.batch_size=128",
             "trial.training.optimizer.lr=0.003")  # fmt: skip
    assert run(*early) == 0
    (result,) = results_in(folder / "runs").values()
    assert result.stop_reason is StopReason.EARLY
    assert result.num_steps == result.final.step < 4000
    assert not list((folder / "runs").rglob("checkpoint-*"))
    assert {group["state"] for group in placement_group_table().values()} == {"REMOVED"}
    capsys.readouterr()
    assert run(*early) == 0
    output = capsys.readouterr().out
    assert "finished early" in output
    assert "started" not in output
