"""Readings of probes whose values are a function of the layer, the token and a seed."""

from raycap.results import InspectionRecord, Record
from raycap.results.probes import InterchangeRow, ProbeReadings, ProbeRow, Space
from raycap.spec import Kind, ModelAnalysis, Split
from raycap.spec.probes import ProbeSite, ProbesSpec, ProbeTarget
from tests.support.inspection_records import inspection_record

LAYERS, SITES = (0.0, 1.0, 2.0), (ProbeSite.PERSON, ProbeSite.RELATION, ProbeSite.ANSWER)


def usable(layer: float, site: ProbeSite, seed: int) -> float:
    return layer + 0.1 * SITES.index(site) + 0.5 * seed


def readings(seed: int) -> ProbeReadings:
    """Readings whose values are a function of the place."""
    read = [
        ProbeRow(
            kind=Kind.TWO_HOP, split=split, target=ProbeTarget.BRIDGE, site=site, layer=layer, num_texts=100,
            entropy_bits=8.0, usable_bits=usable(layer, site, seed), usable_error_bits=0.1, control_bits=0.05,
            control_error_bits=0.1, untrained_bits=0.0, untrained_error_bits=0.1, code_length_bits=7.0,
            parts_bits={"name 1": 0.1},
        )
        for layer in LAYERS for site in SITES for split in (Split.TRAIN, Split.TUPLES)
    ]  # fmt: skip
    moved = [
        InterchangeRow(
            kind=Kind.TWO_HOP, site=site, layer=layer, space=space, num_dimensions=4, num_pairs=50,
            gained_bits=3 * usable(layer, site, seed), gained_error_bits=0.1, moved_share=0.25, moved_error=0.02,
        )
        for layer in LAYERS for site in SITES for space in Space
    ]  # fmt: skip
    return ProbeReadings(probes=tuple(read), interchanges=tuple(moved))


def probe_record(trial_id: str, step: int, seed: int) -> InspectionRecord[Record]:
    """The stored record of the readings of a trial's model after some steps."""
    options = ProbesSpec().model_dump(mode="json")
    return inspection_record(trial_id, step, ModelAnalysis.PROBE, readings(seed), options)
