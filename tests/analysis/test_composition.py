"""Composed, memorised and mixed answers are told apart question by question, and planted causes of variance are found."""

import io
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raycap.analysis.composition import Questions, composition, read_composition, store_compositions
from raycap.analysis.inspected import Inspected
from raycap.analysis.model_evaluations import composition_rows
from raycap.results import TextLosses
from raycap.results.composition import Composition, Mechanism
from raycap.storage import Storage
from raycap.storage.inspections import RECORD_FILE, TEXTS_FILE, inspection_folder, write_inspection
from tests.support.inspection_records import inspection_record
from tests.support.synthetic import planned

NUM_PEOPLE, NUM_RELATIONS, NUM_SUBJECTS, UNIFORM_BITS = 200, 4, 6, 8.0


def questions(seed: int = 0) -> Questions:
    """Return all two-hop questions about random people, with losses of hops that differ from fact to fact."""
    rng = np.random.default_rng(seed)
    bridges = rng.integers(NUM_PEOPLE, size=(NUM_PEOPLE, NUM_RELATIONS))
    person, relation, subject = (index.ravel() for index in np.indices((NUM_PEOPLE, NUM_RELATIONS, NUM_SUBJECTS)))
    bridge = bridges[person, relation]
    first = rng.exponential(1.0, (NUM_PEOPLE, NUM_RELATIONS))[person, relation]
    second = rng.exponential(1.0, (NUM_PEOPLE, NUM_SUBJECTS))[bridge, subject]
    uniform = np.full(len(person), UNIFORM_BITS)
    return Questions(person, relation, bridge, subject, uniform, uniform, first, second)


def with_losses(asked: Questions, losses: np.ndarray) -> Questions:
    noise = np.random.default_rng(1).normal(0, 0.1, len(losses))
    return Questions(**(vars(asked) | {"loss_bits": losses + noise}))


def planted(memorised: float) -> tuple[Questions, Questions]:
    """Return trained and held-out questions of a model that memorises a share of the trained answers.

    It composes the other answers, also where it was not trained.
    """
    asked = questions()
    rng = np.random.default_rng(2)
    is_held_out = rng.random(len(asked)) < 0.2
    by_heart = rng.random(len(asked)) < memorised
    composes = rng.random(len(asked)) >= memorised
    learned = np.where(by_heart, 0.2, np.where(composes, asked.composed_bits, UNIFORM_BITS))
    shown = np.where(composes, asked.composed_bits, UNIFORM_BITS)
    losses = with_losses(asked, np.where(is_held_out, shown, learned))
    return losses[~is_held_out], losses[is_held_out]


@pytest.mark.parametrize(
    ("memorised", "mechanism"), [(0.0, Mechanism.COMPOSED), (0.6, Mechanism.MIXED), (1.0, Mechanism.MEMORISED)]
)
def test_a_composer_a_memoriser_and_a_mixture_are_told_apart(memorised: float, mechanism: Mechanism) -> None:
    found = composition(*planted(memorised))
    assert found.mechanism is mechanism
    assert found.held_out is not None
    if memorised == 0:
        for split in (found.trained, found.held_out):
            assert abs(split.gap_bits.value) < 0.02
            assert split.known_gap_bits is not None
            assert abs(split.known_gap_bits.value) < 0.02
    if memorised == 1:
        assert found.trained.gap_bits.interval[1] < 0 < found.held_out.gap_bits.interval[0]


def test_without_held_out_questions_only_what_composition_cannot_explain_counts_as_memorised() -> None:
    assert composition(planted(0.0)[0], None).mechanism is Mechanism.COMPOSED
    unknown = questions()
    unknown = Questions(**(vars(unknown) | {"first_bits": unknown.uniform_bits, "second_bits": unknown.uniform_bits}))
    by_heart = composition(with_losses(unknown, np.full(len(unknown), 0.5)), None)
    assert by_heart.mechanism is Mechanism.MEMORISED
    ignorant = with_losses(unknown, unknown.uniform_bits)
    assert composition(ignorant, None).mechanism is Mechanism.UNDECIDED


def test_the_inversion_of_a_mean_differs_from_what_hops_lose_and_its_error_is_reported() -> None:
    (trained, _) = planted(0.0)
    found = composition(trained, None).trained
    assert found.measured_hop_bits == pytest.approx(1.0, rel=0.1)
    assert abs(found.hop_bits - found.measured_hop_bits) < abs(found.hop_bits_of_mean - found.measured_hop_bits) + 0.05


