"""Labels of trials: short names for people that `--trials` accepts, unique within a sweep."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from raycap.results import PlannedTrial
from raycap.spec import ModelOfTransformers, ResolvedModel, TrialSpec
from raycap.spec.document import truncated
from raycap.spec.scaling import last_part

COVERED = {
    "model.hidden_size",
    "model.num_params",
    "model.num_layers",
    "model.config.model_type",
    "model.config.hidden_size",
    "model.config.num_hidden_layers",
    "profiles.num_profiles",
    "training.seed",
}
"""Axes whose values the beginning of a label contains."""
MAX_LENGTH = 40
"""Largest number of characters of the value of an axis."""
TAGS = ("kind", "source")
"""Fields that select the form of a section. Labels contain their values without the name of the field."""
PUNCTUATION = frozenset("._-/:~@")
"""Punctuation that is kept in values. Not commas, which separate labels in `--trials`, nor + and =, which separate the parts
of a label."""


def label(spec: TrialSpec, coordinates: dict[str, Any], num_profiles: int) -> str:
    """Return the label of a trial: its sizes, its seed, and the values of the other axes."""
    assert isinstance(spec.model, ResolvedModel)
    architecture = f"{spec.model.model_type}-" if isinstance(spec.model, ModelOfTransformers) else ""
    sizes = f"{architecture}d{spec.model.hidden_size}-L{spec.model.num_layers}-N{num_profiles}-s{spec.training.seed}"
    axes = [path for path in coordinates if path not in COVERED]
    leaf_of = {path: last_part(path) for path in axes}
    count = Counter(leaf_of.values())
    names = {path: leaf if count[leaf] == 1 else path for path, leaf in leaf_of.items()}
    return "-".join([sizes, *(f"{names[path]}={truncated(_short(coordinates[path]), MAX_LENGTH)}" for path in axes)])


def with_unique_labels(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    """Append the trial's id to every label that several trials have, for example because they differ in a cut value."""
    count = Counter(trial.label for trial in trials)
    return [
        trial.model_copy(update={"label": f"{trial.label}-{trial.trial_id}"}) if count[trial.label] > 1 else trial
        for trial in trials
    ]


def _short(value: Any) -> str:
    """Return a grid value in the characters that labels allow. A section becomes the names and values of its fields."""
    if isinstance(value, dict):
        parts = [_short(inner) if key in TAGS else f"{_short(key)}:{_short(inner)}" for key, inner in value.items()]
        return "+".join(parts) or "none"
    if isinstance(value, list):
        return "+".join(map(_short, value)) or "none"
    if isinstance(value, float):
        return str(value)
    return "".join(c if (c.isascii() and c.isalnum()) or c in PUNCTUATION else "_" for c in str(value))
