"""Records of what probes read from the residuals of a model, and of the effect of interchanged residuals."""

from enum import StrEnum

from raycap.results.losses import Amount, PositiveCount, Record
from raycap.spec import Kind, Split
from raycap.spec.probes import ProbeSite, ProbeTarget


class ProbeRow(Record):
    """Bits that probes read about one target at one token of the questions of one kind, in bits per question.

    Standard errors are clustered by what determines the label; see docs/probes.md#errors.
    """

    kind: Kind
    split: Split
    target: ProbeTarget
    site: ProbeSite
    layer: float
    """0 for the embeddings, l - 1/2 for the residual between attention and MLP of block l, l for the output of block l."""
    num_texts: PositiveCount
    entropy_bits: Amount
    """Loss of the frequencies of the training folds, which is the entropy of the target."""
    usable_bits: float
    """Usable information: the entropy less the loss of the probe."""
    usable_error_bits: Amount
    control_bits: float
    """Usable information about the labels of the control task."""
    control_error_bits: Amount
    untrained_bits: float
    """Usable information in a model of the same shape with the weights that training begins with."""
    untrained_error_bits: Amount
    code_length_bits: Amount
    """Prequential code length of the target given the residuals, divided by the number of questions."""
    parts_bits: dict[str, float]
    """Share of each part of the target in `usable_bits`."""

    @property
    def selectivity_bits(self) -> float:
        """Usable information about the target less that about the control task."""
        return self.usable_bits - self.control_bits


class Space(StrEnum):
    """Part of a residual that is interchanged."""

    WHOLE = "whole"
    """The whole residual."""
    PROBE = "probe"
    """Its projection on the directions in which the probe reads most."""
    RANDOM = "random"
    """Its projection on as many random directions."""


class InterchangeRow(Record):
    """Effect of replacing a residual of a base question by that of a source question, over pairs of questions."""

    kind: Kind
    site: ProbeSite
    layer: float
    """As in ProbeRow."""
    space: Space
    num_dimensions: PositiveCount
    num_pairs: PositiveCount
    gained_bits: float
    """Decrease of the loss of the source's answer, mean over pairs."""
    gained_error_bits: Amount
    moved_share: float
    """Share of the pairs, among those where the base's answer had the smaller loss, where the source's has it afterwards."""
    moved_error: Amount


class ProbeReadings(Record):
    """Result of the analysis `probe` of one model."""

    probes: tuple[ProbeRow, ...]
    interchanges: tuple[InterchangeRow, ...]
