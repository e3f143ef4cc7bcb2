"""The section of report.html on frequency classes: their exposures, laws and the thresholds of trials."""

import math
from html import escape

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.points import describe_reading
from raycap.analysis.frequency import final_classes, thresholds
from raycap.analysis.html import note, table

TRIALS_SHOWN = 60
"""The most trials whose thresholds are shown; the figure and the data frame `frequencies` have all."""


def frequency_section(analysis: Analysis) -> str:
    """Return the classes with their laws and the thresholds of trials as HTML, or "" if no trial has frequencies."""
    selection = analysis.headline.selection
    rows = final_classes(analysis.tables.classes, selection)
    if rows.empty:
        return ""
    named = [bool(law.arm) for law in analysis.class_laws]
    laws = []
    for law in analysis.class_laws:
        arm = [escape(law.arm)] if any(named) else []
        interval = f"{law.alpha.estimate:.3f}" if math.isfinite(law.alpha.estimate) else "–"
        if math.isfinite(law.alpha.low):
            interval += f" [{law.alpha.low:.3f}, {law.alpha.high:.3f}]"
        laws.append([*arm, escape(law.name), interval, str(law.num_trials), str(law.status)])
    body = "<h2>Frequencies</h2>" + table(
        [*(["values"] if any(named) else []), "class", "α (bits/param) [95 %]", "trials", "status"], laws
    )
    body += note(
        f"Bits about the people of each class per parameter of the model, under {describe_reading(analysis.headline)}. A "
        "law has the trials that have learned between a twentieth and nine tenths of the bits of the class. The bits of all "
        "classes add up to those of the population (docs/science.md#frequencies)."
    )
    sizes = analysis.tables.trials["num_params"]
    crossed = [
        [escape(str(analysis.tables.trials["label"][trial])), f"{sizes[trial]:,}", f"{value:.3g}"]
        for trial, value in thresholds(analysis.tables.classes, selection).items()
        if math.isfinite(value)
    ]
    if crossed:
        body += table(["trial", "parameters", "exposures at half of the bits"], crossed[:TRIALS_SHOWN])
        body += note(
            "The exposures at which a trial has learned half of the bits of its facts, interpolated between two classes at "
            "the end of training. Trials that learned more or less than half of every class are left out."
        )
    return body
