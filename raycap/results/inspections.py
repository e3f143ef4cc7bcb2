"""Records of analyses of stored models: the moment of a model in training, and the result of one analysis of it."""

from typing import Generic, TypeVar

from pydantic import JsonValue, SerializeAsAny

from raycap.results.losses import Amount, Count, LossTable, Record
from raycap.results.records import Provenance, TrialId
from raycap.spec import Kind

INSPECTION_SCHEMA_VERSION = 1
BodyT = TypeVar("BodyT", bound=Record)


class Moment(Record):
    """A moment of a trial's training at which its model is stored. Stored as moment.json with models of earlier steps."""

    step: Count
    exposures: Amount


class InspectionRecord(Record, Generic[BodyT]):
    """Result of one analysis of one stored model. Stored as record.json."""

    schema_version: int = INSPECTION_SCHEMA_VERSION
    trial_id: TrialId
    moment: Moment
    name: str
    """Name of the analysis."""
    options: dict[str, JsonValue] = {}
    """Options of the analysis."""
    model_sha256: str
    """SHA-256 of the digest file of the model, which identifies the model."""
    seconds: Amount
    """Duration of the analysis."""
    provenance: Provenance
    body: SerializeAsAny[BodyT]


class ModelLosses(Record):
    """Losses of a stored model, by the analysis `evaluate`."""

    losses: LossTable
    base_losses: LossTable | None = None
    """Losses of the frozen model under an adapter; None without an adapter."""


class TextLosses(Record):
    """Numbers of rows of texts.parquet, by the analysis `losses`."""

    num_rows: dict[Kind, Count]
