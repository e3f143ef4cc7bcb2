"""Readings: an encoding scheme with a selection scheme, as an analysis declares them before anything is seen."""

from typing import NamedTuple

from raycap.spec import AnalysisSpec, EncodingScheme, SelectionScheme


class Reading(NamedTuple):
    """One way to read losses as bits."""

    scheme: EncodingScheme
    selection: SelectionScheme

    def __str__(self) -> str:
        return f"{self.scheme}, {self.selection} names"


def readings(analysis: AnalysisSpec) -> list[Reading]:
    """The readings an analysis declares, encoding schemes x selection schemes."""
    return [Reading(scheme, selection) for scheme in analysis.schemes for selection in analysis.selections]


def headline(analysis: AnalysisSpec) -> Reading:
    """The reading shown first."""
    return Reading(*analysis.headline)
