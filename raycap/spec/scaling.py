"""Numbers of the training that follow a size of the trial, such as a learning rate that falls with the width."""

from enum import StrEnum
from typing import Any

from pydantic import Field

from raycap.spec.base import Spec


class Size(StrEnum):
    """A size of a trial that a number of its training can follow."""

    HIDDEN_SIZE = "hidden_size"
    """h, the width of the model."""
    NUM_PARAMS = "num_params"
    """P, the number of parameters of the model, embeddings included."""
    NUM_PROFILES = "num_profiles"
    """N, the number of people, keys or strings."""


class Scaling(Spec):
    """A number that is a power law of a size: value * (size / at) ** power. Integers are rounded, to at least 1.

    `plan` computes it after it has solved the sizes of the trial, and the trial is identified by the result.
    """

    value: float
    """The number for a trial whose size is `at`."""
    of: Size
    """The size that the number follows."""
    at: float = Field(gt=0, le=1e12)
    """Size at which the number is `value`."""
    power: float = Field(ge=-10, le=10)
    """Exponent: -1 for a number that is inversely proportional to the size, 0.5 for its square root, 1 if proportional."""

    def at_size(self, size: float) -> float:
        """Return the number at a size."""
        return float(self.value * (size / self.at) ** self.power)


def find_scalings(section: dict[str, Any], path: str) -> dict[str, dict[str, Any]]:
    """Return the unvalidated power laws in a section by dotted path: the mappings with two or more of its fields."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in section.items():
        if isinstance(value, dict) and key != "options":  # arguments of the user's own code
            inner = f"{path}.{key}"
            found |= (
                {inner: value} if len(Scaling.model_fields.keys() & value.keys()) > 1 else find_scalings(value, inner)
            )
    return found


def last_part(path: str) -> str:
    """Return the last part of a dotted path; of a field of a power law, also the part before it, such as "lr.power"."""
    parts = path.split(".")
    return ".".join(parts[-2:] if parts[-1] in Scaling.model_fields else parts[-1:])
