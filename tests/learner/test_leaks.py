"""No held-out question is trained on: the rows of the training stream contain none of the held-out rows."""

import json

import numpy as np
import pytest

from raycap.facts.build import populations_of
from raycap.facts.corpus import SPLITS, TRAIN
from raycap.facts.order import Mix
from raycap.learner.curriculum import Curriculum, CurriculumState
from raycap.learner.evaluation import Sample
from raycap.spec import Split, TrialSpec
from raycap.tokens.rows import RowSource
from raycap.tokens.training_data import TrainingData
from tests.support.arms import ARMS, EVERY_KIND, PEOPLE


def trial(arm: str) -> TrialSpec:
    raw = ARMS[arm]
    questions = raw["questions"] | {"held_out": EVERY_KIND}
    training = {"batch_size": 64, **raw.get("training", {})}
    tree = {"profiles": PEOPLE | raw.get("profiles", {}), "questions": questions, "training": training}
    return TrialSpec.model_validate_json(json.dumps(tree))


@pytest.mark.parametrize("arm", ARMS)
def test_trained_rows_contain_no_held_out_row(arm: str) -> None:
    spec = trial(arm)
    data = TrainingData.of(spec, populations_of(spec))
    order = data.order(Curriculum(data, CurriculumState()).mixes)
    length = max(composer.row_length for composer in data.composers)
    held_out: set[bytes] = set()
    for composer in data.composers:
        sample = Sample.of(composer, 0, size=10**9, seed=0)
        if composer.corpus.kind.hops < 2:
            continue
        assert (np.bincount(sample.splits, minlength=len(SPLITS))[[TRAIN, SPLITS.index(Split.SEVERAL)]] > 0).all()
        rows = composer.compose(sample.ids[sample.splits != TRAIN], length)
        held_out |= {row.tobytes() for row in rows.input_ids}
        trained = composer.trained[np.arange(len(composer.trained))]
        assert not set(trained) & set(sample.ids[sample.splits != TRAIN])
        assert len(trained) + (sample.splits != TRAIN).sum() == len(sample.ids)
    assert held_out
    seen: set[bytes] = set()
    steps = 70 + int(max(size / share for size, share in zip(order.sizes, data.shares(), strict=True)) / 64)
    for rank in range(2):
        source = RowSource(data.composers, order, steps, rank, 2)
        for rows in source.rows_from(0):
            seen |= {row.tobytes() for row in rows.input_ids}
    assert len(seen) == sum(order.sizes)  # every row of the training split was trained on
    assert not seen & held_out


def test_chains_of_trained_three_hop_questions_contain_no_held_out_question() -> None:
    """The first two hops and the last two hops of each are two-hop questions of the training split."""
    spec = trial("three_hops_spelled")
    data = TrainingData.of(spec, populations_of(spec))
    two_hop, three_hop = (composer.corpus for composer in data.composers)
    profiles = two_hop.profiles
    num_relations, num_subjects = len(profiles.schema.relations), len(profiles.schema.subjects)
    questions = three_hop.unpack(data.composers[1].trained[np.arange(len(data.composers[1].trained))])
    first, second = questions.relations.T
    front = (
        (questions.person.astype(np.int64) * num_relations + first) * num_subjects
        + (num_subjects - num_relations)
        + second
    )
    between = profiles.relations[questions.person, first].astype(np.int64)
    back = (between * num_relations + second) * num_subjects + questions.subject
    assert (two_hop.split_codes[front] == TRAIN).all()
    assert (two_hop.split_codes[back] == TRAIN).all()


def test_the_mix_applies_to_trained_texts_only() -> None:
    """Held-out splits change which questions are trained on, not the share of each kind."""
    spec = trial("latent")
    data = TrainingData.of(spec, populations_of(spec))
    order = data.order((Mix(0, data.shares()),))
    counts = order.num_texts_before(1000)
    assert counts[0] / sum(counts) == pytest.approx(0.2, abs=1e-4)
    assert order.sizes[1] < data.composers[1].corpus.num_ids
