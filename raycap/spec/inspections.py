"""Spec of analyses of stored models: which a sweep runs by itself, and ablations of the parts of models."""

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from raycap.spec.base import Seed, Spec, broken_rule


def without_duplicates(members: tuple[object, ...]) -> tuple[object, ...]:
    """Return the elements of a list. Raises the error of a broken rule if two are equal."""
    if len(set(members)) != len(members):
        raise broken_rule("must have no duplicates, got {got}", got=str([str(member) for member in members]))
    return members


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
    """The vector that it adds in another text of the same kind, at the same position."""


class ModelAnalysis(StrEnum):
    """Analysis of stored models, named as its command. See docs/models.md#analyses."""

    EVALUATE = "evaluate"
    """Losses on the texts that evaluations in training use, also of compressed models."""
    LOSSES = "losses"
    """Loss of every text."""
    PROBE = "probe"
    """Probes and interchanges, with the settings of the section probes."""
    LOCALISE = "localise"
    """Bits lost with each part of the model, with the settings of the section localise."""


class InspectedModels(StrEnum):
    """Stored models that are analysed."""

    FINAL = "final"
    """The final model of each trial."""
    ALL = "all"
    """Also the models of earlier steps that execution.keep_models stores."""


class InspectSpec(Spec):
    """Analyses of stored models that a sweep runs after its trials. They are not part of a trial's identity, and changing
    them does not retrain any trial. See docs/models.md#inspect."""

    analyses: tuple[ModelAnalysis, ...] = ()
    """The analyses, in the order in which they run."""
    models: InspectedModels = InspectedModels.FINAL
    """Models that are analysed: final, or all."""
    quantise: tuple[WeightFormat, ...] = ()
    """Formats of weights with which evaluate also evaluates the models."""
    prune: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """Shares of the weights, the smallest, without which evaluate also evaluates the models."""

    @field_validator("analyses", "quantise", "prune")
    @classmethod
    def _unique(cls, members: tuple[object, ...]) -> tuple[object, ...]:
        return without_duplicates(members)

    @model_validator(mode="after")
    def _compressed_models_are_evaluated(self) -> "InspectSpec":
        if (self.quantise or self.prune) and ModelAnalysis.EVALUATE not in self.analyses:
            raise broken_rule(
                "quantise and prune are options of evaluate, which is not in analyses; add evaluate, or remove {field}",
                field="quantise" if self.quantise else "prune",
            )
        return self


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
    def _unique(cls, members: tuple[object, ...]) -> tuple[object, ...]:
        return without_duplicates(members)


def unsupported_by_transformers(model_kind: str, inspect: InspectSpec) -> Iterator[str]:
    """Yield the analyses and options that models of transformers do not support, each as "field: rule"."""
    kind = f"models of kind {model_kind}"
    for name in (ModelAnalysis.PROBE, ModelAnalysis.LOCALISE):
        if name in inspect.analyses:
            yield f"inspect.analyses: {name} cannot read the residuals of {kind}; remove it"
    for field in ("quantise", "prune"):
        if getattr(inspect, field):
            yield f"inspect.{field}: {kind} are not compressed; remove it"
