"""Fault injection: after each fault no result is lost, no trial is trained twice, and no number changes."""

import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console

from raycap import pipeline
from raycap.cluster.analyst import AnalystActor
from raycap.cluster.signals import send_signal
from raycap.cluster.tuner import _drive_trials
from raycap.cluster.worker import WorkerConfig
from raycap.export.dataset import to_dataset
from raycap.facts.profiles import census_schema, generate
from raycap.learner.signals import Signal
from raycap.learner.trial import run_trial
from raycap.spec import NamePools
from raycap.storage import result_path
from tests.support.faults import (
    DRIVER,
    WORKER,
    kill,
    last_step,
    processes,
    resize,
    results_in,
    small_disk,
    wait_until,
    without_timing,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_instance")]

SPEC = """\
# Does a sweep survive faults?
name: faults
trial:
  profiles: {num_profiles: 60, num_relations: 2, names: {first: 8, middle: 8, last: 8}}
  model: {num_layers: 1, hidden_size: 8, tie_embeddings: true, heads: {num_heads: 1}}
  training: {length: {steps: 3000}, batch_size: 32, num_evaluations: 3, optimizer: {lr: 0.02, warmup_steps: 5}}
execution: {checkpoint_every_s: 0.2}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*overrides: str, **options: Any) -> int:
    return pipeline.run_spec("spec.yaml", overrides, Console(width=160, file=sys.stdout), time.monotonic(), **options)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["true", "false"])
def test_a_trial_whose_worker_and_driver_are_killed_ends_bit_equal(folder: Path, reuse: str) -> None:
    """If workers are reused, the driver is also the controller of Ray Train (see cluster/worker_reuse.py)."""
    storage, killed = folder / "runs", []

    def inject_faults() -> None:
        for kind in (WORKER, DRIVER):
            before = last_step(storage)
            wait_until(lambda before=before: last_step(storage) > before + 100)
            killed.append((kind, last_step(storage), kill(kind)))
            killed_at, step = time.monotonic(), last_step(storage)
            wait_until(lambda step=step: last_step(storage) > step)
            print(f"{kind}: the next checkpoint came {time.monotonic() - killed_at:.1f} s after it was killed")

    faults = threading.Thread(target=inject_faults)
    faults.start()
    code = run(f"execution.reuse_workers={reuse}")
    faults.join()
    assert code == 0
    assert [(kind, number) for kind, _, number in killed] == [(WORKER, 1), (DRIVER, 1)]
    assert 0 < killed[0][1] < killed[1][1] < 3000
    ((trial_id, result),) = results_in(storage).items()
    undisturbed = run_trial(result.spec, source_commit="test").result
    assert without_timing(result) == without_timing(undisturbed)
    assert not list((storage / "trials" / trial_id).glob("checkpoint-*"))


@pytest.mark.slow
@pytest.mark.parametrize("after", ["steps", "nothing"])
def test_a_driver_that_is_killed_more_often_than_allowed_fails_its_trial_with_the_cause(
    folder: Path, capsys: pytest.CaptureFixture[str], after: str
) -> None:
    storage = folder / "runs"

    def inject_fault() -> None:
        wait_until(lambda: last_step(storage) > 0 if after == "steps" else processes(DRIVER))
        kill(DRIVER)

    fault = threading.Thread(target=inject_fault)
    fault.start()
    code = run("execution.max_failures=0")
    fault.join()
    assert code == 1
    output = capsys.readouterr().out
    assert "1 of 1 trials failed" in output
    assert "died" in output
    assert not results_in(storage)
    assert len(list(storage.glob("trials/*/failure.json"))) == 1
    assert run("execution.max_failures=0") == 0  # the same command tries again
    assert len(results_in(storage)) == 1


@pytest.mark.slow
def test_a_trial_that_begins_with_reused_workers_and_ends_with_new_ones_is_bit_equal(folder: Path) -> None:
    storage = folder / "runs"

    def pause() -> None:
        wait_until(lambda: last_step(storage) > 100)
        send_signal(Signal.PAUSE)

    pausing = threading.Thread(target=pause)
    pausing.start()
    assert run("execution.reuse_workers=true") == 130
    pausing.join()
    assert 100 < last_step(storage) < 3000
    assert run("execution.reuse_workers=false") == 0
    (result,) = results_in(storage).values()
    assert without_timing(result) == without_timing(run_trial(result.spec, source_commit="test").result)


@pytest.mark.slow
@pytest.mark.parametrize("reuse", ["true", "false"])
def test_a_repeated_error_is_not_retried_forever(folder: Path, capsys: pytest.CaptureFixture[str], reuse: str) -> None:
    """A relative path does not exist in the workers' directory, so opening it fails each time."""
    to_dataset(generate(census_schema(NamePools(), 1), 30, seed=0)).to_parquet("people.parquet")
    missing = "grid.profiles=[{num_profiles: 60, num_relations: 2}, {source: disk, path: people.parquet}]"
    assert run(missing, "trial.profiles={}", "trial.training.length={steps: 60}", "execution.max_failures=1000",
               f"execution.reuse_workers={reuse}") == 1  # fmt: skip
    output = capsys.readouterr().out
    assert output.count(": started") <= 3  # one trial once, the other twice
    assert "1 of 2 trials failed" in output
    assert re.search(r"FileNotFoundError: profiles\.path: .*people\.parquet", output)
    assert "--only-failed" in output
    assert len(results_in(folder / "runs")) == 1


@pytest.mark.slow
def test_a_full_disk_fails_only_the_trial_that_needs_space(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The checkpoints of one trial do not fit on the disk; those of the other do."""
    sizes = ("grid.model.hidden_size=[8, 64]", "trial.training.length={steps: 2000}", "execution.max_concurrent_trials=1",
             f"storage={folder}/disk")  # fmt: skip
    with small_disk(folder / "disk", 2000) as disk:
        assert run(*sizes) == 1
        output = capsys.readouterr().out
        assert "No space left on device" in output
        (small,) = results_in(disk).values()
        assert small.spec.model.hidden_size == 8
        kept = last_step(disk)
        assert 0 < kept < 2000
        assert not list(disk.rglob("*.tmp"))
        resize(disk, 30_000)
        assert run(*sizes, only_failed=True) == 0
        by_width = {result.spec.model.hidden_size: result for result in results_in(disk).values()}
        assert by_width[8] == small
    assert without_timing(by_width[64]) == without_timing(run_trial(by_width[64].spec, source_commit="test").result)


@pytest.mark.slow
def test_a_disk_that_is_full_when_the_result_is_written_loses_no_training(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At first only the checkpoint of the last step fits; the model and the result fit after the disk has grown."""
    once = (
        f"storage={folder}/disk",
        "trial.training={num_evaluations: 1, length: {steps: 500}}",
        "execution.checkpoint_every_s=1e3",
    )
    with small_disk(folder / "disk", 136) as disk:
        assert run(*once) == 1
        assert "No space left on device" in capsys.readouterr().out
        assert last_step(disk) == 500
        resize(disk, 30_000)
        assert run(*once) == 0
        assert " exposures, loss" not in capsys.readouterr().out  # no evaluation: only the result was written
        (result,) = results_in(disk).values()
        assert result.num_steps == 500
    assert without_timing(result) == without_timing(run_trial(result.spec, source_commit="test").result)


def test_a_storage_that_cannot_be_written_is_refused_before_anything_starts(folder: Path) -> None:
    (folder / "file").write_text("not a folder")
    with pytest.raises(pipeline.SpecError, match=r"storage .*/file/runs/faults"):
        run("storage=file/runs")


@pytest.mark.slow
def test_a_trial_that_needs_more_memory_than_there_is_fails_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The operating system refuses to allocate half a terabyte of weights. The trial is retried once."""
    sizes = ("grid.model.hidden_size=[8, 65536]", "trial.training.length={steps: 100}", "execution.max_failures=1000")
    assert run(*sizes) == 1
    output = capsys.readouterr().out
    assert "1 of 2 trials failed" in output
    assert "allocate" in output
    (small,) = results_in(folder / "runs").values()
    assert small.spec.model.hidden_size == 8


@pytest.mark.slow
def test_a_stack_with_a_diverged_replica_resumes_after_its_worker_is_killed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    storage = folder / "runs"
    diverging = ("grid.training.optimizer.lr=[0.02, 1e30]", "trial.training.optimizer.grad_clip=1e30",
                 "execution.replicas=2", "trial.training.length={steps: 6000}")  # fmt: skip

    def inject_fault() -> None:
        wait_until(lambda: last_step(storage) > 2000)
        kill(WORKER)

    fault = threading.Thread(target=inject_fault, daemon=True)
    fault.start()
    assert run(*diverging) == 1
    fault.join()
    output = capsys.readouterr().out
    assert output.count(": started") == 4  # two trials, twice each
    assert output.count("133.3 exposures") == 1  # step 1500 was not trained again
    (finished,) = results_in(storage).values()
    assert (finished.num_steps, finished.spec.training.optimizer.lr) == (6000, 0.02)


@pytest.mark.slow
def test_a_lost_result_of_a_stack_is_trained_again_with_the_same_numbers(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The finished trials of the stack train along, since the numbers of the lost one depend on them."""
    stack = ("trial.training.length={steps: 120}", "grid.training.seed=[0, 1, 2]", "execution.replicas=3")
    assert run(*stack) == 0
    before = results_in(folder / "runs")
    assert {result.provenance.stack for result in before.values()} == {_planned(stack)}
    lost, *others = (folder / "runs" / result_path(trial_id) for trial_id in before)
    assert not [path.name for path in lost.parent.iterdir() if path.name.startswith(("checkpoint-", "stack.json"))]
    lost.write_bytes(lost.read_bytes()[:-7])
    written = [path.stat().st_mtime_ns for path in others]
    capsys.readouterr()
    assert run(*stack) == 0
    output = capsys.readouterr().out
    assert "1 left in 1 stacks with 2 finished trials" in " ".join(output.split())  # lines are wrapped
    assert output.count(": started") == output.count(": finished") == 1
    assert [path.stat().st_mtime_ns for path in others] == written
    after = results_in(folder / "runs")
    assert {i: without_timing(result) for i, result in after.items()} == {
        i: without_timing(result) for i, result in before.items()
    }
    assert not list((folder / "runs").rglob("checkpoint-*"))


def _planned(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(trial.trial_id for trial in pipeline.prepare("spec.yaml", overrides)[0].trials)


@pytest.mark.slow
def test_a_restarted_driver_keeps_the_results_of_the_previous_one(folder: Path) -> None:
    """A driver may be killed between the results of a stack; its successor must not train the finished trials again."""
    short = ("trial.training.length={steps: 60}",)
    assert run(*short) == 0
    record, storage = pipeline.prepare("spec.yaml", short)
    (planned,) = record.trials
    written = Path(storage.path(result_path(planned.trial_id))).stat().st_mtime_ns
    analyst = AnalystActor.remote(record.model_dump_json())
    ray.get(analyst.open.remote(1))
    spec = record.spec
    config = WorkerConfig(spec.execution, spec.storage, "test", analyst, spec.analysis)
    assert _drive_trials({"trials": [planned.model_dump_json()]}, config) == {"causes": {}, "all_finished": True}
    assert [event.what for event in ray.get(analyst.events.remote("", 0))[1]] == ["finished"]
    assert Path(storage.path(result_path(planned.trial_id))).stat().st_mtime_ns == written
    ray.kill(analyst)
