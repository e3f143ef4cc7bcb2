"""What can be asked: the sweep file as frozen Pydantic models, every knob documented, and the identity of a trial.

The identity of a trial is its *resolved* TrialSpec alone: what is learned, by which model, how it is trained. Where it
runs, where it is stored and what it is called live in ExecutionSpec, TrackingSpec and SweepSpec and never enter it.
"""

from raycap.spec.base import EncodingScheme, SelectionScheme, Spec
from raycap.spec.facts import (
    NUM_CENSUS_FIRST_NAMES,
    NUM_CENSUS_LAST_NAMES,
    NUM_RELATIONS_KNOWN,
    NamePools,
    ProfilesByBits,
    ProfilesByCount,
    ProfilesFromDisk,
    ProfilesFromHub,
    ProfilesSpec,
    QuestionsSpec,
)
from raycap.spec.learner import (
    BpeTokenizer,
    HeadSize,
    ModelByParams,
    ModelByWidth,
    ModelSpec,
    NumHeads,
    TokenizerSpec,
    WordTokenizer,
)
from raycap.spec.sweep import AnalysisSpec, ExecutionSpec, SweepSpec, TrackingSpec
from raycap.spec.trial import AdamWSpec, Exposures, Precision, Schedule, Steps, Tokens, TrainingSpec, TrialSpec

__all__ = [
    "NUM_CENSUS_FIRST_NAMES",
    "NUM_CENSUS_LAST_NAMES",
    "NUM_RELATIONS_KNOWN",
    "AdamWSpec",
    "AnalysisSpec",
    "BpeTokenizer",
    "EncodingScheme",
    "ExecutionSpec",
    "Exposures",
    "HeadSize",
    "ModelByParams",
    "ModelByWidth",
    "ModelSpec",
    "NamePools",
    "NumHeads",
    "Precision",
    "ProfilesByBits",
    "ProfilesByCount",
    "ProfilesFromDisk",
    "ProfilesFromHub",
    "ProfilesSpec",
    "QuestionsSpec",
    "Schedule",
    "SelectionScheme",
    "Spec",
    "Steps",
    "SweepSpec",
    "TokenizerSpec",
    "Tokens",
    "TrackingSpec",
    "TrainingSpec",
    "TrialSpec",
    "WordTokenizer",
]
