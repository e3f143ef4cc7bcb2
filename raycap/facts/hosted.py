"""Loading of populations from Parquet files, dataset folders and the Hugging Face Hub, and of single files from the Hub.

The columns are those of the reference implementation's datasets: `name` (string), `index` (int32), `birth_date`
(timestamp[s]), `birth_city`, `university` and `employer` (string), for each relation a struct {name: string, index:
int32} that is null if the person has no such relation, and optionally `bio` (string). columns.py checks them.
Tables with other columns are read by tables.py.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet

from raycap.facts.columns import from_table
from raycap.facts.profiles import NO_VALUE, Profiles
from raycap.facts.tables import load_table
from raycap.spec import LoadedProfiles, ProfilesFromDisk, ProfilesFromHub, ProfilesFromTable
from raycap.spec.locations import local_path

# --- loading ----------------------------------------------------------------------------------------------------------


def load_profiles(spec: LoadedProfiles) -> Profiles:
    """Load a population from a path or from the Hub and check it against the spec.

    Raises FileNotFoundError if the path does not exist, and ValueError if the data cannot be read or do not have the
    schema, the structure or the fingerprint that is expected.
    """
    try:
        profiles = _load(spec)
        if spec.fingerprint is not None and (found := fingerprint(profiles)) != spec.fingerprint:
            raise ValueError(
                f"the fingerprint is {found}, but the spec requires {spec.fingerprint}: the data have changed; restore "
                "them, or remove profiles.fingerprint"
            )
    except ValueError as error:
        raise ValueError(f"{describe_source(spec)}: {error}") from error
    return profiles


def _load(spec: LoadedProfiles) -> Profiles:
    if isinstance(spec, ProfilesFromTable):
        return load_table(spec)
    assert isinstance(spec, ProfilesFromDisk | ProfilesFromHub)
    table = _from_hub(spec) if isinstance(spec, ProfilesFromHub) else _from_disk(spec.path)
    return from_table(table, spec.structure, spec.self_relations, spec.names)


def describe_source(spec: LoadedProfiles) -> str:
    """Return the beginning of an error about the data of a spec."""
    return f"profiles at {spec.path}"


def _from_disk(location: str) -> Any:
    """Return the table in a Parquet file or a dataset folder."""
    from datasets import Dataset, load_from_disk

    hide_progress()
    path = Path(local_path(location) or "")
    if not path.exists():
        raise FileNotFoundError(f"profiles.path: no such file or folder: {path}")
    if path.is_file():
        try:
            with pa.parquet.ParquetFile(path) as file:  # read_table would add columns for folders named like year=2020
                return file.read()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"cannot be read as a Parquet file ({_cause(error)}); write it again, or set source: table for a table of "
                "other facts"
            ) from error
    try:
        dataset = load_from_disk(str(path))
    except Exception as error:  # the parsers of datasets raise KeyError, TypeError and others for damaged files
        raise ValueError(
            f"not a folder that Dataset.save_to_disk has written, or damaged ({_cause(error)}); set profiles.path to a "
            "Parquet file or save the dataset again"
        ) from error
    if not isinstance(dataset, Dataset):
        raise ValueError(
            f"must be a single dataset, got the splits {sorted(dataset)}; set profiles.path to the folder of one"
        )
    return dataset.with_format("arrow")[:]


def _from_hub(spec: ProfilesFromHub) -> Any:
    """Return the table of a dataset on the Hub.

    `load_dataset` would prefer a folder of that name in the working directory and, without network, any revision in its
    cache. Therefore the files of exactly the spec's revision are fetched first.
    """
    from datasets import load_dataset
    from huggingface_hub import snapshot_download

    hide_progress()
    name = f"{spec.path} at revision {spec.revision}"
    try:
        folder = snapshot_download(spec.path, repo_type="dataset", revision=spec.revision)
    except Exception as error:  # errors of the network have many types
        raise ValueError(
            f"the dataset {name} is neither in the local cache nor can it be loaded from the Hugging Face Hub "
            f"({_cause(error)}); check profiles.path, profiles.revision and the network (HF_HUB_OFFLINE, HF_TOKEN)"
        ) from error
    try:
        return load_dataset(folder, split=spec.split).with_format("arrow")[:]
    except Exception as error:  # the parsers of datasets raise many types, as for folders
        raise ValueError(
            f"the split {spec.split} of {name} cannot be read ({_cause(error)}); check profiles.split"
        ) from error


def download_file(model: str, file: str, revision: str) -> bytes:
    """Return a file of a model on the Hub, from the local cache if it is there. Raises ValueError."""
    from huggingface_hub import hf_hub_download

    hide_progress()
    try:
        return Path(hf_hub_download(model, file, revision=revision)).read_bytes()
    except Exception as error:  # errors of the network have many types
        raise ValueError(
            f"{file} is neither in the local cache nor can it be loaded from the Hugging Face Hub ({_cause(error)}); check "
            "the network (HF_HUB_OFFLINE, HF_TOKEN)"
        ) from error


def _cause(error: Exception) -> str:
    """Return the type of an error and the first line of its message."""
    message = str(error).strip().partition("\n")[0].strip()
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def hide_progress() -> None:
    """Disable the progress bars of `datasets` and of downloads from the Hub."""
    from datasets.utils.logging import disable_progress_bar
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bar()
    disable_progress_bars()


# --- identity ---------------------------------------------------------------------------------------------------------


def fingerprint(profiles: Profiles) -> str:
    """Return the SHA-256 of the names, attribute values, relations and frequencies in the data of a population.

    It does not depend on how the population is stored. The name pools, the assumed distributions and the column `bio`
    do not enter it.
    """
    digest = hashlib.sha256()
    schema, people = profiles.schema, range(profiles.num_profiles)
    digest.update(json.dumps(["name", [profiles.full_name(person) for person in people]]).encode())
    for attribute, values in zip(schema.attributes, profiles.attributes.T, strict=True):
        texts = [None if value == NO_VALUE else attribute.values[value] for value in values]
        digest.update(json.dumps([attribute.name, texts]).encode())
    for relation, targets in zip(schema.relations, profiles.relations.T, strict=True):
        digest.update(json.dumps([relation, targets.tolist()]).encode())
    if profiles.frequencies and profiles.frequencies.in_data:
        digest.update(json.dumps(["frequencies", profiles.frequencies.values.tolist()]).encode())
    return digest.hexdigest()
