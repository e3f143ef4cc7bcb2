"""Results of analyses of stored models on disk, and which of them exist.

storage/trials/<trial_id>/inspections/<name>/<step>/record.json

The name has a digest of the options appended if there are any. Analyses may write more files beside the record, which is
written last, so an analysis is finished if and only if its record exists.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError

from raycap.results import INSPECTION_SCHEMA_VERSION, BodyT, InspectionRecord, Moment, TrialResult
from raycap.storage.checksum import verify_checksum, with_checksum
from raycap.storage.files import DamagedError, Storage, inspections_folder
from raycap.storage.kept_models import folder_of_model
from raycap.storage.saved_model import DIGEST_FILE

RECORD_FILE = "record.json"
TEXTS_FILE = "texts.parquet"
"""Losses of all texts, which the analysis `losses` writes."""
OPTIONS_DIGITS = 8


class _Header(BaseModel):
    """The fields of a record that do not depend on the analysis."""

    schema_version: int
    model_sha256: str


def inspection_folder(trial_id: str, name: str, options: Mapping[str, Any], step: int) -> str:
    """Return the folder of the result of an analysis with some options of the model after a step."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:OPTIONS_DIGITS]
    return f"{inspections_folder(trial_id)}/{name}{f'-{digest}' if options else ''}/{step:012d}"


def model_sha256(storage: Storage, result: TrialResult, moment: Moment) -> str:
    """Return the SHA-256 of the digest file of a stored model. Raises FileNotFoundError."""
    return hashlib.sha256(storage.read(f"{folder_of_model(result, moment)}/{DIGEST_FILE}")).hexdigest()


def is_inspected(storage: Storage, result: TrialResult, moment: Moment, name: str, options: Mapping[str, Any]) -> bool:
    """Return whether there is a valid record of an analysis of the model that is stored now."""
    folder = inspection_folder(result.trial_id, name, options, moment.step)
    try:
        header = _Header.model_validate_json(verify_checksum(storage.read(f"{folder}/{RECORD_FILE}")))
    except (FileNotFoundError, DamagedError, ValidationError):
        return False
    return header == _Header(
        schema_version=INSPECTION_SCHEMA_VERSION, model_sha256=model_sha256(storage, result, moment)
    )


def write_inspection(storage: Storage, record: InspectionRecord[BodyT]) -> None:
    """Write the record of an analysis."""
    folder = inspection_folder(record.trial_id, record.name, record.options, record.moment.step)
    storage.write(f"{folder}/{RECORD_FILE}", with_checksum(record.model_dump_json(indent=1)))


def read_inspections(
    storage: Storage, trial_id: str, name: str, body: type[BodyT]
) -> tuple[InspectionRecord[BodyT], ...]:
    """Return the valid records of an analysis of a trial's models: all options, each by ascending step.

    Args:
        storage: Storage of the trial.
        trial_id: The trial.
        name: Name of the analysis.
        body: Type of its result.
    """
    root = inspections_folder(trial_id)
    variants = [variant for variant in storage.names(root) if variant == name or variant.startswith(f"{name}-")]
    folders = [
        f"{root}/{variant}/{step}" for variant in sorted(variants) for step in storage.names(f"{root}/{variant}")
    ]
    records = [_read(storage, folder, body) for folder in sorted(folders)]
    return tuple(record for record in records if record is not None and record.name == name)


def read_of_trials(
    storage: Storage, trial_ids: Iterable[str], name: str, body: type[BodyT]
) -> dict[str, tuple[InspectionRecord[BodyT], ...]]:
    """Return the valid records of an analysis by trial_id, as `read_inspections`; trials without any are left out."""
    found = {trial_id: read_inspections(storage, trial_id, name, body) for trial_id in trial_ids}
    return {trial_id: records for trial_id, records in found.items() if records}


def _read(storage: Storage, folder: str, body: type[BodyT]) -> InspectionRecord[BodyT] | None:
    """Return the record in a folder; None if it does not exist, is damaged, or is of another version."""
    try:
        text = verify_checksum(storage.read(f"{folder}/{RECORD_FILE}"))
        record = InspectionRecord[body].model_validate_json(text)  # type: ignore[valid-type]
    except (FileNotFoundError, DamagedError, ValidationError):
        return None
    return record if record.schema_version == INSPECTION_SCHEMA_VERSION else None
