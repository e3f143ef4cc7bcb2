"""Readings: pairs of an encoding scheme and a selection scheme, as the analysis spec declares them."""

from typing import NamedTuple

from raycap.spec import AnalysisSpec, EncodingScheme, SelectionScheme


class Reading(NamedTuple):
    """One interpretation of losses as stored bits (docs/science.md#readings)."""

    scheme: EncodingScheme
    selection: SelectionScheme

    def __str__(self) -> str:
        return f"{self.scheme}, {self.selection} names"


def readings(analysis: AnalysisSpec) -> list[Reading]:
    """Return the readings that an analysis declares: encoding schemes x selection schemes."""
    return [Reading(scheme, selection) for scheme in analysis.schemes for selection in analysis.selections]


def headline(analysis: AnalysisSpec) -> Reading:
    """Return the reading that is shown first."""
    return Reading(*analysis.headline)
