"""Tests of the inventory: states of trials, damaged files, edited specs, failures, and fill parents."""

import json
import re
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from raycap.analysis.analyse import analyse
from raycap.analysis.stored import read_stored
from raycap.analysis.summary import summary
from raycap.learner.trial import run_trial
from raycap.plan.expand import expand
from raycap.plan.inventory import InventoryEntry, TrialState, inventory, prepare_folder
from raycap.plan.spec_diff import PreviousTrial, changes
from raycap.results import Failure, StopReason, SweepRecord, TrialResult
from raycap.spec import Fill, ParentModel, ParentTrial, ProfilesByCount
from raycap.spec.file import load_sweep
from raycap.storage import Storage, checkpoint_path, failure_path, model_folder, result_path
from raycap.storage.checksum import with_checksum
from raycap.storage.saved_model import DIGEST_FILE, PARENT_FILES, parent_model, resolve_parent
from raycap.terminal.failures import normalize_cause, print_failures
from raycap.terminal.plan_table import plan_json, print_plan
from tests.support.planted import RUN, results, sweep

EDITS: dict[str, tuple[Any, str]] = {
    "training.optimizer.lr": (0.5, "0.003 -> 0.5"),
    "training.batch_size": (64, "128 -> 64"),
    "questions.hops": ([1, 2], "[1] -> [1, 2]"),
    "model.tie_embeddings": (True, "false -> true"),
    "profiles.num_profiles": (60, "50 -> 60"),
    "training.order_seed": (7, "0 -> 7"),
}
BASE = {
    "profiles": {"num_profiles": 50, "num_relations": 1, "names": {"first": 8, "middle": 8, "last": 8}},
    "questions": {"hops": [1]},
    "model": {"num_layers": 1, "hidden_size": 8, "tie_embeddings": False, "heads": {"num_heads": 1}},
    "training": {"length": {"steps": 10}, "batch_size": 128, "optimizer": {"lr": 0.003}, "order_seed": 0},
}
SEEDS = {"training.seed": [0, 1]}


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return Storage.at(str(tmp_path / "runs"))


def edited(edits: dict[str, Any], grid: dict[str, list[Any]] = SEEDS) -> SweepRecord:
    """Return the sweep of BASE after some edits."""
    tree = json.loads(json.dumps(BASE))
    for path, value in edits.items():
        *parents, last = path.split(".")
        inner = tree
        for name in parents:
            inner = inner[name]
        inner[last] = value
    changed = tuple(f"{key}={json.dumps(value)}" for key, value in {"trial": tree, "grid": grid}.items())
    loaded = load_sweep(str(Path(__file__).parents[2] / "sweeps/specs/grid.yaml"), changed)
    return SweepRecord(spec=loaded.spec, question="", spec_yaml="", trials=tuple(expand(loaded)))


@cache
def unedited() -> SweepRecord:
    return edited({})


def before(record: SweepRecord) -> list[PreviousTrial]:
    return [PreviousTrial.model_validate(trial.model_dump(mode="json")) for trial in record.trials]


def descriptions(record: SweepRecord, storage: Storage) -> list[str]:
    return [str(state) for state in inventory(record, storage).states.values()]


def finish(storage: Storage, result: TrialResult) -> None:
    storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json(indent=1)))


# --- states -----------------------------------------------------------------------------------------------------------


