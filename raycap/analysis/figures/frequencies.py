"""Figure of the learned share of facts by how often they occur in training."""

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.groups import trial_series
from raycap.analysis.figures.points import describe_reading, with_counts
from raycap.analysis.figures.style import MAX_VECTORS, CaptionedFigure, curves, finish, level, log_ticks, panels, styled
from raycap.analysis.frequency import HALF, final_classes, thresholds


@styled
def frequencies(analysis: Analysis) -> CaptionedFigure | None:
    """Draw the learned share of each frequency class at the end over its exposures, one line per trial.

    Returns None if no trial has several classes.
    """
    selection = analysis.headline.selection
    table = final_classes(analysis.tables.classes, selection).dropna(subset=["learned_share"])
    table = table[table.groupby("trial")["name"].transform("size") > 1] if len(table) else table
    if table.empty:
        return None
    figure, ((axes,),) = panels()
    dense = len(table) > MAX_VECTORS
    series = trial_series(analysis, table["trial"])
    series.add_legend(axes)
    for group in series.series:
        members = table[group.members]
        shares = members["learned_share"].clip(lower=0.0)
        curves(axes, members["trial"], members["class_exposures"], shares, group.look, label=group.label, dense=dense)
    level(axes, HALF, "half of the bits")
    axes.autoscale_view()
    axes.set(xlabel="exposures of a fact of the class", ylabel="learned share of the bits", ylim=(-0.03, 1.03))
    log_ticks(axes.xaxis)
    crossed = thresholds(analysis.tables.classes, selection).dropna()
    notes = "Each line is one trial at the end of training; each point is the people of one frequency class. "
    if len(crossed):
        notes += (
            f"{len(crossed)} trial{'s' * (len(crossed) > 1)} learned half of the bits at {crossed.min():.3g} to "
            f"{crossed.max():.3g} exposures. "
        )
    notes += "Shares below 0, of losses above those of a uniform guess, are drawn at 0."
    title = f"Learned share by frequency, {describe_reading(analysis.headline)}"
    return finish(figure, title, with_counts(analysis, notes))
