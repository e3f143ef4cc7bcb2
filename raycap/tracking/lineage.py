"""What MLflow is told a trial was made of, and what it left: its populations as datasets, its model in the registry."""

import hashlib
import tempfile
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.exceptions import MlflowException

from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import LoadedProfiles, ProfilesSpec
from raycap.storage import Storage, model_folder

ARTIFACT_FOLDER = "model"


def dataset_inputs(planned: PlannedTrial) -> list[DatasetInput]:
    """The population of a trial; under fill the first and the second."""
    spec = planned.spec
    profiles = [spec.profiles, *([spec.fill.profiles] if spec.fill else [])]
    context = [InputTag("mlflow.data.context", "train")]
    # A second population takes the names that the first has left, and is no other's second.
    return [
        DatasetInput(_dataset(profiles[: number + 1], facts), context)
        for number, facts in enumerate(planned.populations)
    ]


def _dataset(profiles: list[ProfilesSpec], facts: PopulationFacts) -> Dataset:
    """The last of some populations. Its digest is that of its content where it was loaded, else of the spec with its seed,
    of which nothing but this content comes.
    """
    own = profiles[-1]
    identity = own.fingerprint if isinstance(own, LoadedProfiles) else None
    if identity is None:
        identity = hashlib.sha256("\n".join(one.model_dump_json() for one in profiles).encode()).hexdigest()
    return Dataset(
        name=f"N{facts.num_profiles}-R{len(facts.relations)}",
        digest=identity[:12],
        source_type=own.source,
        source=own.model_dump_json(),
        profile=facts.model_dump_json(),
    )


def register_model(client: MlflowClient, storage: Storage, trial_id: str, run_id: str, name: str) -> str:
    """Log a trial's model as artifacts of its run and as a version of a registered model; which version that is. There is
    one for each run, however often this is asked.

    Raises FileNotFoundError where the trial's model is gone.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    if known := client.search_model_versions(f"run_id = '{run_id}'"):
        return str(known[0].version)
    with tempfile.TemporaryDirectory(prefix="raycap-") as folder:
        storage.read_folder(model_folder(trial_id), Path(folder))
        client.log_artifacts(run_id, folder, ARTIFACT_FOLDER)
    source = f"{client.get_run(run_id).info.artifact_uri}/{ARTIFACT_FOLDER}"
    return str(client.create_model_version(name, source, run_id, tags={"raycap.trial_id": trial_id}).version)