def test_every_state_has_its_reason(storage: Storage) -> None:
    record = sweep([12, 14, 16, 18, 20, 22, 24, 26])
    found = list(results(record, 1.8).values())
    trials = record.trials
    finish(storage, found[0])
    finish(storage, found[1].model_copy(update={"stop_reason": StopReason.PLATEAU}))
    finish(storage, found[2].model_copy(update={"stop_reason": StopReason.EARLY}))
    for part in (0.1, 0.4):
        storage.write(checkpoint_path(found[3].trial_id, int(part * trials[3].steps)), b"")
    failure = Failure(trial_id=found[4].trial_id, cause="OSError: [Errno 28] no space\nleft " + 200 * "x", traceback="")
    storage.write(failure_path(found[4].trial_id), failure.model_dump_json())
    storage.write(failure_path(found[5].trial_id), failure.model_dump_json()[:30])
    storage.write(result_path(found[6].trial_id), found[6].model_dump_json())
    states = inventory(record, storage).states
    assert [str(states[trial.trial_id]) for trial in trials] == [
        "finished",
        "finished early: plateau",
        "finished early",
        f"resumable at {100 * int(0.4 * trials[3].steps) // trials[3].steps} %",
        f"failed before: OSError: [Errno 28] no space left {'x' * 85}…",
        "failed before: failure.json cannot be read",
        "damaged: trained again",
        "new",
    ]
    plan = json.loads(plan_json(record, record.trials, inventory(record, storage)))
    assert [trial["state"] for trial in plan["trials"]] == [states[trial.trial_id].state for trial in trials]
    assert plan["trials"][1]["reason"] == "early: plateau"
    console = Console(file=StringIO(), width=300)
    print_plan(record, trials, inventory(record, storage), console)
    assert "OSError: [Errno 28] no space left" in console.file.getvalue()  # not interpreted as markup


