"""The answer of a sweep in a paragraph, the same in the report, `raycap status`, MLflow and the output of a run."""

from collections import Counter
from collections.abc import Mapping

from raycap.analysis.analyse import Analysis
from raycap.analysis.exclusions import REMEDIES
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.headline import describe, headlines
from raycap.analysis.laws import MIN_SIZE_RATIO, FitStatus
from raycap.analysis.question import question_answer

MAX_OUTLIERS_NAMED = 3
"""Maximum number of outliers that the answer names; the report lists all."""


def answer(analysis: Analysis) -> str:
    """Return the main result in a paragraph: the answer to the question of the sweep, then its law."""
    return " ".join(filter(None, [question_answer(analysis), law_sentences(analysis)]))


def law_sentences(analysis: Analysis) -> str:
    """Return the headline, or why there is none, then the outliers and the comparison of readings if there are any."""
    law, reading = analysis.law, analysis.headline
    if found := headlines(analysis):
        sentences = [describe(found, reading, analysis.best_settings)]
        if num_without := len(analysis.arms) - len(found) if analysis.arms else 0:
            sentences.append(f"{num_without} other compared value{'s have' if num_without > 1 else ' has'} no law")
        if not analysis.arms and law.power.status is FitStatus.OK:
            gamma = law.power.gamma
            sentences.append(f"Under {reading} bits grow as P^{gamma.estimate:.2f} [{gamma.low:.2f}, {gamma.high:.2f}]")
    else:
        sentences = [_no_law(analysis)]
    if law.outliers and not analysis.arms:
        sentences.append(_describe_outliers(analysis))
    comparison = analysis.comparison
    if found and len(comparison.readings) >= 2 and comparison.pairs:
        best = comparison.best
        known = "" if best == reading else ", which is not the headline reading"
        sentences.append(f"The reading that fits is {best}{known}" if best else "Which reading fits is undecided")
    return ". ".join(sentences) + "."


def _no_law(analysis: Analysis) -> str:
    """Return a sentence, without its full stop, on why no law has an interval and what to add."""
    law, reading = analysis.law, describe_reading(analysis.headline)
    finals = analysis.totals(final=True)
    usable = finals[~finals["trial_id"].isin(law.excluded)] if len(finals) else finals
    if usable.empty:
        why = _describe_exclusions(law.excluded) if law.excluded else "Run the sweep to train its trials"
        return f"No capacity-limited trial has finished, so there is no law yet ({reading}). {why}"
    low, high = usable["bits_per_param"].min(), usable["bits_per_param"].max()
    span = f"{low:.2f}" if f"{low:.2f}" == f"{high:.2f}" else f"{low:.2f} to {high:.2f}"
    number = len(usable)
    learned = f"{number} trial{'s' * (number > 1)} learned {span} bits per parameter at the end of training ({reading})"
    statuses = {arm.laws[analysis.headline].status for arm in analysis.arms} or {law.status}
    each = " for any of the compared values" if analysis.arms else ""
    if FitStatus.NOT_CONVERGED in statuses:
        remedy = "the fit did not converge; add trials of other sizes or seeds"
    elif FitStatus.TOO_FEW in statuses:
        remedy = "an interval needs at least three cells; add sizes or other settings besides seeds"
    else:
        remedy = (
            f"the models of a law must differ by at least a factor of {MIN_SIZE_RATIO:g} in parameters; add values of "
            "model.hidden_size or model.num_params"
        )
        if law.excluded:
            number, total = len(law.excluded), len(analysis.measured)
            remedy += f", or change what excludes {number} of {total} trials ({_describe_exclusions(law.excluded)})"
    return f"{learned}. There is no law{each}: {remedy}"


def _describe_exclusions(excluded: Mapping[str, str]) -> str:
    """Return a sentence on the most frequent reason why trials are excluded, with what changes it."""
    reason, number = Counter(excluded.values()).most_common(1)[0]
    remedy = next((text for known, text in REMEDIES.items() if known == reason), "")
    return f"{number} {'trial is' if number == 1 else 'trials are'} excluded, {reason}{f': {remedy}' if remedy else ''}"


def _describe_outliers(analysis: Analysis) -> str:
    """Return a sentence, without its full stop, that names the outliers of the headline law and what they do to it."""
    labels = {trial.trial_id: trial.label for trial in analysis.sweep.trials}
    outliers = [
        f"{labels[trial_id]} ({factor:.2g} times the law)" for trial_id, factor in analysis.law.outliers.items()
    ]
    named = ", ".join(outliers[:MAX_OUTLIERS_NAMED])
    more = f" and {len(outliers) - MAX_OUTLIERS_NAMED} more" if len(outliers) > MAX_OUTLIERS_NAMED else ""
    return f"Outliers, which widen the intervals: {named}{more}"
