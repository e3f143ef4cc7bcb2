"""Tests of observed accounting against 120 results that the reference's own code computed."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.analysis.observed import observed_entropies_bits, observed_parts, observed_set_bits
from raycap.facts.names import RELATIONS
from raycap.facts.profiles import Attribute, Profiles, Schema
from raycap.results import PopulationFacts
from raycap.spec import EncodingScheme, SelectionScheme

REFERENCE = json.loads((Path(__file__).parent.parent / "data" / "reference_capacity_cases.json").read_text())
CASES = REFERENCE["cases"]
ENCODINGS = {str(scheme): scheme for scheme in EncodingScheme} | {"independent": EncodingScheme.OPTIMAL}
SELECTIONS = {str(scheme): scheme for scheme in SelectionScheme} | {"optimal": SelectionScheme.SET}


def population(raw: dict[str, Any]) -> PopulationFacts:
    """Convert the reference's profiles to the numbers of a population."""
    parts = list(zip(*(name.split() for name in raw["names"]), strict=True))
    pools = [tuple(dict.fromkeys(column)) for column in parts]
    names = [[pool.index(part) for part in column] for pool, column in zip(pools, parts, strict=True)]
    attributes, values = [], []
    for name, column in raw["attributes"].items():
        distinct = tuple(dict.fromkeys(column))
        attributes.append(Attribute.uniform(name, distinct))
        values.append([distinct.index(value) for value in column])
    relations = np.array(list(raw["relations"].values()), np.int32).T
    schema = Schema(tuple(pools), tuple(attributes), tuple(raw["relations"]))
    return Profiles(schema, np.array(names, np.int32).T, np.array(values, np.int32).T, relations).facts


POPULATIONS = [population(raw) for raw in REFERENCE["profiles"]]


def test_the_data_hold_all_cases() -> None:
    assert len(CASES) == 120
    assert [p.relations for p in POPULATIONS] == [RELATIONS[:4], RELATIONS]


@pytest.mark.parametrize("index", range(len(CASES)))
def test_each_case_agrees_with_the_reference(index: int) -> None:
    case = CASES[index]
    facts = POPULATIONS[case["case"]]
    independent = case["scheme"] == "independent"
    scheme, selection = ENCODINGS[case["scheme"]], SELECTIONS[case["selection"]]
    close = {"rel": 1e-9, "abs": 0.0}
    assert observed_entropies_bits(facts, independent=independent) == pytest.approx(case["entropies_bits"], **close)
    assert observed_set_bits(facts, selection) == pytest.approx(
        (case["name_selection_bits"], case["birth_date_selection_bits"]), **close
    )
    losses = {subject: np.array([bits]) for subject, bits in case["losses_bits"].items()}
    mean = losses.pop("all_questions")
    parts = observed_parts(
        facts,
        losses,
        case["hops"],
        scheme,
        selection,
        incremental=case["incremental"],
        per_subject=case["per_subject"],
        independent=independent,
        mean_loss_bits=mean,
    )
    found = {f"{subject}_capacity": float(learned[0]) for subject, (_, _, learned) in parts.items()}
    expected = dict(case["capacity_bits"])
    total = expected.pop("total_capacity")
    assert math.fsum(found.values()) == pytest.approx(total, **close)
    if case["per_subject"]:
        assert found == pytest.approx(expected, **close)


def test_readings_without_the_losses_or_values_they_need_are_refused() -> None:
    with pytest.raises(ValueError, match="2-hop-double"):
        observed_parts(POPULATIONS[0], {}, 1, EncodingScheme.TWO_HOP_DOUBLE, SelectionScheme.SET, per_subject=False)
    unseen = POPULATIONS[0].model_copy(update={"observed": None})
    with pytest.raises(ValueError, match="accounting"):
        observed_entropies_bits(unseen, independent=False)
