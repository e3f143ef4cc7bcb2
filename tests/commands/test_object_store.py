"""Every command that takes the folder of a sweep takes the URI of one, with a query, and prints URIs that it takes back."""

import json
from pathlib import Path

import mlflow
import pytest
from typer.testing import CliRunner

import raycap
from raycap.cli import app
from raycap.commands.arguments import open_sweep
from raycap.commands.named import find_trial
from raycap.results import SweepRecord
from raycap.spec.document import SpecError
from raycap.storage import Storage, result_path
from raycap.storage.checksum import with_checksum
from raycap.storage.lock import locked
from tests.support import planted
from tests.support.object_store import ObjectStore


@pytest.fixture
def sweep(s3: ObjectStore, tmp_path: Path, tracking_uri: str) -> tuple[SweepRecord, Storage]:
    """A sweep in a bucket."""
    storage = Storage.at(s3.uri(f"{tmp_path.name}/runs"))
    record = planted.sweep([12, 14, 16], name="grid")
    tracking = record.spec.tracking.model_copy(update={"uri": tracking_uri})
    spec = record.spec.model_copy(update={"storage": storage.location(), "tracking": tracking})
    record = record.model_copy(update={"spec": spec})
    storage.write("grid/sweep.json", record.model_dump_json())
    storage.write("grid/run.json", planted.RUN.model_dump_json())
    for result in planted.results(record, 1.8).values():
        storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json()))
    return record, storage


def command(*arguments: str) -> str:
    """Run a command; returns what it prints, and raises its error."""
    result = CliRunner().invoke(app, arguments)
    if result.exception:
        raise result.exception
    return result.output


@pytest.mark.usefixtures("one_figure")
def test_commands_take_the_uri_of_a_sweep(sweep: tuple[SweepRecord, Storage], tracking_uri: str) -> None:
    record, storage = sweep
    folder = storage.location("grid")
    assert folder.startswith("s3://bucket/")
    assert "/runs/grid?region=" in folder
    assert record.trials[0].label in command("status", folder)
    printed = command("report", folder).split()[-1]
    assert printed == storage.location("grid/report.html")
    assert Storage.at(printed).read("").startswith(b"<")
    command("sync", folder)
    client = mlflow.MlflowClient(tracking_uri)
    assert len(client.search_runs([client.get_experiment_by_name("raycap").experiment_id])) == 4
    assert json.loads(command("compare", folder, folder, "--json"))["shared_trials"] == 3
    assert raycap.load(folder).trials["trial_id"].nunique() == 3
    opened, again = open_sweep(folder)
    assert (opened.spec.storage, again.location()) == (record.spec.storage, storage.location())


def test_a_trial_is_found_by_its_uri(sweep: tuple[SweepRecord, Storage]) -> None:
    record, storage = sweep
    trial_id = record.trials[0].trial_id
    root, found = find_trial(storage.location(f"trials/{trial_id}"), (), "runs", None)
    assert (root.location(), found) == (storage.location(), trial_id)
    assert root.read(result_path(found))


def test_a_refusal_names_the_whole_uri(sweep: tuple[SweepRecord, Storage]) -> None:
    _, storage = sweep
    folder = storage.location("grid")
    with locked(storage, "grid"), pytest.raises(SpecError) as caught:
        command("sync", folder)
    assert folder in str(caught.value)
