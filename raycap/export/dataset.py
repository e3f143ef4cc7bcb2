"""Writing of populations as datasets: to Parquet files, to folders and to the Hugging Face hub.

`raycap/facts/hosted.py` defines the schema and reads these datasets.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raycap.export import hub
from raycap.export.dataset_card import card
from raycap.export.hub import CARD_FILE, atomic_export
from raycap.export.table_card import NAME_COLUMN, table_card
from raycap.facts.columns import ATTRIBUTES, name_parts
from raycap.facts.hosted import fingerprint, hide_progress
from raycap.facts.profiles import Profiles
from raycap.facts.relations import NO_PERSON
from raycap.spec import ProfilesFromTable

if TYPE_CHECKING:
    from datasets import Dataset

TABLE_FILE = "table.parquet"
"""The file of a table in the folder that it is saved to."""
HUB_FILE = "data/train-00000-of-00001.parquet"
"""The path at which the loaders of the hub expect the split "train"."""


def to_dataset(profiles: Profiles) -> "Dataset":
    """Return the population as a dataset in the hosted schema.

    Raises ValueError for random data, which do not consist of people, and for names that could not be split again into
    first, middle and last name.
    """
    from datasets import Dataset, Features, Value

    schema = profiles.schema
    attributes = tuple(attribute.name for attribute in schema.attributes)
    if attributes != ATTRIBUTES:
        raise ValueError(
            f"the hosted schema requires the attributes {', '.join(ATTRIBUTES)}, got {', '.join(attributes) or 'none'}; "
            "export a trial whose profiles are people, not random data"
        )
    names = pa.array([profiles.full_name(person) for person in range(profiles.num_profiles)], pa.string())
    name_parts(names.to_pylist())  # raises ValueError for names that cannot be split
    columns = {"name": names, "index": pa.array(np.arange(len(names), dtype=np.int32))}
    for attribute, indices in zip(schema.attributes, profiles.attributes.T, strict=True):
        values = [attribute.values[index] for index in indices]
        columns[attribute.name] = pa.array(
            np.array(values, "datetime64[s]") if attribute.name == "birth_date" else values
        )
    for relation, targets in zip(schema.relations, profiles.relations.T, strict=True):
        is_null = targets == NO_PERSON
        index = pa.array(targets, mask=is_null)
        columns[relation] = pa.StructArray.from_arrays(
            [names.take(index), index], ["name", "index"], mask=pa.array(is_null)
        )
    if profiles.bios is not None:
        columns["bio"] = pa.array(profiles.bios, pa.string())

    kinds: dict[str, Any] = dict.fromkeys(columns, Value("string"))
    kinds |= {"index": Value("int32"), "birth_date": Value("timestamp[s]")}
    kinds |= {relation: {"name": Value("string"), "index": Value("int32")} for relation in schema.relations}
    return Dataset.from_dict(columns, features=Features(kinds))


def table_to_dataset(profiles: Profiles) -> "Dataset":
    """Return the population of a table as a dataset of texts: the column of names, and one column for each subject."""
    from datasets import Dataset

    schema, rows = profiles.schema, range(profiles.num_profiles)
    names = [profiles.full_name(row) for row in rows]
    columns: dict[str, list[str | None]] = {NAME_COLUMN: [*names]}
    for column, attribute in enumerate(schema.attributes):
        columns[attribute.name] = [profiles.attribute_value(row, column) for row in rows]
    for relation, targets in zip(schema.relations, profiles.relations.T, strict=True):
        columns[relation] = [None if target == NO_PERSON else names[target] for target in targets.tolist()]
    return Dataset.from_dict(columns)


def save_dataset(
    profiles: Profiles, target: str, *, description: str, force: bool = False, table: ProfilesFromTable | None = None
) -> None:
    """Save a population atomically.

    A target `NAME.parquet` is written as a file, any other as a folder with a card; `description` is the section of the
    card on how the population was made. `force` replaces an earlier export. `table` is the spec of a population from a
    table, which has other columns than people, and whose folder has the table as a Parquet file.

    Raises ValueError for data that do not fit the schema, and FileExistsError if the target exists.
    """
    hide_progress()
    with atomic_export(Path(target), force=force) as path:
        dataset = table_to_dataset(profiles) if table else to_dataset(profiles)
        if path.suffix == ".parquet":
            dataset.to_parquet(path)
        elif table:
            path.mkdir()
            dataset.to_parquet(path / TABLE_FILE)
            text = table_card(profiles, table, path=f"{target}/{TABLE_FILE}", fingerprint=fingerprint(profiles))
            (path / CARD_FILE).write_text(text, encoding="utf-8")
        else:
            dataset.save_to_disk(path)
            (path / CARD_FILE).write_text(_card(profiles, "disk", target, description), encoding="utf-8")


def push_dataset(
    profiles: Profiles, repo: str, *, description: str, private: bool = False, table: ProfilesFromTable | None = None
) -> str:
    """Commit a population and its card to the dataset `owner/name` on the hub and return its URL.

    Existing data of the dataset are replaced. For `table`, see `save_dataset`.

    Raises ValueError for data that do not fit the schema, and HubError if the upload fails.
    """
    hide_progress()
    with TemporaryDirectory(prefix="raycap-") as folder:
        (Path(folder) / HUB_FILE).parent.mkdir()
        if table:
            text = table_card(profiles, table, path=HUB_FILE, fingerprint=fingerprint(profiles))
        else:
            text = _card(profiles, "hub", repo, description)
        (table_to_dataset(profiles) if table else to_dataset(profiles)).to_parquet(Path(folder) / HUB_FILE)
        (Path(folder) / CARD_FILE).write_text(text, encoding="utf-8")
        # Dataset.push_to_hub would make several commits; this makes one for data and card.
        return hub.push_folder(
            Path(folder),
            repo,
            "dataset",
            private=private,
            message="People from raycap",
            files=(HUB_FILE, CARD_FILE),
            replaced="data/*",
        )


def _card(profiles: Profiles, source: str, path: str, description: str) -> str:
    return card(profiles, source=source, path=path, fingerprint=fingerprint(profiles), description=description)
