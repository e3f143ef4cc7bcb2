"""The table of losses of every text has the sums of the stored losses, and the right people, relations and counts."""

from collections.abc import Hashable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from raycap.facts.build import populations_of
from raycap.facts.corpus import SPLITS, TRAIN
from raycap.facts.questions import Questions
from raycap.learner.kept_models import LoadedModel
from raycap.learner.text_losses import write_text_losses
from raycap.results import Moment
from raycap.spec import HeldOut, Kind, ModelByWidth, NumHeads, QuestionsByShare, Split, Steps
from raycap.storage.inspections import TEXTS_FILE
from raycap.tokens.training_data import TrainingData
from tests.support.tiny import TINY, trained

SPEC = TINY.model_copy(
    update={
        "questions": QuestionsByShare(
            hops=(1, 2), one_hop_share=0.5, held_out=HeldOut(tuples=0.2, first_pairs=0.1), chain_of_thought=True
        ),
        "model": ModelByWidth(hidden_size=8, num_layers=1, heads=NumHeads(num_heads=1), tie_embeddings=True),
        "training": TINY.training.model_copy(update={"length": Steps(steps=20), "num_evaluations": 1}),
    }
)


def test_every_text_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raycap.learner.text_losses.TEXTS_PER_GROUP", 150)  # several row groups
    trial = trained(SPEC)
    (profiles,) = populations_of(SPEC)
    data = TrainingData.of(SPEC, (profiles,), trial.tokenizer)
    loaded = LoadedModel(trial.result, Moment(step=20, exposures=trial.result.final.exposures), trial.model, data)
    summary = write_text_losses(loaded, {}, tmp_path)
    table = pd.read_parquet(tmp_path / TEXTS_FILE)
    subjects, relations = profiles.schema.subjects, profiles.schema.relations
    assert summary.num_rows == {Kind.ONE_HOP: 40 * 6, Kind.TWO_HOP: 40 * 2 * 6 * 2}  # answers and chains
    assert len(table) == sum(summary.num_rows.values())

    keys = ["kind", "subject", "part", "split", "population"]
    sums: dict[Hashable, float] = table.groupby(keys, observed=True)["loss_bits"].sum().to_dict()
    stored = {
        (str(r.kind), r.subject, str(r.part), str(r.split), 0): r.sum_bits for r in trial.result.final.losses.rows
    }
    assert sums == pytest.approx(stored, rel=1e-9)
    assert (table["right"] == (table["rank"] == 1)).all()
    # A text that is right has no token of less than the probability of every other one; 1 / V bounds it from below.
    assert table.loc[table["loss_bits"] < 1, "right"].all()

    codes = Questions(profiles, 2, chain_of_thought=True, held_out=SPEC.questions.held_out).split_codes
    assert codes is not None
    is_trained = (codes == TRAIN).reshape(40, 2, 6)
    alone = table[table["kind"] == Kind.ONE_HOP].set_index(["person", "subject"])["loss_bits"]
    answers = table[(table["kind"] == Kind.TWO_HOP) & (table["part"] == "answer")]
    for row in answers.sample(30, random_state=0).itertuples():
        person, relation = int(row.person), relations.index(row.relation_1)
        bridge, subject = profiles.relations[person, relation], subjects.index(row.subject)
        assert row.bridge_1 == bridge
        assert row.id == (person * 2 + relation) * 6 + subject
        assert row.split == SPLITS[codes[row.id]]
        assert row.trained == (row.split == Split.TRAIN)
        assert row.alone_1_bits == alone[person, row.relation_1]
        assert row.alone_2_bits == alone[bridge, row.subject]
        assert row.trained_1 == is_trained[person, relation].sum()
        assert row.trained_2 == is_trained[profiles.relations == bridge][:, subject].sum()
        assert row.in_degree == (profiles.relations == bridge).sum()
        assert row.uniform_bits == pytest.approx(
            np.log2(40) if row.subject in relations else profiles.facts.attribute_entropies_bits[row.subject]
        )
    assert answers.loc[~answers["trained"], "exposures"].eq(0).all()
    assert answers.loc[answers["trained"], "exposures"].unique() == pytest.approx([20 * 16 / is_trained.sum()])
