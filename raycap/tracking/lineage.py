"""Logging of a trial's populations to MLflow as datasets, and of its model as a version of a registered model."""

import hashlib
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import LoadedProfiles, ProfilesSpec
from raycap.storage import Storage, model_folder
from raycap.storage.saved_model import copy_model

ARTIFACT_FOLDER = "model"


def dataset_inputs(planned: PlannedTrial) -> list[DatasetInput]:
    """Return the population of a trial as a dataset; for a trial with `fill`, the first and the second population."""
    spec = planned.spec
    profiles = [spec.profiles, *([spec.fill.profiles] if spec.fill else [])]
    context = [InputTag("mlflow.data.context", "train")]
    # A second population has only names that the first does not use, so it depends on the specs of both.
    return [
        DatasetInput(_dataset(profiles[: number + 1], facts), context)
        for number, facts in enumerate(planned.populations)
    ]


def _dataset(profiles: list[ProfilesSpec], facts: PopulationFacts) -> Dataset:
    """Return the last of the populations as a dataset.

    Its digest is that of the content if the population was loaded. Otherwise it is a digest of the specs, which contain the
    seeds and so determine the content.
    """
    spec = profiles[-1]
    identity = spec.fingerprint if isinstance(spec, LoadedProfiles) else None
    if identity is None:
        identity = hashlib.sha256("\n".join(one.model_dump_json() for one in profiles).encode()).hexdigest()
    return Dataset(
        name=f"N{facts.num_profiles}-R{len(facts.relations)}",
        digest=identity[:12],
        source_type=spec.source,
        source=spec.model_dump_json(),
        profile=facts.model_dump_json(),
    )


def register_model(client: MlflowClient, storage: Storage, trial_id: str, run_id: str, name: str) -> str:
    """Log a trial's model as artifacts of its run, register it as a version of the model `name`, and return the version.

    Idempotent: a run that has a version keeps it, and its model is not logged again.

    Raises ValueError if the trial's model is missing, damaged, or has files that raycap does not copy.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if known := client.search_model_versions(f"run_id = '{run_id}'"):
        return str(known[0].version)
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        copy_model(storage, model_folder(trial_id), Path(folder))
        client.log_artifacts(run_id, folder, ARTIFACT_FOLDER)
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT_FOLDER}"
    return str(client.create_model_version(name, source, run_id, tags={"raycap.trial_id": trial_id}).version)
