"""Records of how the answers to two-hop questions of a model come about."""

from enum import StrEnum

from raycap.results.losses import Amount, Count, PositiveCount, Record

COMPOSITION = "composition"
"""Name under which the results are stored."""
Z_95 = 1.96


class Mechanism(StrEnum):
    """How answers to two-hop questions come about."""

    COMPOSED = "composed"
    """From the facts of the hops: training a question hardly helps beyond them."""
    MEMORISED = "memorised"
    """From training the question itself."""
    MIXED = "mixed"
    """From both."""
    UNDECIDED = "undecided"
    """The interval allows several of these, or the answers are not known."""


class Estimate(Record):
    """A mean with its standard error over bridges, in which the questions of one bridge count as one observation."""

    value: float
    standard_error: Amount

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval."""
        return self.value - Z_95 * self.standard_error, self.value + Z_95 * self.standard_error


class SplitComposition(Record):
    """Composition of the questions of one split."""

    num_questions: PositiveCount
    loss_bits: Estimate
    composed_bits: Estimate
    """Loss predicted by composing the single hops."""
    gap_bits: Estimate
    """Loss minus predicted loss: negative if more is known than composition explains."""
    num_known: Count
    """Number of questions of which both hops are known."""
    known_gap_bits: Estimate | None
    """The same for these questions; None if they have fewer than two bridges."""
    hop_bits: float
    """Mean loss of a hop by inversion of the loss of each question."""
    hop_bits_of_mean: float
    """Loss of a hop by inversion of the mean loss of each subject."""
    measured_hop_bits: float
    """Mean loss of the hops asked alone."""
    variance_shares: dict[str, float]
    """Share of the variance of losses between the groups of each factor (person, pair, bridge, subject), corrected for
    their number."""


class Composition(Record):
    """Evidence on the mechanism behind the two-hop answers of one model."""

    trained: SplitComposition
    held_out: SplitComposition | None
    """Untrained combinations of facts that all occur in training; None if they have fewer than two bridges."""
    memorised_share: Estimate | None
    """Share of the learned bits of trained questions that neither composition nor untrained combinations show. None if the
    trained questions show no learned bits."""
    mechanism: Mechanism
