"""The style shared by all figures: sizes, colours, layout, logarithmic axes, and scatter and line helpers.

Figures are one or two columns of a page wide and use the Okabe-Ito palette, which is safe for colour-blind readers. The
title is above the axes, the legend and the caption are below.
"""

import io
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from raycap.analysis.analyse import Analysis
from raycap.spec import SelectionScheme

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COLUMN_INCHES, PAGE_INCHES = 3.5, 7.0
CAPTION_POINTS = 6.5
MAX_LEGEND_COLUMNS = 5
MAX_VECTORS = 2_000
"""Points and lines of a figure with more elements than this are rasterised, which keeps the SVG small."""
MAX_LINES = 250
"""The most lines that are drawn for one group of a dense figure."""
HOUSE_STYLE: Any = {
    "figure.dpi": 300,
    "savefig.dpi": 300,
    "font.size": 7.5,
    "axes.labelsize": 7.5,
    "axes.titlesize": 7.5,
    "axes.titlelocation": "left",
    "figure.titlesize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "legend.handlelength": 1.8,
    "legend.columnspacing": 1.0,
    "legend.handletextpad": 0.5,
    "legend.borderpad": 0.2,
    "legend.labelspacing": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.0,
    "lines.markersize": 4,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "svg.hashsalt": "raycap",
}
STYLE: Any = dict(matplotlib.rcParamsDefault) | HOUSE_STYLE
"""matplotlib's own defaults with the house style, so that no matplotlibrc or style file of the user changes a figure."""
STYLE.pop("backend")  # figures are drawn without pyplot, and setting a backend would load it
INK, GREY, PALE = "#222222", "#757575", "#e2e2e2"
BLUE, ORANGE, GREEN, PINK, SKY, AMBER = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"  # Okabe-Ito


class LineStyle(NamedTuple):
    """Colour, marker and line style of a series. Series differ in all three, so they are legible without colour."""

    colour: Any
    marker: Any
    line: Any


SELECTION_LOOKS = {
    SelectionScheme.SET: LineStyle(GREEN, "s", "-."),
    SelectionScheme.ENUMERATE: LineStyle(BLUE, "o", "-"),
    SelectionScheme.INDEPENDENT: LineStyle(ORANGE, "^", "--"),
}
LOOKS = [
    LineStyle(BLUE, "o", "-"),
    LineStyle(ORANGE, "^", "--"),
    LineStyle(GREEN, "s", "-."),
    LineStyle(PINK, "D", ":"),
]
LOOKS += [LineStyle(SKY, "v", "-"), LineStyle(AMBER, "P", "--")]
REFERENCE_BITS_PER_PARAM = 2.0
DrawnFigure = TypeVar("DrawnFigure", Figure, Figure | None)


def styled(draw: Callable[[Analysis], DrawnFigure]) -> Callable[[Analysis], DrawnFigure]:
    """Decorate a figure function so that it draws under STYLE without changing the global rcParams."""

    @wraps(draw)
    def in_style(analysis: Analysis) -> DrawnFigure:
        with matplotlib.rc_context(STYLE):
            return draw(analysis)

    return in_style


def image(figure: Figure, kind: str) -> bytes:
    """Return the figure as "png" or "svg" bytes. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {})
    return buffer.getvalue()


def panels(
    rows: int = 1, columns: int = 1, *, width: float = COLUMN_INCHES, height: float = 2.3, **options: Any
) -> tuple[Figure, NDArray[Any]]:
    """Return a figure and its axes of shape (rows, columns).

    `width` and `height` are in inches. The height is that of the axes; `finish` adds the height of title, legend and
    caption.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def finish(figure: Figure, title: str, caption: str) -> Figure:
    """Add the title, one legend of all axes, and the caption, and return the figure.

    The figure grows by the height of these texts, so that the axes keep their size and nothing overlaps.
    """
    width, height = figure.get_size_inches()
    renderer = FigureCanvasAgg(figure).get_renderer()
    max_width = 0.97 * width * figure.dpi  # pixels
    heading = figure.suptitle(title, x=0.012, ha="left", fontweight="bold")
    _wrap(heading, max_width, renderer)
    text = figure.text(0.012, 0.01, caption, fontsize=CAPTION_POINTS, color=GREY, va="bottom", linespacing=1.25)
    lines = _wrap(text, max_width, renderer)
    caption_inches = text.get_window_extent(renderer).height / figure.dpi + 0.05 if lines else 0.0
    legend = _add_legend(figure, renderer)
    legend_inches = legend.get_window_extent(renderer).height / figure.dpi + 0.03 if legend else 0.0
    extra = caption_inches + legend_inches
    title_inches = 0.12 * (1 + heading.get_text().count("\n"))
    total = height + extra + title_inches
    figure.set_size_inches(width, total)
    # From bottom to top: caption, legend, then the rectangle that the constrained layout fills with axes and title.
    text.set_y(0.03 / total)
    if legend:
        legend.set_bbox_to_anchor((0.5, caption_inches / total), transform=figure.transFigure)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.008, extra / total, 0.984, 1.0 - extra / total))
    _settle(figure)
    return figure


