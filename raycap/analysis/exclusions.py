"""Reasons why a trial does not enter a law, with their rules and remedies (docs/analysis.md#exclusions)."""

from enum import StrEnum

from raycap.analysis.curves import DIVERGED_ABOVE, EXHAUSTED_BELOW, IGNORANT_ABOVE, Convergence


class ExclusionReason(StrEnum):
    """Reason why a trial does not enter a law."""

    EXHAUSTED = "dataset exhausted"
    """The model could have stored more data than there were. The power law bends there and keeps such trials."""
    NEAR_CHANCE = "answers near chance"
    """The mean lost share of the trial's cell is above IGNORANT_ABOVE, so nearly all learned bits are those of the names,
    which are not measured; or no bits were learned."""
    DIVERGED = "diverged"
    """The lost share at the end is clearly above its earlier minimum."""
    OTHER_SETTING = "another setting of training learned more"
    """The grid varies settings of training, and trials that differ from it in nothing else learned more on average."""
    UNREADABLE = "unreadable"
    """The result cannot be analysed. The reason follows after a colon."""


REMEDIES = {
    ExclusionReason.EXHAUSTED: "more people (profiles.num_profiles) or smaller models are limited by the model again",
    ExclusionReason.NEAR_CHANCE: "more exposures (training.length) or another learning rate may teach something",
    ExclusionReason.DIVERGED: "a lower learning rate (training.optimizer.lr) may keep what was learned",
}
"""Changes to a sweep after which trials are not excluded, by reason. Unreadable results have their remedy in the reason."""
RULES = {
    ExclusionReason.EXHAUSTED: f"less than {EXHAUSTED_BELOW:.0%} of the answers' entropy is lost at the end",
    ExclusionReason.NEAR_CHANCE: (
        f"more than {IGNORANT_ABOVE:.0%} of the answers' entropy is lost at the end in the mean over the seeds of a cell: "
        "nearly all learned bits are those of the names, which questions do not measure; or learned bits are 0 or less"
    ),
    ExclusionReason.DIVERGED: (
        f"the lost share of the answers' entropy at the end is more than {DIVERGED_ABOVE:g} above an earlier one"
    ),
    ExclusionReason.OTHER_SETTING: (
        "with other settings of training, trials that are equal in everything else learned more bits on average"
    ),
}
"""Rules of the exclusions, by reason."""


def exclusion(state: Convergence, lost: float, learned_bits: float) -> ExclusionReason | None:
    """Return the reason why a trial does not enter the proportional law, or None if it does. `lost` is that of its cell."""
    if state is Convergence.DIVERGED:
        return ExclusionReason.DIVERGED
    if lost > IGNORANT_ABOVE or learned_bits <= 0:
        return ExclusionReason.NEAR_CHANCE
    return ExclusionReason.EXHAUSTED if state is Convergence.EXHAUSTED else None
