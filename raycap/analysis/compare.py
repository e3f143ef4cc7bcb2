"""Comparison of two sweeps: differences of their specs, laws and their ratio, and trials at the same coordinates."""

import json
from dataclasses import dataclass
from html import escape
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.style import image
from raycap.analysis.figures.two_sweeps import two_sweeps
from raycap.analysis.headline import arms_or_whole
from raycap.analysis.html import figure, note, page, table
from raycap.analysis.intervals import NOTHING, TAILS, Interval
from raycap.analysis.laws import FitStatus, Law
from raycap.analysis.readings import Reading
from raycap.results import SweepRecord
from raycap.results.texts import bits_per_param_text

Rows = list[list[str]]


@dataclass(frozen=True)
class SideBySide:
    """A comparison of two analyses. Rows of its tables are lists of formatted cells; `headings` has their headers."""

    one: Analysis
    other: Analysis

    @property
    def readings(self) -> list[Reading]:
        """The readings that both sweeps declare."""
        return [reading for reading in self.one.laws if reading in self.other.laws]

    @property
    def shared(self) -> int:
        """Number of finished trials that are in both sweeps; these were trained once."""
        return len(self.one.measured.keys() & self.other.measured.keys())

    def differences(self) -> Rows:
        """Return the fields in which the trials and the analysis differ: dotted path, values in `one`, in `other`.

        The resolved specs are compared, so a default that one file spells out is no difference, and neither is an axis
        of the grid with a single value.
        """
        one, other = _values(self.one.sweep), _values(self.other.sweep)
        paths = [path for path in {**one, **other} if one.get(path, {}).keys() != other.get(path, {}).keys()]
        return [[path, _format_values(one.get(path)), _format_values(other.get(path))] for path in sorted(paths)]

    def laws(self) -> Rows:
        """Return a row per pair of arms and reading: alpha of `one` and of `other`, other / one, and both exponents gamma.

        A sweep that compares no axis is one arm. Arms of both sweeps are paired if they have the same values of the
        compared axes; if only one of the sweeps compares an axis, each of its arms is paired with the whole other sweep.
        """
        rows = []
        for one, other in product(arms_or_whole(self.one), arms_or_whole(self.other)):
            if one.label and other.label and one.label != other.label:
                continue
            for reading in self.readings:
                a, b = one.laws[reading], other.laws[reading]
                numbers = [a.alpha, b.alpha, ratio(a, b), a.power.gamma, b.power.gamma]
                rows.append([one.label or other.label or "all", str(reading), *map(_format_interval, numbers)])
        return rows

    def verdicts(self) -> Rows:
        """Return the reading that fits in each sweep, or "undecided"."""
        fits = [str(analysis.comparison.best or "undecided") for analysis in (self.one, self.other)]
        return [["reading that fits", *fits]]

    def trials(self) -> Rows:
        """Return the trials at the same coordinates: label, bits per parameter in `one` and `other`, ratio other / one.

        Both are counted under the headline reading of `one`.
        """
        one, other = (_by_coordinates(analysis, self.one.headline) for analysis in (self.one, self.other))
        rows = []
        for key, (label, bits) in one.items():
            if key in other:
                other_bits = other[key][1]
                ratio_text = f"{other_bits / bits:.3f}" if bits > 0 and other_bits > 0 else "–"
                rows.append([label, bits_per_param_text(bits), bits_per_param_text(other_bits), ratio_text])
        return rows


def ratio(one: Law, other: Law) -> Interval:
    """Return bits per parameter of `other` / `one` with a 95 % interval, or NaN if either law has no interval.

    The half-widths of both intervals are added in quadrature on the log scale, which assumes independent sweeps. Trials
    that are in both sweeps make the interval wider than necessary.
    """
    if one.status is not FitStatus.OK or other.status is not FitStatus.OK:
        return NOTHING
    z = stats.norm.ppf(TAILS[1])
    errors = [np.log(law.alpha.high / law.alpha.low) / (2 * z) for law in (one, other)]
    log_ratio, half_width = np.log(other.alpha.estimate / one.alpha.estimate), z * np.hypot(*errors)
    return Interval(*(float(np.exp(log_ratio + shift)) for shift in (0.0, -half_width, half_width)))


def compare_html(both: SideBySide) -> str:
    """Return the comparison as a self-contained HTML page."""
    one, other = both.one.sweep.spec.name, both.other.sweep.spec.name
    headers = headings(both)
    svg = image(two_sweeps(both.one, both.other), "svg")
    body = [f'<div class="figures">{figure(svg, f"{one} and {other}")}</div>']
    for title, rows in comparison_tables(both).items():
        if rows:
            body.append(f"<h2>{title}</h2>" + table(headers[title], [[escape(cell) for cell in row] for row in rows]))
    body.append(note(f"{both.shared} trials are in both sweeps."))
    questions = dict.fromkeys(analysis.sweep.question for analysis in (both.one, both.other))
    return page(f"{one} and {other}", " / ".join(questions), "".join(body))


def comparison_tables(both: SideBySide) -> dict[str, Rows]:
    """Return the rows of all tables by title. The titles are also keys of `raycap compare --json`."""
    return {
        "What differs": both.differences(),
        "Laws": both.laws(),
        "Readings": both.verdicts(),
        "Trials at the same coordinates": both.trials(),
    }


def headings(both: SideBySide) -> dict[str, list[str]]:
    """Return the headers of all tables by title."""
    one, other = both.one.sweep.spec.name, both.other.sweep.spec.name
    ratio_of = f"{other} / {one}"
    return {
        "What differs": ["field", one, other],
        "Laws": ["values", "reading", f"α, {one}", f"α, {other}", ratio_of, f"γ, {one}", f"γ, {other}"],
        "Readings": ["", one, other],
        "Trials at the same coordinates": ["trial", f"bits/param, {one}", f"bits/param, {other}", ratio_of],
    }


def _format_interval(number: Interval) -> str:
    if not np.isfinite(number.estimate):
        return "–"
    if not np.isfinite(number.low):
        return f"{number.estimate:.3f}"
    return f"{number.estimate:.3f} [{number.low:.3f}, {number.high:.3f}]"


def _values(sweep: SweepRecord) -> dict[str, dict[str, None]]:
    """Return the distinct values of every field of the trials and of the analysis, as JSON, by dotted path."""
    found: dict[str, dict[str, None]] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                walk(f"{path}.{key}", inner)
        else:
            found.setdefault(path, {})[json.dumps(value)] = None

    walk("analysis", sweep.spec.analysis.model_dump(mode="json"))
    for trial in sweep.trials:
        walk("trial", trial.spec.model_dump(mode="json"))
    return found


def _format_values(values: dict[str, None] | None) -> str:
    """Return one value as it is, several as a list, and "–" for a field that no trial has."""
    if not values:
        return "–"
    return next(iter(values)) if len(values) == 1 else f"[{', '.join(values)}]"


def _by_coordinates(analysis: Analysis, reading: Reading) -> dict[str, tuple[str, float]]:
    """Return label and bits per parameter of every finished trial by its coordinates along the grid, as JSON."""
    if reading not in analysis.laws:
        return {}
    finals = analysis.totals(reading, final=True)
    trials = analysis.sweep.trials
    return {
        json.dumps(trials[index].coordinates, sort_keys=True): (trials[index].label, bits)
        for index, bits in zip(finals["trial"], finals["bits_per_param"], strict=True)
    }
