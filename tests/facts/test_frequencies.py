"""Frequencies of people: exact numbers of occurrences in training, classes, and the identity of trials without them."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts.build import corpora_of, facts_of, profiles_of
from raycap.facts.corpus import TrainedIds
from raycap.facts.frequencies import TextFrequencies, draw_frequencies
from raycap.facts.hosted import fingerprint
from raycap.facts.order import Mix, Order
from raycap.spec import (
    Biographies,
    FrequencyClasses,
    FrequencyColumn,
    HeldOut,
    ModelByWidth,
    NamePools,
    ProfilesByCount,
    ProfilesFromTable,
    QuestionsByShare,
    TrialSpec,
    ZipfFrequencies,
)
from raycap.spec.frequencies import FrequencyClassSpec

PEOPLE = ProfilesByCount(num_profiles=40, num_relations=2, names=NamePools(first=8, middle=8, last=8))
JUNK = FrequencyClasses(
    kind="classes",
    classes=(
        FrequencyClassSpec(name="junk", share=0.75, multiplicity=1),
        FrequencyClassSpec(name="useful", share=0.25, multiplicity=10),
    ),
)


def order(values: np.ndarray | None, size: int, batch_size: int = 7) -> Order:
    frequencies = () if values is None else (TextFrequencies(values),)
    return Order((size,), (1,), (Mix(0, (1.0,)),), batch_size, 3, frequencies)


def texts(of: Order, num: int) -> np.ndarray:
    """Return the first texts of an order, which is read in steps."""
    steps = -(-num // of.batch_size)
    return np.concatenate([of.step_indices(step)[0] for step in range(steps)])[:num]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=30), st.integers(1, 12))
def test_each_text_occurs_as_often_as_its_frequency_says(weights: list[float], epochs: int) -> None:
    values = np.array(weights) / np.mean(weights)
    drawn = order(values, len(values))
    ends = [drawn._epoch_start(0, epoch) for epoch in range(epochs + 1)]
    found = texts(drawn, ends[-1])
    for epoch in range(1, epochs + 1):
        counts = np.bincount(found[: ends[epoch]], minlength=len(values))
        assert (abs(counts - epoch * values) < 1 + 1e-9).all()
        in_epoch = np.bincount(found[ends[epoch - 1] : ends[epoch]], minlength=len(values))
        assert ((in_epoch == np.floor(values)) | (in_epoch == np.ceil(values))).all()
    assert abs(ends[-1] - epochs * len(values)) < len(values)
    # The same order is read from any step on.
    again, steps = order(values, len(values)), ends[-1] // 7
    for step in reversed(range(steps)):
        assert np.array_equal(again.step_indices(step)[0], found[7 * step : 7 * step + 7])


def test_equal_frequencies_give_the_order_without_frequencies() -> None:
    plain, equal = texts(order(None, 50), 400), texts(order(np.ones(50), 50), 400)
    assert np.array_equal(plain, equal)
    assert TrialSpec(model=ModelByWidth()).trial_id == "a13375546a60"  # as before frequencies existed


@pytest.mark.parametrize(
    "questions",
    [QuestionsByShare(hops=(1, 2), held_out=HeldOut(tuples=0.2)), Biographies(kind="biographies", per_person=2)],
)
def test_texts_have_the_frequency_of_the_person_they_are_about(questions: QuestionsByShare | Biographies) -> None:
    profiles = profiles_of(PEOPLE.model_copy(update={"frequencies": JUNK}))
    useful = profiles.frequencies.class_of == 0
    assert useful.sum() == 10
    for corpus in corpora_of(profiles, questions):
        trained = TrainedIds(corpus)
        people = corpus.people(trained[np.arange(len(trained))])
        if isinstance(questions, QuestionsByShare):
            assert np.array_equal(people, corpus.unpack(trained[np.arange(len(trained))]).person)
        seen = Counter(useful[people[texts(order(trained.frequencies.values, len(trained)), 5000)]].tolist())
        share = 10 * useful[people].sum() / (10 * useful[people].sum() + (~useful[people]).sum())
        assert seen[True] / 5000 == pytest.approx(share, abs=0.03)


def test_classes_partition_the_people_and_weight_their_frequencies() -> None:
    for spec in (JUNK, ZipfFrequencies(kind="zipf", exponent=1.0), ZipfFrequencies(kind="zipf", exponent=0.0)):
        profiles = PEOPLE.model_copy(update={"frequencies": spec})
        classes = facts_of(profiles).frequencies
        assert profiles_of(profiles).facts.frequencies == classes
        assert sum(each.num_people for each in classes) == 40
        assert sum(each.num_people * each.frequency for each in classes) == pytest.approx(40)
        values = draw_frequencies(spec, 40).values
        assert len(classes) == (2 if spec is JUNK else 1 if spec.exponent == 0 else 6)
        if isinstance(spec, ZipfFrequencies):
            ranked = np.sort(values)[::-1]
            assert ranked[0] / ranked == pytest.approx(np.arange(1, 41) ** spec.exponent)
    assert [each.num_people for each in classes] == [40]
    assert not np.array_equal(values, draw_frequencies(JUNK.model_copy(update={"seed": 1}), 40).values)


def test_a_column_of_a_table_states_frequencies(tmp_path: Path) -> None:
    path = tmp_path / "facts.csv"

    def load(weights: list[str]) -> ProfilesFromTable:
        rows = "".join(f"Ada {index},{'xy'[index % 2]},{weight}\n" for index, weight in enumerate(weights))
        path.write_text(f"name,letter,seen\n{rows}")
        column = FrequencyColumn(kind="column", column="seen")
        return ProfilesFromTable(
            source="table", path=str(path), name="name", attributes=("letter",), frequencies=column
        )

    loaded = profiles_of(load(["1", "4", "1", "2"]))
    assert loaded.frequencies.values == pytest.approx([0.5, 2.0, 0.5, 1.0])
    assert [(each.num_people, each.frequency) for each in loaded.facts.frequencies] == [(1, 2.0), (1, 1.0), (2, 0.5)]
    assert fingerprint(loaded) != fingerprint(profiles_of(load(["1", "4", "1", "1"])))
    for bad in ("0", "", "much", "inf", "1e9"):
        with pytest.raises(ValueError, match="column seen"):
            profiles_of(load(["1", bad, "1"]))


def test_faulty_classes_are_refused() -> None:
    raw = JUNK.model_dump()
    for change in ({"share": 0.5}, {"name": "useful"}, {"multiplicity": 0}):
        broken = raw | {"classes": [raw["classes"][0] | change, raw["classes"][1]]}
        with pytest.raises(ValueError, match=r"shares must add|different names|greater than 0"):
            FrequencyClasses.model_validate_json(json.dumps(broken))
    tiny = (
        FrequencyClassSpec(name="few", share=0.001, multiplicity=1),
        FrequencyClassSpec(name="most", share=0.999, multiplicity=2),
    )
    with pytest.raises(ValueError, match=r"frequencies.classes: few"):
        draw_frequencies(JUNK.model_copy(update={"classes": tiny}), 40)
