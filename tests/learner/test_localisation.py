"""Ablations find planted knowledge in the part that has it, and none in parts that add nothing."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from raycap.facts.build import populations_of
from raycap.learner import model as llama
from raycap.learner.inspections import Inspection, inspect_models
from raycap.learner.localisation import (
    Source,
    ablated_losses,
    from_means,
    from_texts,
    localise,
    localise_model,
    mean_residuals,
    other_texts,
    parts_of,
    quantised,
    writes_of,
)
from raycap.results.localisation import Localisation, ModelPart
from raycap.spec import (
    Ablation,
    Kind,
    LocaliseSpec,
    Loop,
    ModelAnalysis,
    Precision,
    QuestionsByShare,
    Steps,
    WeightFormat,
)
from raycap.storage import Storage, model_folder
from raycap.storage.inspections import read_inspections
from raycap.storage.kept_models import final_moment
from raycap.tokens.training_data import TrainingData
from tests.support.planted_models import NUM_VALUES, planted_model, population, questions_about
from tests.support.tiny import TINY, trained

FP32 = Precision.FP32
ENTROPY_BITS = np.log2(NUM_VALUES)
SPEC = TINY.model_copy(
    update={
        "questions": QuestionsByShare(hops=(1, 2)),
        "training": TINY.training.model_copy(update={"length": Steps(steps=2), "evaluation_sample": 200}),
    }
)


def source_of(model: llama.Llama, ablation: Ablation) -> Source:
    composer, _, ids = questions_about(population())
    if ablation is Ablation.MEAN:
        return partial(from_means, mean_residuals(model, composer, ids, FP32))
    return partial(from_texts, model, composer, other_texts(ids, np.random.default_rng(0)), FP32)


@pytest.mark.parametrize("composes", [True, False], ids=["composes", "looks up"])
def test_what_mlps_know_is_lost_with_them(composes: bool) -> None:
    people = population()
    composer, tokenizer, ids = questions_about(people)
    model = planted_model(people, tokenizer, composes=composes)

    def loss(part: ModelPart, layer: int | None, source: Source) -> float:
        batches = ablated_losses(model, composer, ids, writes_of(model, part, layer), source, FP32)
        return sum(float(batch.bits.sum()) for batch in batches) / len(ids)

    # What every part adds in the text itself changes nothing.
    intact = loss(ModelPart.MODEL, None, partial(from_texts, model, composer, ids, FP32))
    assert intact < 1e-3
    for ablation in Ablation:
        lost = {key: loss(*key, source_of(model, ablation)) - intact for key in parts_of(model)}
        assert lost[ModelPart.MLP, 2] > 0.95 * ENTROPY_BITS
        assert lost[ModelPart.MODEL, None] > 0.95 * ENTROPY_BITS
        if composes:  # the first MLP finds the bridge
            assert lost[ModelPart.MLP, 1] > 0.95 * ENTROPY_BITS
        else:  # the table is in the second MLP, and the first adds nothing
            assert lost[ModelPart.MLP, 1] == pytest.approx(0, abs=1e-6)


def test_every_text_gets_the_residuals_of_another_one() -> None:
    ids = np.arange(100, 117)
    others = other_texts(ids, np.random.default_rng(0))
    assert np.array_equal(np.sort(others), ids)
    assert (others != ids).all()


def test_a_block_that_adds_nothing_has_no_bits() -> None:
    data = TrainingData.of(SPEC, populations_of(SPEC))
    model = llama.build_model(SPEC.model, data.vocab_size, generators=(torch.Generator().manual_seed(0),))
    for name, parameter in model.named_parameters():
        if name in ("layers.1.self_attn.o_proj.weight", "layers.1.mlp.down_proj.weight"):
            parameter.detach().zero_()
    found = localise_model(model, data, LocaliseSpec(quantise=(WeightFormat.INT2,)))
    intact = np.array([row.sum_bits for row in found.intact.rows])
    assert len(found.ablated) == 3 * len(parts_of(model))
    for each in found.ablated:
        losses = np.array([row.sum_bits for row in each.losses.rows])
        assert np.allclose(losses, intact, rtol=1e-5) == (each.layer == 2)
        assert {row.kind for row in each.losses.rows} == {Kind.ONE_HOP, Kind.TWO_HOP}


@pytest.mark.parametrize("fields", [{"loop": Loop(times=2), "tie_embeddings": False}, {"mlp": None}])
def test_only_the_weights_of_the_part_are_rounded(fields: dict[str, object]) -> None:
    spec = SPEC.model.model_copy(update=fields)
    model = llama.build_model(spec, 30, generators=(torch.Generator().manual_seed(0),))
    before = dict(model.named_parameters())

    def changed(part: ModelPart, layer: int | None) -> set[str]:
        after = dict(quantised(model, part, layer, WeightFormat.INT4).named_parameters())
        return {name for name in before if not after[name].equal(before[name])}

    matrices = {name for name in before if not name.endswith("norm.weight")}
    assert changed(ModelPart.MODEL, None) == matrices
    assert changed(ModelPart.EMBEDDING, 0) == matrices & {"embed_tokens.weight", "lm_head.weight"}
    attention = {name for name in matrices if "self_attn" in name}
    assert changed(ModelPart.ATTENTION, None) == attention
    assert changed(ModelPart.ATTENTION, 1) == {name for name in attention if name.startswith("layers.0")}
    if spec.mlp is None:
        assert not {part for part, _ in parts_of(model)} & {ModelPart.MLP, ModelPart.BLOCK}
    else:  # the third block is the second pass through the first
        first = {name for name in matrices if name.startswith("layers.0")}
        assert changed(ModelPart.BLOCK, 1) == changed(ModelPart.BLOCK, 3) == first


def test_a_stored_model_is_ablated_with_the_settings_of_the_spec(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    trial = trained(SPEC)
    trial.save_model(storage, model_folder(SPEC.trial_id))
    options = LocaliseSpec(ablations=(Ablation.MEAN,), quantise=()).model_dump(mode="json")
    due = [(final_moment(trial.result), Inspection(ModelAnalysis.LOCALISE, localise, options))]
    inspect_models(trial.result, storage, due, source_commit="test", device="cpu", num_threads=1)
    (record,) = read_inspections(storage, SPEC.trial_id, ModelAnalysis.LOCALISE, Localisation)
    final = trial.result.final.losses.without_histograms()
    assert [row.key for row in record.body.intact.rows] == [row.key for row in final.rows]
    assert [row.sum_bits for row in record.body.intact.rows] == pytest.approx([row.sum_bits for row in final.rows])
    (_, two_hop) = final.kinds
    whole = record.body.ablated[-1]
    assert (whole.part, whole.layer) == (ModelPart.MODEL, None)
    assert whole.losses.select(two_hop).mean_bits > 1
