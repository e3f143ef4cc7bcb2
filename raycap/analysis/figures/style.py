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
from matplotlib.ticker import (
    AutoMinorLocator,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
)
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from raycap.analysis.analyse import Analysis
from raycap.spec import SelectionScheme

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

COLUMN_INCHES, PAGE_INCHES = 3.5, 7.0
CAPTION_POINTS = 6.5
MAX_LEGEND_COLUMNS = 5
DIRECT = "labelled directly"
"""Group id of lines whose label stands beside them and not in the legend."""
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
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "pdf.fonttype": 42,  # TrueType fonts are embedded, which journals require
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
DrawnFigure = TypeVar("DrawnFigure", bound="CaptionedFigure | None")


def styled(draw: Callable[[Analysis], DrawnFigure]) -> Callable[[Analysis], DrawnFigure]:
    """Decorate a figure function so that it draws under STYLE without changing the global rcParams."""

    @wraps(draw)
    def in_style(analysis: Analysis) -> DrawnFigure:
        with matplotlib.rc_context(STYLE):
            return draw(analysis)

    return in_style


def image(figure: Figure, kind: str) -> bytes:
    """Return the figure as "png", "svg" or "pdf" bytes. Equal figures give equal bytes."""
    buffer = io.BytesIO()
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format=kind, metadata=metadata)
    return buffer.getvalue()


class CaptionedFigure(Figure):
    """A figure that knows its title, its caption, and the height of its axes without them and the legend."""

    title: str = ""
    caption: str = ""
    axes_inches: float


def panels(
    rows: int = 1, columns: int = 1, *, width: float = COLUMN_INCHES, height: float = 2.3, **options: Any
) -> tuple[CaptionedFigure, NDArray[Any]]:
    """Return a figure and its axes of shape (rows, columns).

    `width` and `height` are in inches. The height is that of the axes; `finish` adds the height of title, legend and
    caption.
    """
    figure = CaptionedFigure(figsize=(width, height), layout="constrained")
    figure.axes_inches = height
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def finish(figure: CaptionedFigure, title: str, caption: str) -> CaptionedFigure:
    """Add the title, one legend of all axes, the caption, minor ticks and the names of scales, and return the figure.

    The figure grows by the height of these texts, so that the axes keep their size and nothing overlaps.
    """
    figure.title, figure.caption = title, caption
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            _add_minor_ticks(axis)
            _name_scale(axis)
    renderer = FigureCanvasAgg(figure).get_renderer()
    max_width = 0.97 * figure.bbox.width  # pixels
    heading = figure.suptitle(title, x=0.012, ha="left", fontweight="bold")
    _wrap(heading, max_width, renderer)
    text = figure.text(0.012, 0.01, caption, fontsize=CAPTION_POINTS, color=GREY, va="bottom", linespacing=1.25)
    lines = _wrap(text, max_width, renderer)
    caption_inches = text.get_window_extent(renderer).height / figure.dpi + 0.05 if lines else 0.0
    _add_legend(figure, renderer)
    _lay_out(figure, 0.12 * (1 + heading.get_text().count("\n")), caption_inches)
    text.set_y(0.03 / figure.get_figheight())
    return figure


def for_paper(figure: CaptionedFigure) -> CaptionedFigure:
    """Remove the title and the caption of a finished figure, which a paper sets in its own text, and return the figure."""
    with matplotlib.rc_context(STYLE):
        figure.suptitle("")
        for text in figure.texts:
            text.set_visible(text.get_text().split() != figure.caption.split())
        figure.set_layout_engine("constrained")
        _lay_out(figure, 0.0, 0.0)
    return figure


def _lay_out(figure: CaptionedFigure, title_inches: float, caption_inches: float) -> None:
    """Give the figure its height and arrange, from bottom to top: caption, legend, axes, title."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    legend = next(iter(figure.legends), None)
    legend_inches = legend.get_window_extent(renderer).height / figure.dpi + 0.03 if legend else 0.0
    below = caption_inches + legend_inches
    total = figure.axes_inches + below + title_inches
    figure.set_size_inches(figure.get_figwidth(), total)
    if legend:
        legend.set_bbox_to_anchor((0.5, caption_inches / total), transform=figure.transFigure)
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.008, below / total, 0.984, 1.0 - below / total))
    engine.execute(figure)
    _settle(figure)


def _add_minor_ticks(axis: Axis) -> None:
    """Add minor ticks between the numbers of a linear axis; `log_ticks` adds those of logarithmic axes."""
    if axis.get_scale() == "linear" and not isinstance(axis.get_major_locator(), FixedLocator | NullLocator):
        axis.set_minor_locator(AutoMinorLocator(2))


def _name_scale(axis: Axis) -> None:
    """Name the scale of an axis in its label if it is not linear."""
    label = axis.get_label_text()
    scale = {"log": "log scale", "symlog": "symmetric log scale"}.get(axis.get_scale())
    if label and scale and scale not in label:
        space = "\n" if "\n" in label else " "  # labels of narrow axes have several lines
        axis.set_label_text(f"{label[:-1]},{space}{scale})" if label.endswith(")") else f"{label}{space}({scale})")


def _add_legend(figure: Figure, renderer: Any) -> Legend | None:
    """Add one legend of all axes, each label once, in the most columns that fit into the width."""
    handles: dict[str, dict[type, Any]] = {}  # the first handle of each type, drawn over each other: a line on its band
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            if getattr(handle, "get_gid", str)() != DIRECT:  # bars have no group id
                handles.setdefault(label, {}).setdefault(type(handle), handle)
    for columns in range(min(len(handles), MAX_LEGEND_COLUMNS), 0, -1):
        shown = [tuple(of_label.values()) for of_label in handles.values()]
        legend: Legend = figure.legend(shown, list(handles), loc="lower center", ncols=columns)  # type: ignore[call-overload]
        if columns == 1 or legend.get_window_extent(renderer).width <= 0.97 * figure.bbox.width:
            return legend
        legend.remove()
    return None


def _settle(figure: Figure) -> None:
    """Fix the layout and round the positions of the axes: the last digits of the layout solver are not reproducible."""
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
    axis.set_minor_locator(MaxNLocator(16) if decades < 0.35 else LogLocator(subs=range(2, 10), numticks=50))
    axis.set_minor_formatter(NullFormatter())


def level(axes: Axes, value: float, text: str, *, line: Any = ":") -> None:
    """Draw a horizontal line with its label above its right end."""
    axes.axhline(value, color=GREY, linestyle=line, linewidth=0.8, label=text, gid=DIRECT)
    axes.text(0.99, value, text, transform=axes.get_yaxis_transform(), ha="right", va="bottom", color=GREY, fontsize=6)


def proportional(axes: Axes, span: Floats, bits_per_param: float = REFERENCE_BITS_PER_PARAM) -> None:
    """Draw learned bits = `bits_per_param` P with its label at its left end."""
    text = f"{bits_per_param:g} bits/param"
    axes.plot(span, bits_per_param * span, color=INK, linestyle="--", linewidth=0.8, label=text, gid=DIRECT)
    begin = span[0] * (span[-1] / span[0]) ** 0.02
    angle = float(np.degrees(np.arctan(bits_per_param)))
    axes.text(
        begin, 1.02 * bits_per_param * begin, text, rotation=angle, rotation_mode="anchor", transform_rotates_text=True,
        va="bottom", color=INK, fontsize=6,
    )  # fmt: skip


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