@pytest.mark.parametrize("damage", ["flipped", "truncated", "empty", "without checksum"])
def test_a_damaged_result_is_ignored_and_trained_again(damage: str, storage: Storage) -> None:
    record = sweep([12, 14, 16, 20])
    planted = results(record, 1.8)
    for result in planted.values():
        finish(storage, result)
    bad = record.trials[1].trial_id
    file = Path(storage.path(result_path(bad)))
    whole = file.read_text()
    bits = whole.index('"sum_bits": ') + len('"sum_bits": ')
    content = {
        "flipped": whole[:bits]
        + str((int(whole[bits]) + 1) % 10)
        + whole[bits + 1 :],  # valid JSON with another number
        "truncated": whole[: len(whole) // 2],
        "empty": "",
        "without checksum": planted[bad].model_dump_json(),
    }[damage]
    file.write_text(content)

    stored = read_stored(record.trials, storage)
    assert set(stored.measured) == set(planted) - {bad}
    assert list(stored.unreadable) == [bad]
    assert stored.unreadable[bad].startswith("the checksum does not match")
    analysis = analyse(record, RUN, stored.measured, stored.failures, stored.unreadable)
    assert [trial["state"] for trial in summary(analysis)["trials"]].count("unreadable") == 1
    assert "checksum does not match" in analysis.law.excluded[bad]

    found = inventory(record, storage)
    assert found.states[bad] == InventoryEntry(TrialState.DAMAGED, "trained again")
    assert file.read_text() == content  # planning changes nothing
    assert [trial.trial_id for trial in found.to_run(record.trials)] == [bad]
    prepare_folder(record, found, storage)
    assert file.with_name("result.json.damaged").read_text() == content
    assert not file.exists()
    assert inventory(record, storage).states[bad] == InventoryEntry(TrialState.NEW)


def test_only_failed_selects_failed_trials(storage: Storage) -> None:
    record = sweep([12, 14, 16])
    finish(storage, next(iter(results(record, 1.8).values())))
    failed = record.trials[1].trial_id
    storage.write(failure_path(failed), Failure(trial_id=failed, cause="boom", traceback="").model_dump_json())
    found = inventory(record, storage)
    assert found.to_run(record.trials, only_failed=True) == [record.trials[1]]
    assert found.to_run(record.trials) == list(record.trials[1:])


# --- edits ------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.sets(st.sampled_from(sorted(EDITS)), min_size=1))
def test_the_plan_names_the_fields_that_an_edit_changed(fields: set[str]) -> None:
    record = edited({field: EDITS[field][0] for field in fields})
    reasons = changes(record.trials, before(unedited()))
    assert set(reasons) == {trial.trial_id for trial in record.trials}
    (reason,) = set(reasons.values())
    if len(fields) <= 3 and "questions.hops" not in fields:  # another number of hops adds fields
        assert sorted(reason.split(", ")) == sorted(f"{field} {EDITS[field][1]}" for field in fields)
    assert reason.endswith(f" and {len(fields) - 3} more") == (len(fields) > 3) or "questions.hops" in fields


def test_points_added_by_an_extended_grid_have_no_reason() -> None:
    once = before(edited({}))
    known = {trial.trial_id for trial in once}
    for grid in ({"training.seed": [0, 1, 2]}, SEEDS | {"training.optimizer.lr": [0.003, 0.01]}):
        record = edited({}, grid)
        assert known < {trial.trial_id for trial in record.trials}
        assert changes(record.trials, once) == {}
    assert changes(edited({}).trials, []) == {}


def test_with_another_grid_a_trial_is_compared_with_the_nearest() -> None:
    once = before(edited({}, SEEDS | {"model.hidden_size": [8, 16], "training.optimizer.lr": [0.003, 0.01]}))
    record = edited({"model.hidden_size": 16, "training.order_seed": 3}, {"training.seed": [0, 1]})
    assert set(changes(record.trials, once).values()) == {"training.order_seed 0 -> 3"}


def test_edited_trials_are_new_and_earlier_ones_are_listed_as_stale(storage: Storage) -> None:
    first = edited({})
    prepare_folder(first, inventory(first, storage), storage)
    assert descriptions(first, storage) == ["new", "new"]
    for trial, (name, content) in zip(
        first.trials, [("result.json", with_checksum("{}")), ("model/x", "")], strict=True
    ):
        storage.write(f"trials/{trial.trial_id}/{name}", content)
    second = edited({"training.optimizer.lr": 0.01})
    found = inventory(second, storage)
    assert descriptions(second, storage) == 2 * ["new: training.optimizer.lr 0.003 -> 0.01"]
    ids = [trial.trial_id for trial in first.trials]
    assert [(stale.trial_id, stale.finished) for stale in found.stale] == [(ids[0], True), (ids[1], False)]
    shown = json.loads(plan_json(second, second.trials, found))["stale"]
    assert shown[0] == {"trial_id": ids[0], "label": first.trials[0].label, "finished": True}
    console = Console(file=StringIO(), width=200)
    print_plan(second, second.trials, found, console)
    assert f"{first.trials[1].label}  {ids[1]}  not finished" in console.file.getvalue()
    prepare_folder(second, found, storage)
    assert descriptions(second, storage) == ["new", "new"]  # the previous run planned the same trials

    third = edited({"training.optimizer.lr": 0.02})  # trials of the second run have no files, so they are not listed
    prepare_folder(third, inventory(third, storage), storage)
    assert [stale.trial_id for stale in inventory(third, storage).stale] == ids
    back = edited({}, {"training.seed": [0]})  # the first trial is planned again
    prepare_folder(back, inventory(back, storage), storage)
    assert [stale.trial_id for stale in inventory(back, storage).stale] == ids[1:]
    assert descriptions(back, storage) == ["finished"]


def test_damaged_records_of_earlier_runs_are_ignored(storage: Storage) -> None:
    record = edited({})
    prepare_folder(record, inventory(record, storage), storage)
    folder = record.spec.name
    whole = storage.read_text(f"{folder}/sweep.json")
    for content in (b"", b"\xff\xfe", b"[1]", whole[:100].encode(), b'{"trials": [{"trial_id": 3}]}'):
        for name in ("sweep.json", "earlier.json", "run.json"):
            storage.write(f"{folder}/{name}", content)
        found = inventory(record, storage)
        assert not found.stale
        prepare_folder(record, found, storage)
        assert storage.read_text(f"{folder}/sweep.json") == whole
        assert not storage.exists(f"{folder}/run.json")


# --- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("DivergedError: not finite at step 1,240", "DivergedError: not finite at step 7"),
        ("OutOfMemoryError: Tried to allocate 20.00 MiB", "OutOfMemoryError: Tried to allocate 1.5 GiB"),
        ("OSError: /tmp/raycap-a_8x/model.pt: lost", "OSError: /tmp/raycap-zq1/sub/model.pt: lost"),
        (
            "ActorDiedError: actor 3f0a9be200ff, pid=12 ip=10.0.0.7",
            "ActorDiedError: actor 0bb1c2d3e4f5, pid=7 ip=10.0.1.9",
        ),
        ("KeyError: <object at 0x7f3a>", "KeyError: <object at 0x11ab09>"),
        ("ValueError: rate 1e-05 is off", "ValueError: rate 0.3 is off"),
    ],
)
def test_causes_that_differ_only_in_numbers_and_paths_are_grouped(one: str, other: str) -> None:
    assert normalize_cause(one) == normalize_cause(other)
    assert normalize_cause(one) != normalize_cause("FileNotFoundError: people.parquet")