@pytest.mark.parametrize("cause", ["person", "bridge", "subject"])
def test_variance_is_attributed_to_its_planted_cause(cause: Literal["person", "bridge", "subject"]) -> None:
    asked = questions()
    effect = np.random.default_rng(3).normal(4, 1, NUM_PEOPLE)[getattr(asked, cause)]
    shares = composition(with_losses(asked, effect), None).trained.variance_shares
    assert shares[cause] == pytest.approx(1, abs=0.05)
    # The few people who lead to a bridge ask about it in several questions each, so bridges and people overlap.
    assert all(shares[name] < 0.5 for name in {"person", "bridge", "subject"} - {cause})
    assert cause == "subject" or abs(shares["subject"]) < 0.05


def test_intervals_count_questions_of_one_bridge_as_one_observation() -> None:
    """The losses of 200 bridges, each asked about in 24 questions on average, are 200 observations, not 4,800."""
    asked, means, errors = questions(), [], []
    for seed in range(20):
        effect = np.random.default_rng(seed).normal(4, 1, NUM_PEOPLE)[asked.bridge]
        estimate = composition(with_losses(asked, effect), None).trained.loss_bits
        means.append(estimate.value)
        errors.append(estimate.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.4)


def written(*texts: tuple[str, str, Questions]) -> io.BytesIO:
    """Return a file as texts.parquet, in row groups, with answers or chains of some splits."""
    names = ("person", "relation_1", "bridge_1", "subject", "loss_bits", "uniform_bits", "alone_1_bits", "alone_2_bits")
    tables = []
    for split, part, asked in texts:
        constant = {"kind": "two_hop", "split": split, "part": part}
        columns = dict(zip(names, vars(asked).values(), strict=True))
        columns |= {name: columns[name].astype(str) for name in ("relation_1", "subject")}
        tables.append(pa.table({name: [word] * len(asked) for name, word in constant.items()} | columns))
    file = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), file, row_group_size=1000)
    return io.BytesIO(file.getvalue())


def test_the_table_of_all_texts_is_read_by_row_group() -> None:
    trained, held_out = planted(1.0)
    answers = ("train", "answer", trained), ("tuples", "answer", held_out)
    found, expected = read_composition(written(*answers)), composition(trained, held_out)
    assert isinstance(found, Composition)
    assert found.memorised_share == expected.memorised_share
    assert found.trained.variance_shares == pytest.approx(expected.trained.variance_shares)
    assert read_composition(written(*answers, ("train", "chain", trained))) is None


def test_compositions_are_stored_once_and_found_as_rows_and_metrics(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    record = planned(("grid.model.hidden_size=[20]", "grid.training.seed=[0,1]"))
    trained, held_out = planted(1.0)
    whole, chain, damaged = (
        written(("train", "answer", trained), ("tuples", "answer", held_out)),
        written(("train", "chain", trained)),
        io.BytesIO(b"damaged"),
    )
    composed, other = (trial.trial_id for trial in record.trials)
    for trial_id, step, file in ((composed, 10, whole), (composed, 20, damaged), (other, 10, chain)):
        storage.write(f"{inspection_folder(trial_id, 'losses', {}, step)}/{TEXTS_FILE}", file.getvalue())
        write_inspection(storage, inspection_record(trial_id, step, "losses", TextLosses(num_rows={})))
    (problem,) = store_compositions(storage, [composed, other])
    assert composed in problem
    (stored,) = tmp_path.glob(f"**/composition/**/{RECORD_FILE}")
    first = stored.stat().st_mtime_ns
    store_compositions(storage, [composed, other])
    assert stored.stat().st_mtime_ns == first

    inspected = Inspected.read(record.trials, storage)
    (row,) = composition_rows(record.trials, inspected.compositions).to_dict("records")
    expected = composition(trained, held_out)
    assert expected.memorised_share is not None
    assert (row["trial"], row["step"], row["mechanism"]) == (0, 10, Mechanism.MEMORISED)
    assert row["memorised_share"] == pytest.approx(expected.memorised_share.value)
    assert row["trained_gap_bits_error"] == pytest.approx(expected.trained.gap_bits.standard_error)
    ((step, metrics),) = inspected.metrics(record)[composed]
    assert (step, metrics["losses/trained_gap_bits"]) == (10, pytest.approx(expected.trained.gap_bits.value))
