"""Tests of the names that commands take: sweep files, folders, URIs, names of sweeps, and ids and labels of trials."""

from pathlib import Path

import pytest

from raycap.commands.named import find_sweep, find_trial
from raycap.pipeline import prepare
from raycap.results import SweepRecord
from raycap.spec.document import SpecError
from raycap.storage import Storage, trial_folder
from raycap.storage.sweep_folder import SweepFolder
from tests.support import planted
from tests.support.specs import GOOD


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepRecord:
    """The sweep `good` with six trials in the storage `runs` of the working directory, which also has the sweep `other`."""
    monkeypatch.chdir(tmp_path)
    Path("good.yaml").write_text(GOOD)
    record, storage = prepare("good.yaml", ())
    for sweep in (record, planted.sweep([14], name="other")):
        folder = SweepFolder(storage, sweep.spec.name)
        folder.write_sweep(sweep)
        folder.write(SweepFolder.RUN, planted.RUN.model_dump_json())
        for trial in sweep.trials:
            storage.write(f"{trial_folder(trial.trial_id)}/result.json", "{}")
    return record


def test_every_name_leads_to_the_same_sweep_and_trial(record: SweepRecord, tmp_path: Path) -> None:
    first = record.trials[0]
    folder = f"runs/trials/{first.trial_id}"
    of_trial = [
        first.trial_id,
        first.trial_id[:10],
        first.label,
        folder,
        f"{tmp_path}/{folder}/",
        f"file://{tmp_path}/{folder}",
    ]
    of_sweep = [
        "good.yaml",
        "good",
        "runs/good",
        "./runs/good/",
        f"{tmp_path}/runs/good",
        f"file://{tmp_path}/runs/good",
    ]
    Path("latest").symlink_to("runs/good")
    Path("deep/er").mkdir(parents=True)
    Path("link").symlink_to("deep/er")
    of_sweep += ["latest", "link/../../runs/good"]
    for what in (*of_sweep, *of_trial):
        sweep, storage = find_sweep(what)
        assert (sweep.spec.name, storage.root) == ("good", f"{tmp_path}/runs"), what
        assert sweep.trials == record.trials
    for what in of_trial:
        assert find_trial(what, (), "runs", None) == (storage, first.trial_id), what
    for what in of_sweep:
        assert find_trial(what, (), "runs", 1) == (storage, record.trials[1].trial_id), what
    assert find_trial("other", (), f"file://{tmp_path}/runs", None)[1] not in {
        trial.trial_id for trial in record.trials
    }
    renamed, _ = find_sweep("good.yaml", overrides=("analysis.per_subject=false",))
    assert not renamed.spec.analysis.per_subject


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("gool", "'good'"),
        ("nothing-like-it", "good, other"),
        ("runs", "runs/good, runs/other"),
        ("runs/goot", "'runs/good'"),
        ("runs/trials/ffffffffffff", "ffffffffffff"),
        ("d", "7 trials"),
        ("good.yml", "good.yml"),
        ("", "7 trials"),
        ("/nowhere/x", "/nowhere/x"),
    ],
)
def test_unknown_names_are_refused_with_those_that_exist(record: SweepRecord, what: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        find_sweep(what)
    assert message in str(caught.value)


def test_a_sweep_file_must_have_run_and_a_sweep_of_many_trials_needs_an_index(record: SweepRecord) -> None:
    with pytest.raises(SpecError, match=r"raycap run good\.yaml"):
        find_sweep("good.yaml", overrides=("name=new",))
    with pytest.raises(SpecError, match="remove a=1"):
        find_sweep("good", overrides=("a=1",))
    with pytest.raises(SpecError, match=r"has 6 trials: .*--index"):
        find_trial("good", (), "runs", None)
    with pytest.raises(SpecError, match=r"--storage ~/runs: .*in full"):
        find_sweep("good", storage="~/runs")
    storage = Storage.at("runs")
    copy = SweepFolder(storage, "copy")
    copy.write_sweep(record.model_copy(update={"spec": record.spec.model_copy(update={"name": "copy"})}))
    with pytest.raises(SpecError, match="several sweeps: copy, good"):
        find_sweep(record.trials[0].label)
    assert find_trial(record.trials[0].label, (), "runs", None) == (storage, record.trials[0].trial_id)
