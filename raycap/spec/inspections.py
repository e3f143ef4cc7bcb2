"""Spec of analyses of stored models: the ablations that state where in a model its knowledge lies."""

from enum import StrEnum

from pydantic import field_validator

from raycap.spec.base import Seed, Spec, broken_rule


class WeightFormat(StrEnum):
    """Formats to which weights are rounded: integers with a scale per output channel. See docs/models.md#compressed."""

    INT8 = "int8"
    INT6 = "int6"
    INT4 = "int4"
    INT3 = "int3"
    INT2 = "int2"

    @property
    def num_bits(self) -> int:
        """Number of bits of an integer."""
        return int(self.removeprefix("int"))


class Ablation(StrEnum):
    """Replacement of what a part of a model adds to the residual stream. See docs/probes.md#localise."""

    MEAN = "mean"
    """Its mean over texts of the same kind, at each position."""
    RESAMPLE = "resample"
    """What it adds in another text of the same kind, at the same position."""


class LocaliseSpec(Spec):
    """Ablations of the parts of trained models. They are not part of a trial's identity, and changing them does not retrain
    any trial. See docs/probes.md#localise."""

    ablations: tuple[Ablation, ...] = tuple(Ablation)
    """Replacements of what a part adds to the residual stream."""
    quantise: tuple[WeightFormat, ...] = (WeightFormat.INT4,)
    """Formats to which the weights of a part alone are rounded."""
    seed: Seed = 0
    """Random seed of the other texts of resample."""

    @field_validator("ablations", "quantise")
    @classmethod
    def _unique(cls, members: tuple[StrEnum, ...]) -> tuple[StrEnum, ...]:
        if len(set(members)) != len(members):
            raise broken_rule("must have no duplicates, got {got}", got=str([str(m) for m in members]))
        return members
