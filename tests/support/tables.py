"""A table of four names with missing facts, in every format, and its specs."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raycap.facts.hosted import load_profiles
from raycap.facts.profiles import Profiles
from raycap.spec import ProfilesFromTable

ROWS: list[dict[str, Any]] = [
    {"who": "Ann O'Brien", "home town": "Paris", "age": 31, "born": "1990-01-02", "boss": "Zoë", "none": "x"},
    {"who": "Bob", "home town": "Paris", "age": 7, "born": "1990-01-02", "boss": "Ann O'Brien", "none": "x"},
    {"who": "Zoë", "home town": "New York", "age": None, "born": "2001-11-05", "boss": None, "none": "x"},
    {"who": "Élise de la Tour Jr.", "home town": "Paris", "age": 7, "born": "1990-03-02", "boss": "Bob", "none": "x"},
]
NAMES = [row["who"] for row in ROWS]
SPEC: dict[str, Any] = {
    "source": "table",
    "name": "who",
    "attributes": ["home town", "age", "born", "none"],
    "relations": {"chief": "boss"},
    "subjects": {"age": {"missing": "void"}, "chief": {"missing": "void"}},
}
WORDED = {
    "home town": {
        "questions": ["Where was {name} born?", "{name} comes from where?", "Which town is home to {name}?"],
        "leads": ["came from"],
    },
    "age": {"missing": "void", "questions": ["How old was {name}?"]},
    "chief": {"missing": "void", "phrase": "line manager", "leads": ["worked under"]},
}


def spec_of(path: Path, /, **fields: Any) -> ProfilesFromTable:
    return ProfilesFromTable.model_validate_json(json.dumps({"path": str(path)} | SPEC | fields))


def write(folder: Path, ending: str, rows: list[dict[str, Any]] = ROWS) -> Path:
    """Write rows as a table of a format and return its path."""
    path = folder / f"facts.{ending}"
    match ending:
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        case "jsonl":
            lines = [json.dumps({key: value for key, value in row.items() if value is not None}) for row in rows]
            path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        case "csv":
            cells = [list(rows[0]), *(["" if value is None else str(value) for value in row.values()] for row in rows)]
            path.write_text("".join(",".join(row) + "\n" for row in cells), encoding="utf-8")
    return path


def load(folder: Path, ending: str = "csv", rows: list[dict[str, Any]] = ROWS, **fields: Any) -> Profiles:
    return load_profiles(spec_of(write(folder, ending, rows), **fields))


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [{**each, **values} if number == row else each for number, each in enumerate(ROWS)]
