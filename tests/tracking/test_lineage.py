"""Tests of names, colours, datasets and registered models of trials in MLflow."""

import json
import os
import tempfile
from pathlib import Path

import mlflow
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from raycap.cluster.analyst import sync_sweep
from raycap.learner import model as llama
from raycap.learner import pretrained
from raycap.results import SweepRecord
from raycap.spec import Fill, ParentTrial, ProfilesFromDisk
from raycap.storage import model_folder
from raycap.storage.saved_model import DIGEST_FILE, MODEL_FILES, digests
from raycap.tracking.lineage import dataset_inputs
from raycap.tracking.outbox import Operation
from raycap.tracking.tracker import Tracker
from tests.support import planted
from tests.support.mlflow_runs import assert_complete, make_results, planned_sweep, runs_of, store


@pytest.mark.usefixtures("one_figure")
def test_runs_have_labels_colours_by_width_and_datasets(tmp_path: Path, tracking_uri: str) -> None:
    record = planned_sweep(tmp_path, tracking_uri, widths=(12, 14), seeds=(0, 1))
    store(record, make_results(record))
    assert sync_sweep(record).problems == ()
    client, parent, children = runs_of(record)
    assert [children[trial.trial_id].info.run_name for trial in record.trials] == [
        "d12-L2-N1000-s0", "d12-L2-N1000-s1", "d14-L2-N1000-s0", "d14-L2-N1000-s1",
    ]  # fmt: skip
    colours = [children[trial.trial_id].data.tags["mlflow.runColor"] for trial in record.trials]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    for run in children.values():
        (data,) = run.inputs.dataset_inputs
        assert (data.dataset.name, data.dataset.source_type) == ("N1000-R2", "generate")
        assert json.loads(data.dataset.source)["seed"] == 0
        assert json.loads(data.dataset.profile)["num_names"] == 16_000
    figure = f"](get-artifact?path=capacity.svg&run_uuid={parent.info.run_id})"
    assert figure in parent.data.tags["mlflow.note.content"]
    assert "capacity.svg" in {artifact.path for artifact in client.list_artifacts(parent.info.run_id)}


def test_each_population_has_its_own_digest() -> None:
    """The digest depends on the seed and, for a second population, on the first, but not on the model."""
    trial = planted.sweep([12]).trials[0]
    people = trial.spec.profiles

    def digests(**changes: object) -> list[str]:
        spec = trial.spec.model_copy(update=changes)
        populations = trial.populations * (1 + (spec.fill is not None))
        changed = trial.model_copy(update={"spec": spec, "populations": populations})
        return [data.dataset.digest for data in dataset_inputs(changed)]

    (digest,) = digests()
    assert digests(model=trial.spec.model.model_copy(update={"hidden_size": 64})) == [digest]
    assert digests(profiles=people.model_copy(update={"seed": 1})) != [digest]
    one, other = (
        Fill(parent=ParentTrial(trial_id="0" * 12), profiles=people.model_copy(update={"seed": seed}))
        for seed in (1, 2)
    )
    assert [digests(fill=one)[0], digests(fill=other)[0]] == [digest, digest]
    assert len({digest, digests(fill=one)[1], digests(fill=other)[1]}) == 3
    loaded = [
        digests(profiles=ProfilesFromDisk(source="disk", path=path, fingerprint="0123456789abcdef"))
        for path in ("one", "other")
    ]
    assert loaded == [["0123456789ab"]] * 2


@pytest.mark.slow
def test_models_are_registered_on_request_once_and_also_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracking_uri: str
) -> None:
    record = planned_sweep(tmp_path, tracking_uri)
    results = make_results(record)
    storage = store(record, results)
    for result in results:
        with tempfile.TemporaryDirectory() as folder:
            generator = torch.Generator().manual_seed(result.spec.model.hidden_size)
            pretrained.save_pretrained(llama.build_model(result.spec.model, 50, generators=(generator,)), Path(folder))
            for name in set(MODEL_FILES) - set(os.listdir(folder)):
                (Path(folder) / name).write_text("{}")
            (Path(folder) / DIGEST_FILE).write_text(digests(Path(folder)))
            storage.write_folder(model_folder(result.trial_id), Path(folder))
    measured = planted.measured({result.trial_id: result for result in results})
    finished = [Operation("finish_trial", 1_000_000, {"trial_id": result.trial_id}) for result in results]

    def deliver(record: SweepRecord, operations: list[Operation]) -> None:
        tracker = Tracker(record, measured)
        for operation in operations:
            tracker.deliver(operation)

    deliver(record, finished)
    client, _, _ = runs_of(record)
    assert client.search_registered_models() == []

    tracking = record.spec.tracking.model_copy(update={"register_models": True})
    record = record.model_copy(update={"spec": record.spec.model_copy(update={"tracking": tracking})})
    model = tmp_path / "runs" / model_folder(results[2].trial_id)
    model.rename(model.with_name("away"))
    with pytest.raises(ValueError, match=results[2].trial_id):
        deliver(record, finished)
    model.with_name("away").rename(model)
    assert sync_sweep(record).problems == ()
    _, _, children = runs_of(record)
    killed = children[results[0].trial_id]  # as if killed between the registration and the tag
    client.delete_tag(killed.info.run_id, "raycap.model_version")
    deliver(record, finished)
    versions = client.search_model_versions("name = 'raycap-planted'")
    assert {version.tags["raycap.trial_id"] for version in versions} == {result.trial_id for result in results}
    assert len(versions) == 3
    assert_complete(record, results)

    _, _, children = runs_of(record)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", record.spec.tracking.uri)
    for version in versions:
        run = children[version.tags["raycap.trial_id"]]
        assert (version.run_id, version.version) == (run.info.run_id, int(run.data.tags["raycap.model_version"]))
        folder = mlflow.artifacts.download_artifacts(f"models:/raycap-planted/{version.version}")
        loaded = AutoModelForCausalLM.from_pretrained(folder)
        assert loaded.config.hidden_size == int(run.data.params["model.hidden_size"])
        stored = load_file(storage.path(f"{model_folder(version.tags['raycap.trial_id'])}/model.safetensors"))
        assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in stored.items())
