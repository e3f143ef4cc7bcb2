"""Tests of pools: the trials of several sweeps, analysed as one sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import raycap
from raycap import pipeline
from raycap.analysis.analyse import analyse
from raycap.plan.pool import write_pool
from raycap.results import PlannedTrial, SweepRecord, TrialResult
from raycap.spec.document import SpecError
from raycap.spec.file import load_tree
from raycap.storage import Storage, result_path
from raycap.storage.checksum import with_checksum
from raycap.storage.sweep_folder import SweepFolder
from raycap.terminal.status import read_status
from tests.support import planted

WIDTHS = [12, 16, 20, 24]


def store(record: SweepRecord, name: str, storage: str, trials: Sequence[PlannedTrial], results: Any) -> str:
    """Store some trials of a sweep with their results as a sweep of its own; returns its folder."""
    root = Storage.at(storage)
    spec = record.spec.model_copy(update={"name": name, "storage": storage})
    part = record.model_copy(update={"spec": spec, "trials": tuple(trials)})
    folder = SweepFolder(root, name)
    folder.write_sweep(part)
    folder.write(SweepFolder.RUN, planted.RUN.model_dump_json())
    for trial in trials:
        root.write(result_path(trial.trial_id), with_checksum(results[trial.trial_id].model_dump_json()))
    return folder.location


def pool(storage: Path, sweeps: list[str], **where: Any) -> tuple[SweepRecord, Storage]:
    """The pool `both` of some sweeps, in a storage."""
    section = {"sweeps": sweeps, "where": {path.replace("__", "."): values for path, values in where.items()}}
    return pipeline.plan_loaded(load_tree({"name": "both", "pool": section, "storage": str(storage)}), "test")


def changed(result: TrialResult, **fields: Any) -> TrialResult:
    """A result with other fields of the last evaluation."""
    last = result.final.model_copy(update=fields)
    return result.model_copy(update={"evaluations": (*result.evaluations[:-1], last)})


def test_the_law_of_a_pool_is_that_of_the_whole_sweep(tmp_path: Path) -> None:
    whole = planted.sweep(WIDTHS, seeds=(0, 1))
    results = planted.results(whole, 1.8)
    expected = analyse(whole, None, planted.measured(results), {})
    # Halves that share two trials, in storages of their own; times and machines of a shared trial may differ.
    one = store(whole, "one", f"{tmp_path}/a", whole.trials[:5], results)
    slower = {trial_id: changed(result, train_seconds=99.0) for trial_id, result in results.items()}
    other = store(whole, "other", f"{tmp_path}/b", whole.trials[3:], slower)
    record, storage = pool(tmp_path / "both", [one, other])
    write_pool(record, storage)

    loaded = raycap.load(tmp_path / "both/both")
    assert [(t.trial_id, t.label, t.coordinates) for t in record.trials] == [
        (t.trial_id, t.label, t.coordinates) for t in whole.trials
    ]
    pd.testing.assert_frame_equal(loaded.laws, raycap.Results(expected).laws)
    assert loaded.laws["num_trials"].to_list() == [8, 8, 8]
    assert {row.state for row in read_status(record, storage).rows} == {"finished"}

    wrong = changed(results[whole.trials[4].trial_id], train_loss_bits=9.0)
    Storage.at(f"{tmp_path}/b").write(result_path(wrong.trial_id), with_checksum(wrong.model_dump_json()))
    with pytest.raises(SpecError, match=rf"{wrong.trial_id}.*{tmp_path}/both.*{tmp_path}/b"):
        write_pool(record, storage)


def test_the_axes_of_a_pool_are_the_fields_that_vary_over_it(tmp_path: Path) -> None:
    whole = planted.sweep(WIDTHS, seeds=(0, 1))
    results = planted.results(whole, 1.8)

    def base(name: str, change: str, axis: str, values: list[Any]) -> str:
        tree = {
            "name": name,
            "trial": {"profiles": {"num_profiles": 100, "names": {"first": 9, "middle": 9, "last": 9}}},
            "grid": {axis: values, "training.seed": [0]},
            "storage": str(tmp_path),
        }
        section, field = change.split("=")[0].split(".")
        tree["trial"].setdefault(section, {})[field] = int(change.split("=")[1])  # type: ignore[index]
        record, _ = pipeline.plan_loaded(load_tree(tree), "test")
        return store(
            record,
            name,
            str(tmp_path),
            record.trials,
            {t.trial_id: results[whole.trials[0].trial_id] for t in record.trials},
        )

    widths = base("widths", "model.num_layers=1", "model.hidden_size", [16, 32])
    people = base("people", "model.num_layers=2", "profiles.num_profiles", [100, 200])
    record, _ = pool(tmp_path, [widths, people])
    default = record.trials[-1].spec.model.model_dump()["hidden_size"]
    assert [trial.coordinates for trial in record.trials] == [
        {"training.seed": 0, "profiles.num_profiles": n, "model.hidden_size": d, "model.num_layers": layers}
        for n, d, layers in [(100, 16, 1), (100, 32, 1), (100, default, 2), (200, default, 2)]
    ]
    record, _ = pool(tmp_path, [widths, people], profiles__num_profiles=[200], training__seed=[0, 1])
    assert [trial.coordinates for trial in record.trials] == [{"profiles.num_profiles": 200, "training.seed": 0}]
    with pytest.raises(SpecError, match=r"pool\.where\.model\.hiden_size.*'model\.hidden_size'"):
        pool(tmp_path, [widths, people], model__hiden_size=[16])
    with pytest.raises(SpecError, match=r"pool\.where.*4 trials"):
        pool(tmp_path, [widths, people], model__hidden_size=[9])
    with pytest.raises(SpecError, match=r"pool\.sweeps.*sweep\.json"):
        pool(tmp_path, [widths, f"{tmp_path}/none"])


@pytest.mark.parametrize("section", [{"trial": {"training": {"seed": 1}}}, {"grid": {"training.seed": [1]}}])
def test_a_pool_has_no_trials_of_its_own_and_is_not_run(section: dict[str, Any], tmp_path: Path) -> None:
    whole = planted.sweep([12])
    one = store(whole, "one", str(tmp_path), whole.trials, planted.results(whole, 1.8))
    with pytest.raises(SpecError, match=next(iter(section))):
        load_tree({"name": "both", "pool": {"sweeps": [one]}, **section})
    with pytest.raises(SpecError, match=one):
        pipeline.refuse_pool(pool(tmp_path, [one])[0], "trains nothing")
    with pytest.raises(SpecError, match=one):
        raycap.Sweep.from_dict({"name": "both", "pool": {"sweeps": [one]}, "storage": str(tmp_path)}).run(quiet=True)
