"""Two sweeps side by side: how their specs differ, their laws and the ratio of these, and trials at the same coordinates."""

import json
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from scipy import stats

from raycap.analysis.analyse import Analysis
from raycap.analysis.figures.style import image
from raycap.analysis.figures.two_sweeps import two_sweeps
from raycap.analysis.html import figure, note, page, table
from raycap.analysis.intervals import NOTHING, TAILS, Interval
from raycap.analysis.laws import FitStatus, Law
from raycap.analysis.readings import Reading
from raycap.results import SweepRecord

Rows = list[list[str]]


@dataclass(frozen=True)
class SideBySide:
    """Two analyses and what can be said of them together."""

    one: Analysis
    other: Analysis

    @property
    def readings(self) -> list[Reading]:
        """Readings that both have."""
        return [reading for reading in self.one.laws if reading in self.other.laws]

    @property
    def shared(self) -> int:
        """Trials that are in both sweeps: trained once."""
        return len(self.one.measured.keys() & self.other.measured.keys())

    def differences(self) -> Rows:
        """What the specs say differently: dotted path, here, there."""
        here, there = _leaves(self.one.sweep), _leaves(self.other.sweep)
        paths = [path for path in {**here, **there} if here.get(path) != there.get(path)]
        return [[path, here.get(path, "-"), there.get(path, "-")] for path in sorted(paths)]

    def laws(self) -> Rows:
        """For each reading: bits per parameter here and there, the ratio there / here, the exponents here and there."""
        rows = []
        for reading in self.readings:
            a, b = self.one.laws[reading], self.other.laws[reading]
            numbers = [a.alpha, b.alpha, ratio(a, b), a.power.gamma, b.power.gamma]
            rows.append([str(reading), *map(_format_interval, numbers)])
        return rows

    def verdicts(self) -> Rows:
        """Which reading fits, here and there."""
        told = [str(analysis.comparison.best or "undecided") for analysis in (self.one, self.other)]
        return [["the reading that fits", *told]]

    def trials(self) -> Rows:
        """Trials at the same coordinates: bits per parameter here and there (the headline of the first), and the ratio."""
        here, there = (_by_coordinates(analysis, self.one.headline) for analysis in (self.one, self.other))
        return [
            [label, f"{bits:.3f}", f"{there[key][1]:.3f}", f"{there[key][1] / bits:.3f}" if bits > 0 else "-"]
            for key, (label, bits) in here.items()
            if key in there
        ]


def ratio(one: Law, other: Law) -> Interval:
    """Bits per parameter of the other law over those of the one, the two taken to be independent; NaN where one has none.

    Their intervals are combined on the log scale: trials that are in both sweeps make this one too wide.
    """
    if one.status is not FitStatus.OK or other.status is not FitStatus.OK:
        return NOTHING
    z = stats.norm.ppf(TAILS[1])
    errors = [np.log(law.alpha.high / law.alpha.low) / (2 * z) for law in (one, other)]
    middle, reach = np.log(other.alpha.estimate / one.alpha.estimate), z * np.hypot(*errors)
    return Interval(*(float(np.exp(middle + shift)) for shift in (0.0, -reach, reach)))


def compare_html(both: SideBySide) -> str:
    """A self-contained page."""
    one, other = both.one.sweep.spec.name, both.other.sweep.spec.name
    headers = headings(both)
    drawing = image(two_sweeps(both.one, both.other), "svg")
    body = [f'<div class="figures">{figure(drawing, f"{one} and {other}")}</div>']
    for title, rows in sections(both).items():
        if rows:
            body.append(f"<h2>{title}</h2>" + table(headers[title], [[escape(cell) for cell in row] for row in rows]))
    body.append(note(f"{both.shared} trials are in both sweeps."))
    questions = dict.fromkeys(analysis.sweep.question for analysis in (both.one, both.other))
    return page(f"{one} and {other}", " / ".join(questions), "".join(body))


def sections(both: SideBySide) -> dict[str, Rows]:
    """All tables by title."""
    return {
        "What differs": both.differences(),
        "Laws": both.laws(),
        "Readings": both.verdicts(),
        "Trials at the same coordinates": both.trials(),
    }


def headings(both: SideBySide) -> dict[str, list[str]]:
    """Headers of the tables by title."""
    one, other = both.one.sweep.spec.name, both.other.sweep.spec.name
    ratio_of = f"{other} / {one}"
    return {
        "What differs": ["", one, other],
        "Laws": ["reading", f"α, {one}", f"α, {other}", ratio_of, f"γ, {one}", f"γ, {other}"],
        "Readings": ["", one, other],
        "Trials at the same coordinates": ["trial", f"bits/param, {one}", f"bits/param, {other}", ratio_of],
    }


def _format_interval(number: Interval) -> str:
    if not np.isfinite(number.estimate):
        return "-"
    if not np.isfinite(number.low):
        return f"{number.estimate:.3f}"
    return f"{number.estimate:.3f} [{number.low:.3f}, {number.high:.3f}]"


def _leaves(sweep: SweepRecord) -> dict[str, str]:
    """Every value of a spec by its dotted path, but for its name and where it runs."""
    found: dict[str, str] = {}

    def walk(path: str, value: Any) -> None:
        if isinstance(value, dict) and value and path != "grid":
            for key, inner in value.items():
                walk(f"{path}.{key}" if path else key, inner)
        elif path == "grid":
            found.update({f"grid.{axis}": json.dumps(values) for axis, values in value.items()})
        else:
            found[path] = json.dumps(value)

    walk("", sweep.spec.model_dump(mode="json", include={"trial", "grid", "analysis"}))
    return found


def _by_coordinates(analysis: Analysis, reading: Reading) -> dict[str, tuple[str, float]]:
    """Label and bits per parameter of every finished trial, by its coordinates along the grid."""
    if reading not in analysis.laws:
        return {}
    finals = analysis.totals(reading, final=True)
    trials = analysis.sweep.trials
    return {
        json.dumps(trials[place].coordinates, sort_keys=True): (trials[place].label, bits)
        for place, bits in zip(finals["trial"], finals["bits_per_param"], strict=True)
    }
