"""Tests of estimates: formulas, sources of step times, and agreement with a real trial."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from raycap.pipeline import prepare
from raycap.plan import throughput
from raycap.plan.estimate import (
    EVALUATION_SHARE,
    GROUP_SECONDS,
    SWEEP_SECONDS,
    StepTime,
    estimate,
    evenly_spaced,
    group_seconds,
    interpolated_seconds,
    makespan,
    num_evaluated,
    shape_of,
    slots_of,
    worker_bytes,
)
from raycap.plan.inventory import inventory
from raycap.plan.throughput import CACHED, GIVEN, INTERPOLATED, STORED, TIMED, expected_times
from raycap.results import SweepRecord
from raycap.spec import AdamW, ExecutionSpec, Muon, Steps
from raycap.spec.file import SpecError
from raycap.storage import Storage, result_path
from raycap.storage.checksum import with_checksum
from tests.support.planted import results, sweep

ROOT = Path(__file__).parents[2]

RECORD = sweep([8, 12, 16, 24], seeds=(0, 1))
TRIAL = RECORD.trials[0]


def with_training(trial, **changes):
    training = trial.spec.training.model_copy(update=changes)
    return trial.model_copy(update={"spec": trial.spec.model_copy(update={"training": training})})


def stored_in(folder: Path, record: SweepRecord = RECORD) -> tuple[SweepRecord, Storage]:
    spec = record.spec.model_copy(update={"storage": str(folder)})
    return record.model_copy(update={"spec": spec}), Storage.at(str(folder))


# --- formulas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "slots", "expected_s"),
    [([], 2, 0), ([3], 4, 3), ([1, 1, 1, 3], 2, 3), ([2, 2, 2], 2, 4), ([5, 4, 3], 1, 12)],
)
def test_makespan_starts_the_longest_jobs_first(seconds: list[float], slots: int, expected_s: float) -> None:
    assert makespan(seconds, slots) == expected_s


def test_slots_follow_from_cpus_and_gpus() -> None:
    assert slots_of(ExecutionSpec(), 8, 0) == 8
    assert slots_of(ExecutionSpec(num_workers=3), 8, 0) == 2
    assert slots_of(ExecutionSpec(max_concurrent_trials=2), 8, 0) == 2
    assert slots_of(ExecutionSpec(gpus_per_worker=0.25), 16, 2) == 8
    assert slots_of(ExecutionSpec(gpus_per_worker=0.6), 16, 4) == 4  # a fractional share never spans two GPUs
    assert slots_of(ExecutionSpec(gpus_per_worker=2.0), 16, 5) == 2
    assert slots_of(ExecutionSpec(gpus_per_worker=1.0), 16, 0) == 1


def test_the_time_of_a_stack_includes_steps_evaluations_and_start() -> None:
    texts, batch = num_evaluated(TRIAL), TRIAL.spec.training.batch_size
    assert texts == 1000 * 6
    evaluated = 8 * texts / batch * EVALUATION_SHARE
    assert group_seconds((TRIAL,), 0.01) == pytest.approx(GROUP_SECONDS + 0.01 * (TRIAL.steps + evaluated))
    # Two replicas with a step time twice as long take the same time for everything.
    assert group_seconds((TRIAL, TRIAL), 0.02) == pytest.approx(GROUP_SECONDS + 0.02 * (TRIAL.steps + evaluated))
    half = group_seconds((TRIAL,), 0.01, TRIAL.steps // 2)
    assert half == pytest.approx(
        GROUP_SECONDS + 0.01 * (TRIAL.steps / 2 + 2 * texts / batch * EVALUATION_SHARE), rel=0.01
    )


def test_totals_use_the_slots_and_the_price_of_gpus_or_of_the_machine() -> None:
    groups = [(trial,) for trial in RECORD.trials]
    each = group_seconds(groups[0], 0.05)
    known: list[StepTime | None] = [StepTime(0.05, TIMED)] * 8
    found = estimate(groups, known, ExecutionSpec(), slots=2, start_steps=[0] * 8, price_per_hour=3.0)
    assert found.seconds == pytest.approx(SWEEP_SECONDS + 4 * each)
    assert (found.gpu_hours, found.unknown) == (0, 0)
    assert found.dollars == pytest.approx(3.0 * found.seconds / 3600)
    assert found.sources == {TIMED: 8}
    gpu = ExecutionSpec(gpus_per_worker=1.0, num_workers=2)
    found = estimate(groups, [*known[:7], None], gpu, slots=2, start_steps=[0] * 8, price_per_hour=3.0)
    assert found.gpu_hours == pytest.approx(2 * 7 * each / 3600)
    assert found.dollars == pytest.approx(3.0 * found.gpu_hours)
    assert (found.unknown, len(found.trials)) == (1, 7)
    assert estimate([], [], gpu, slots=2, start_steps=[]).seconds == 0


def test_memory_grows_with_replicas_width_and_optimizer_moments() -> None:
    base, plain = worker_bytes((TRIAL,), ExecutionSpec()), ExecutionSpec()
    wide = RECORD.trials[-1]
    assert worker_bytes((TRIAL, TRIAL), plain) > base
    assert worker_bytes((wide,), plain) > base
    assert worker_bytes((TRIAL,), ExecutionSpec(num_workers=4)) < base
    optimizers = [worker_bytes((with_training(wide, optimizer=spec),), plain) for spec in (AdamW(), Muon(kind="muon"))]
    assert optimizers[0] - optimizers[1] == 4 * (wide.parameters.attention + wide.parameters.mlp)  # one moment less


def test_shapes_differ_only_if_the_computation_of_a_step_differs() -> None:
    execution, spec = ExecutionSpec(), TRIAL.spec
    same = with_training(TRIAL, seed=7, num_evaluations=2, optimizer=AdamW(lr=0.5)).spec
    assert shape_of(same, execution) == shape_of(spec, execution)
    assert shape_of(RECORD.trials[1].spec, execution) == shape_of(spec, execution)
    others = [
        RECORD.trials[2].spec,
        with_training(TRIAL, batch_size=64).spec,
        with_training(TRIAL, optimizer=Muon(kind="muon")).spec,
    ]
    assert len({shape_of(other, execution) for other in [spec, *others]}) == 4
    assert shape_of(spec, ExecutionSpec(num_workers=2)) != shape_of(spec, execution)
    assert shape_of(spec, ExecutionSpec(max_failures=0)) == shape_of(spec, execution)


def test_step_times_are_interpolated_by_a_power_law() -> None:
    known = [(1.0, 0.1), (100.0, 1.0)]
    assert interpolated_seconds(10.0, known) == pytest.approx(0.1 * 10**0.5)
    assert interpolated_seconds(1.0, known) == pytest.approx(0.1)
    assert interpolated_seconds(200.0, known) == pytest.approx(2.0)
    assert interpolated_seconds(0.5, known) == pytest.approx(0.05)
    assert evenly_spaced([3.0, 1.0, 2.0], 6) == [1, 2, 0]
    assert evenly_spaced(list(range(100)), 3) == [0, 50, 99]


# --- sources of step times --------------------------------------------------------------------------------------------


def test_a_given_throughput_is_used_for_all_trials(tmp_path: Path) -> None:
    record, storage = stored_in(tmp_path)
    found = expected_times(record, storage, list(record.trials), inventory(record, storage), throughput=1e5, slots=4)
    per_step = TRIAL.tokens / TRIAL.steps / 1e5
    assert found.trials[TRIAL.trial_id].seconds == pytest.approx(group_seconds((TRIAL,), per_step))
    assert found.sources == {GIVEN: 8}


def test_only_results_of_this_machine_give_step_times(tmp_path: Path, monkeypatch) -> None:
    record, storage = stored_in(tmp_path)
    for number, result in enumerate(list(results(record, 1.8).values())[:4:2]):
        host = platform.node() if number == 0 else "elsewhere"
        final = result.final.model_copy(update={"train_seconds": 0.02 * result.num_steps})
        update = {"provenance": result.provenance.model_copy(update={"host": host}), "evaluations": (final,)}
        storage.write(result_path(result.trial_id), with_checksum(result.model_copy(update=update).model_dump_json()))
    monkeypatch.setattr(throughput, "MAX_TIMED", 0)  # trials without a stored result are not timed either
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = inventory(record, storage)
    missing = found.to_run(record.trials)
    estimated = expected_times(record, storage, missing, found, slots=1).trials
    assert estimated[record.trials[1].trial_id].source == STORED
    assert estimated[record.trials[1].trial_id].seconds == pytest.approx(group_seconds((record.trials[1],), 0.02))
    assert {estimated[trial.trial_id].source for trial in missing[1:]} == {INTERPOLATED}


def test_gpu_trials_are_refused_without_a_gpu_or_a_throughput(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    record, storage = stored_in(tmp_path)
    execution = record.spec.execution.model_copy(update={"gpus_per_worker": 1.0})
    record = record.model_copy(update={"spec": record.spec.model_copy(update={"execution": execution})})
    with pytest.raises(SpecError, match="--throughput"):
        expected_times(record, storage, list(record.trials), inventory(record, storage))


def test_timed_steps_are_cached(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    record, storage = stored_in(tmp_path)
    training = TRIAL.spec.training.model_copy(update={"length": Steps(steps=200), "num_evaluations": 1})
    spec = TRIAL.spec.model_copy(update={"training": training})
    tokens = round(200 * TRIAL.tokens / TRIAL.steps)
    short = TRIAL.model_copy(update={"spec": spec, "trial_id": spec.trial_id, "steps": 200, "tokens": tokens})
    record = record.model_copy(update={"trials": (short,)})
    first, again = (expected_times(record, storage, [short], inventory(record, storage), slots=1) for _ in range(2))
    assert (first.sources, again.sources) == ({TIMED: 1}, {CACHED: 1})
    assert again.seconds == first.seconds


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        ["grid.model.hidden_size=[16]"],
        ["grid.model.hidden_size=[256]", "trial.training.batch_size=1024"],
        ["grid.model.hidden_size=[512]", "trial.training.batch_size=2048", "trial.model.num_layers=4"],
        ["trial.tokenizer={kind: bpe}", "grid.model.hidden_size=[128]", "trial.training.batch_size=1024"],
    ],
)
def test_measured_memory_agrees_with_the_estimate(changes: list[str]) -> None:
    """The estimate is within a third of the measured memory plus 0.15 GB that Ray adds to a worker."""
    few = ["trial.training.length={steps: 4}", "trial.training.num_evaluations=1", "grid.training.seed=[0]", *changes]
    code = (
        "import resource, sys; from raycap.pipeline import prepare; from raycap.learner.trial import run_trial\n"
        "run_trial(prepare('specs/grid.yaml', tuple(sys.argv[1:]))[0].trials[0].spec, source_commit='')\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    output = subprocess.check_output([sys.executable, "-c", code, *few], text=True, cwd=ROOT)
    trials = prepare(str(ROOT / "sweeps/specs/grid.yaml"), tuple(few))[0].trials
    ratio = worker_bytes(tuple(trials), ExecutionSpec()) / (1024 * int(output) + 0.15e9)
    assert 3 / 4 < ratio < 4 / 3, f"the estimate is {ratio:.2f} times the measured memory"