def _add_legend(figure: Figure, renderer: Any) -> Legend | None:
    """Add one legend of all axes, each label once, in the most columns that fit into the width."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for columns in range(min(len(handles), MAX_LEGEND_COLUMNS), 0, -1):
        legend = figure.legend(list(handles.values()), list(handles), loc="lower center", ncols=columns)
        if columns == 1 or legend.get_window_extent(renderer).width <= figure.bbox.width:
            return legend
        legend.remove()
    return None


def _settle(figure: Figure) -> None:
    """Fix the layout and round the positions of the axes: the last digits of the layout solver are not reproducible."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axes in figure.axes:
        box = axes.get_position(original=True)
        axes.set_position(Bbox.from_bounds(*(round(value, 5) for value in box.bounds)))
        axes.set_in_layout(True)


def _wrap(text: Text, max_width: float, renderer: Any) -> int:
    """Break a text into lines of at most `max_width` pixels; return the number of lines."""
    font = text.get_fontproperties()

    def width(word: str) -> float:
        return float(renderer.get_text_width_height_descent(word, font, False)[0])

    lines: list[str] = []
    used, space = 0.0, width("n n") - width("nn")  # a space between two letters
    for word in text.get_text().split():
        advance = width(word)
        if lines and used + space + advance <= max_width:
            lines[-1] += f" {word}"
            used += space + advance
        else:
            lines.append(word)
            used = advance
    text.set_text("\n".join(lines))
    return len(lines)


def short(value: float) -> str:
    """Return a number with three significant digits and an SI suffix, such as 890k or 1.17M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def log_ticks(axis: Axis, values: Any = ()) -> None:
    """Make an axis logarithmic, with plain numbers as labels. Ticks are at `values` if these are few and far apart."""
    axes: Any = axis.axes
    name = "x" if axis is axes.xaxis else "y"
    getattr(axes, f"set_{name}scale")("log")
    low, high = getattr(axes, f"get_{name}lim")()
    decades = np.log10(high / low)
    distinct = np.unique(np.asarray(values, dtype=float))
    gaps = np.diff(np.log10(distinct)) / decades
    if 0 < len(distinct) <= 8 and (gaps > 0.12).all():
        axis.set_major_locator(FixedLocator(distinct.tolist()))
    elif decades < 0.35:
        axis.set_major_locator(MaxNLocator(4))
    else:
        # The longer the axis, the fewer ticks per decade.
        subs = (
            (1,) if decades > 2.5 else (1, 3) if decades > 1.3 else (1, 2, 5) if decades > 0.7 else (1, 1.5, 2, 3, 5, 7)
        )
        axis.set_major_locator(LogLocator(subs=subs, numticks=20))
    exact = decades < 0.02  # three digits would give equal labels
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if exact else short(value)))
    axis.set_minor_locator(NullLocator())
    axis.set_minor_formatter(NullFormatter())


def scatter(
    axes: Axes, x: Any, y: Any, look: LineStyle, *, dense: bool = False, filled: bool = True, **options: Any
) -> None:
    """Draw points, as open markers unless `filled`; `dense` points are rasterised in an SVG."""
    if len(x) == 0:
        return
    colours = {"color": look.colour, "linewidth": 0} if filled else {"facecolors": "none", "edgecolors": look.colour}
    size = {"linewidth": 0.7} if not filled else {}
    settings: dict[str, Any] = {"s": 14, "marker": look.marker, "zorder": 3, "rasterized": dense} | colours | size
    axes.scatter(x, y, **(settings | options))


def curves(axes: Axes, trial: Any, x: Any, y: Any, look: LineStyle, *, label: str, dense: bool) -> None:
    """Draw one line per trial, all in one collection. The rows of a trial must be adjacent.

    `dense` lines are thin and solid, because dashes would be slow to draw and invisible; at most MAX_LINES of them are
    drawn, with the medians over all trials on top.
    """
    points = np.stack([np.asarray(x, dtype=float), np.asarray(y, dtype=float)], axis=1)
    lines = np.split(points, np.flatnonzero(np.diff(np.asarray(trial))) + 1)
    if dense:
        lines = lines[:: -(-len(lines) // MAX_LINES)]  # every k-th line, k rounded up
    alpha = float(np.clip(8 / len(lines), 0.15, 0.9))
    style, width = ("-", 0.3) if dense else (look.line, 0.9)
    axes.add_collection(
        LineCollection(lines, colors=look.colour, linestyles=[style], linewidths=width, alpha=alpha, rasterized=dense)
    )
    if dense:
        points, alpha = _medians(points), 1.0
        axes.plot(points[:, 0], points[:, 1], color="white", linewidth=2.2)
        axes.plot(points[:, 0], points[:, 1], color=look.colour, linestyle=look.line)
    scatter(axes, points[:, 0], points[:, 1], look, s=5, alpha=alpha)
    axes.plot([], [], color=look.colour, marker=look.marker, linestyle=look.line, markersize=3, label=label)


def _medians(points: Floats) -> Floats:
    """Return the medians of points (x, y) in order of x: one per distinct x, or 24 if there are more."""
    points = points[np.argsort(points[:, 0], kind="stable")]
    starts = np.flatnonzero(np.diff(points[:, 0])) + 1
    parts = np.split(points, starts) if len(starts) < 24 else np.array_split(points, 24)
    return np.array([np.median(part, axis=0) for part in parts])
