"""Records of trials and sweeps, and tables of losses in bits."""

from raycap.results.losses import HISTOGRAM_EDGES_BITS, LossRow, LossTable, Part, Record, is_trained
from raycap.results.records import (
    SCHEMA_VERSION,
    EarlierTrials,
    Evaluation,
    Failure,
    ObservedFacts,
    ParameterCounts,
    PlannedTrial,
    PopulationFacts,
    Provenance,
    RunRecord,
    StopReason,
    SweepRecord,
    TrialResult,
    read_failure,
    source_commit,
)

__all__ = [
    "HISTOGRAM_EDGES_BITS",
    "SCHEMA_VERSION",
    "EarlierTrials",
    "Evaluation",
    "Failure",
    "LossRow",
    "LossTable",
    "ObservedFacts",
    "ParameterCounts",
    "Part",
    "PlannedTrial",
    "PopulationFacts",
    "Provenance",
    "Record",
    "RunRecord",
    "StopReason",
    "SweepRecord",
    "TrialResult",
    "is_trained",
    "read_failure",
    "source_commit",
]