def test_failures_are_printed_by_cause_with_the_command_to_repeat_them(storage: Storage) -> None:
    record = sweep(list(range(8, 8 + 2 * 14, 2)))
    failures = {
        trial.trial_id: Failure(
            trial_id=trial.trial_id,
            cause=f"DivergedError: not finite at step {100 + number}",
            traceback="",
            step=number,
        )
        for number, trial in enumerate(record.trials[:12])
    }
    alone = record.trials[12].trial_id
    failures[alone] = Failure(trial_id=alone, cause="ValueError: another", traceback="")
    console = Console(file=StringIO(), width=200)
    print_failures(record, failures, storage, "raycap run x.yaml --only-failed", console)
    lines = [line.strip() for line in console.file.getvalue().strip().splitlines()]
    assert lines[0] == "13 of 14 trials failed"
    assert lines[1] == "DivergedError: not finite at step 100"
    assert lines[2].startswith(f"12 trials: {record.trials[0].label} (after step 0), {record.trials[1].label} (after")
    assert lines[2].endswith(" and 2 more")
    assert lines[4:6] == ["ValueError: another", record.trials[12].label]
    assert lines[-1] == "raycap run x.yaml --only-failed"


# --- parents ----------------------------------------------------------------------------------------------------------


def test_a_fill_trial_refuses_a_damaged_parent(storage: Storage, tmp_path: Path) -> None:
    planned = edited({}).trials[0]
    trained = run_trial(planned.spec, source_commit="test")
    trained.save_model(storage, model_folder(planned.trial_id))
    finish(storage, trained.result)
    people = ProfilesByCount(num_profiles=5)
    by_id = Fill(parent=ParentTrial(trial_id=planned.trial_id), profiles=people)
    folder = Path(storage.path(model_folder(planned.trial_id)))
    by_path = Fill(parent=ParentModel(path=str(folder)), profiles=people)
    for fill in (by_id, by_path):
        with parent_model(fill, storage) as local:
            assert {path.name for path in local.iterdir()} == set(PARENT_FILES)
    for name in (*PARENT_FILES, DIGEST_FILE):
        whole = (folder / name).read_bytes()
        for content in (whole[:-9], whole[:9] + bytes([whole[9] ^ 1]) + whole[10:]):
            (folder / name).write_bytes(content)
            for fill in (by_id, by_path):
                with pytest.raises(ValueError, match=re.escape(str(folder))), parent_model(fill, storage):
                    pass
        (folder / name).write_bytes(whole)
    (folder / DIGEST_FILE).unlink()
    with parent_model(by_path, storage):  # a model that raycap did not save has no digest file
        pass
    with pytest.raises(ValueError, match=planned.trial_id), parent_model(by_id, storage):
        pass
    trained.save_model(storage, model_folder(planned.trial_id))
    file = Path(storage.path(result_path(planned.trial_id)))
    file.write_bytes(file.read_bytes()[:-2])
    filled = planned.spec.model_copy(update={"fill": by_id})
    with pytest.raises(ValueError, match=r"result\.json: "):
        resolve_parent(filled, storage)
