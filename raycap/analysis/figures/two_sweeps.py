"""The figure that compares the capacities of two sweeps."""

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.capacities import draw_points
from raycap.analysis.figures.law_lines import draw_law
from raycap.analysis.figures.points import describe_reading, final_points
from raycap.analysis.figures.style import INK, LOOKS, REFERENCE_BITS_PER_PARAM, STYLE, finish, log_ticks, panels
from raycap.analysis.headline import arms_or_whole, claim_of


def two_sweeps(one: Analysis, other: Analysis) -> Figure:
    """Draw learned bits against parameters for two sweeps, each under its own headline reading and with a law per arm."""
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = panels()
        sizes = np.concatenate([analysis.tables.trials["num_params"] for analysis in (one, other)]).astype(float)
        span = np.array([sizes.min() / 1.2, sizes.max() * 1.2])
        caption = [
            "Each point is one trial at the end of training; lines and bands: fitted laws α P with 95 % intervals, one for "
            "each combination of compared values."
        ]
        for analysis, look in zip((one, other), LOOKS, strict=False):
            points = final_points(analysis)
            name = analysis.sweep.spec.name
            draw_points(axes, points, look, label=name)
            for arm in arms_or_whole(analysis):
                law, claim = arm.laws[analysis.headline], claim_of(analysis, arm)
                draw_law(axes, law, span, look.colour, claim=claim, named=not analysis.arms)
            caption.append(
                f"{name}: {len(points)} trials ({describe_reading(analysis.headline)}), "
                f"{len(analysis.law.excluded)} of them in no law."
            )
        axes.plot(span, REFERENCE_BITS_PER_PARAM * span, color=INK, linestyle="--", linewidth=0.8, label="2 bits/param")
        axes.set(xlabel="parameters, embeddings included", ylabel="learned bits", xlim=span)
        axes.set_yscale("log")
        log_ticks(axes.xaxis, sizes)
        log_ticks(axes.yaxis)
        return finish(figure, f"{one.sweep.spec.name} and {other.sweep.spec.name}", " ".join(caption))
