"""The answer to the question of a sweep: how the values that its grid varies compare, in sentences and as a section."""

import math
from collections.abc import Sequence
from html import escape
from itertools import groupby

from raycap.analysis.analyse import Analysis
from raycap.analysis.axes import Role, format_value
from raycap.analysis.contrasts import Contrast, Effect
from raycap.analysis.html import note, table
from raycap.analysis.intervals import Interval
from raycap.analysis.wording import outcome_text, value_text

MAX_AXES = 2
MAX_OUTCOMES = 3
"""Most axes of the answer, and most outcomes per axis; the section has all of them."""


def question_answer(analysis: Analysis) -> str:
    """Return sentences that compare the values of the axes of the grid.

    Axes of sizes are left out, because the law answers how learned bits depend on the size. Returns "" if nothing else can
    be compared.
    """
    by_axis = [list(members) for _, members in groupby(analysis.contrasts, lambda one: one.axis.path)]
    compared = [members for members in by_axis if members[0].axis.role is not Role.SIZE]
    return " ".join(map(_axis_answer, compared[:MAX_AXES]))


def _axis_answer(contrasts: Sequence[Contrast]) -> str:
    """Return a sentence on one axis, with the outcomes that are decided and differ most first."""
    by_outcome = [list(members) for _, members in groupby(contrasts, lambda one: one.outcome)]
    by_outcome.sort(key=_importance)
    clauses = [_clause(members) for members in by_outcome[:MAX_OUTCOMES]]
    if (left := len(by_outcome) - MAX_OUTCOMES) > 0:
        clauses.append(f"{left} more in the table")
    first = contrasts[0]
    seeds = "1 seed, so no interval" if first.num_seeds == 1 else f"{first.num_seeds} seeds"
    settings = f", {first.num_settings} settings" if first.num_settings > 1 else ""
    sizes = "" if first.equal_sizes else ", models of different sizes"
    return f"{first.axis.path}, all else equal ({seeds}{settings}{sizes}): {'; '.join(clauses)}."


def _importance(members: list[Contrast]) -> tuple[bool, bool, float]:
    """Return a key that sorts outcomes: decided ones, bits per parameter, and large differences first.

    Bits per parameter are the first of all where the compared models differ in size, because their losses do so too.
    """
    one = members[0]
    undecided = all(member.effect is Effect.UNDECIDED for member in members)
    largest = max(abs(member.difference.estimate) for member in members)
    return undecided and (one.outcome.is_loss or one.equal_sizes), one.outcome.is_loss, -largest


def _clause(members: list[Contrast]) -> str:
    """Return what one outcome says about the values of an axis, the best value first."""
    outcome, axis = members[0].outcome, members[0].axis
    best, *others = sorted(members, key=lambda one: one.mean if outcome.is_loss else -one.mean)
    unit, digits = (" bits", 2) if outcome.is_loss else ("", 3)
    text = f"{outcome_text(outcome)}: {best.mean:.{digits}f}{unit} {value_text(axis, best.value)}"
    if len(others) == 1:
        (other,) = others
        text += f", {other.mean:.{digits}f} {value_text(axis, other.value)}"
        verdict = "undecided" if other.effect is Effect.UNDECIDED else "decided"
        if not math.isfinite(other.difference.low):
            return f"{text} ({verdict})"
        # The difference is that of the value with the larger mean minus the other.
        sign = 1 if outcome.is_loss else -1
        estimate, low, high = (sign * bits for bits in other.difference)
        return f"{text} ({verdict}, difference {_interval(Interval(estimate, *sorted((low, high))), digits)})"
    for effect in (Effect.WORSE, Effect.UNDECIDED):
        values = ", ".join(
            f"{axis.describe(one.value)} ({one.mean:.{digits}f})" for one in others if one.effect is effect
        )
        text += f", {effect}: {values}" if values else ""
    return text


def _interval(interval: Interval, digits: int = 3) -> str:
    estimate, low, high = (f"{number:.{digits}f}".replace("-", "−").replace("nan", "–") for number in interval)
    return f"{estimate} [{low}, {high}]"


def contrast_section(analysis: Analysis) -> str:
    """Return the section of the report that compares the values of each axis, or "" if nothing can be compared."""
    body = ""
    for axis, members in groupby(analysis.contrasts, lambda one: one.axis.path):
        rows = []
        for outcome, values in groupby(members, lambda one: one.outcome):
            for one in values:
                rows.append(
                    [
                        escape(outcome_text(outcome)),
                        escape(format_value(one.axis.values[one.value])),
                        f"{one.mean:.3f}",
                        "best mean" if one.value == one.best else _interval(one.difference),
                        "" if one.value == one.best else f"{one.p_value:.3g}".replace("nan", "–"),
                        f"<b>{one.effect}</b>" if one.effect is not Effect.UNDECIDED else str(one.effect),
                        f"{one.num_settings} × {one.num_seeds}{'' if one.paired else ', not paired'}",
                    ]
                )
        header = ["outcome", "value", "mean", "difference to the best mean [95 %]", "p", "verdict", "settings × seeds"]
        body += f"<h3>{escape(axis)}</h3>" + table(header, rows)
    if not body:
        return ""
    single = any(one.num_seeds == 1 for one in analysis.contrasts)
    text = (
        "The values of each axis are compared in trials that are equal in everything else but seeds. Means and differences "
        "are over settings of the other axes and over seeds. Intervals are Student's t at 95 % from the spread between "
        "seeds, taken seed by seed where all cells have the same seeds. p-values are multiplied by the number of all "
        "comparisons in this section. “worse”: another value is better (p < 0.05, and no setting shows the contrary by more "
        "than its own interval); “better”: all other values are worse. Bits per parameter: trials that exhausted their "
        "data are left out. Losses are in bits per question; with a chain of thought, of the chain and the answer together."
    )
    if single:
        text += " Cells with one seed give no interval, so everything about them is undecided: add seeds to the grid."
    return "<h2>What the grid varies</h2>" + body + note(text)
