"""Populations as datasets in the hosted schema (facts/hosted.py): files, folders and the Hugging Face hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raycap.export import hub
from raycap.export.dataset_card import card
from raycap.export.hub import CARD_FILE, placed
from raycap.facts.hosted import ATTRIBUTES, fingerprint, hide_progress, name_parts
from raycap.facts.profiles import Profiles
from raycap.facts.relations import NO_PERSON

if TYPE_CHECKING:
    from datasets import Dataset

HUB_FILE = "data/train-00000-of-00001.parquet"
"""Where the hub's loaders look for the split "train"."""


def to_dataset(profiles: Profiles) -> "Dataset":
    """The population as a dataset in the hosted schema.

    Raises ValueError for random data, which have no people in them, and for names that could not be read back.
    """
    from datasets import Dataset, Features, Value

    schema = profiles.schema
    if (had := tuple(attribute.name for attribute in schema.attributes)) != ATTRIBUTES:
        raise ValueError(f"only people with {', '.join(ATTRIBUTES)} fit the hosted schema; these have {had}")
    names = pa.array([profiles.full_name(person) for person in range(profiles.num_profiles)], pa.string())
    name_parts(names.to_pylist())
    columns = {"name": names, "index": pa.array(np.arange(len(names), dtype=np.int32))}
    for attribute, indices in zip(schema.attributes, profiles.attributes.T, strict=True):
        values = [attribute.values[index] for index in indices]
        columns[attribute.name] = pa.array(
            np.array(values, "datetime64[s]") if attribute.name == "birth_date" else values
        )
    for relation, targets in zip(schema.relations, profiles.relations.T, strict=True):
        nobody = targets == NO_PERSON
        index = pa.array(targets, mask=nobody)
        columns[relation] = pa.StructArray.from_arrays(
            [names.take(index), index], ["name", "index"], mask=pa.array(nobody)
        )
    if profiles.bios is not None:
        columns["bio"] = pa.array(profiles.bios, pa.string())

    kinds: dict[str, Any] = dict.fromkeys(columns, Value("string"))
    kinds |= {"index": Value("int32"), "birth_date": Value("timestamp[s]")}
    kinds |= {relation: {"name": Value("string"), "index": Value("int32")} for relation in schema.relations}
    return Dataset.from_dict(columns, features=Features(kinds))


def save(profiles: Profiles, target: str, *, description: str, force: bool = False) -> None:
    """Save a population whole or not at all: `NAME.parquet` is a file, all else a folder with a card on which
    `description` says how it was made.

    Raises ValueError for data that do not fit the schema, FileExistsError if there is a file or folder already; `force`
    replaces it if it was saved so.
    """
    hide_progress()
    with placed(Path(target), force=force) as place:
        dataset = to_dataset(profiles)
        if place.suffix == ".parquet":
            dataset.to_parquet(place)
        else:
            dataset.save_to_disk(place)
            (place / CARD_FILE).write_text(_card(profiles, "disk", target, description), encoding="utf-8")


def push(profiles: Profiles, repo: str, *, description: str, private: bool = False) -> str:
    """Commit a population and its card to the dataset `owner/name` on the hub, in the place of data it may have had.

    Returns its URL. Raises ValueError for data that do not fit the schema, HubError where the hub does not take them.
    """
    hide_progress()
    with TemporaryDirectory(prefix="raycap-") as folder:
        (Path(folder) / HUB_FILE).parent.mkdir()
        to_dataset(profiles).to_parquet(Path(folder) / HUB_FILE)
        (Path(folder) / CARD_FILE).write_text(_card(profiles, "hub", repo, description), encoding="utf-8")
        # One commit for data and card, where Dataset.push_to_hub would make several.
        return hub.push(Path(folder), repo, "dataset", private=private, message="People from raycap", replaced="data/*")


def _card(profiles: Profiles, source: str, path: str, description: str) -> str:
    return card(profiles, source=source, path=path, fingerprint=fingerprint(profiles), description=description)
