"""The model equals transformers' Llama under every parametrization, and its parameters are counted correctly."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raycap.learner import model as llama
from raycap.learner import pretrained
from raycap.plan.sizes import parameter_counts, width_for_params
from raycap.spec import HeadSize, ModelByParams, ModelByWidth, MuP, NumHeads
from tests.support.whole_rows import logits_of


def built(spec: ModelByWidth, vocab_size: int = 97) -> llama.Llama:
    return llama.build_model(spec, vocab_size, generators=(torch.Generator().manual_seed(1),))


SHAPES = [
    ModelByWidth(hidden_size=16, num_layers=1, heads=NumHeads(num_heads=1), tie_embeddings=True),
    ModelByWidth(hidden_size=48, num_layers=3, heads=HeadSize(head_size=16)),
    ModelByWidth(hidden_size=32, num_layers=2, heads=HeadSize(head_size=4), tie_embeddings=True),
]
MUP_SHAPES = [
    shape.model_copy(update={"parametrization": MuP(kind="mup", base_width=base)})
    for shape, base in zip(SHAPES, [24, 32, 8], strict=True)
]


def tokens(num_rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 97, (num_rows, length), generator=torch.Generator().manual_seed(2))


def perturbed(model: llama.Llama) -> llama.Llama:
    """Perturb all weights in place, so that gains are not 1."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


@pytest.mark.parametrize("spec", [*SHAPES, *MUP_SHAPES], ids=str)
def test_logits_equal_those_of_transformers(spec: ModelByWidth, tmp_path: Path) -> None:
    model, input_ids = perturbed(built(spec)), tokens(5, 11)
    pretrained.save_pretrained(model, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    logits = logits_of(model, input_ids)
    with torch.no_grad():
        assert (logits - reference(input_ids).logits).abs().max() < 1e-5


@pytest.mark.parametrize("spec", [*SHAPES, *MUP_SHAPES], ids=str)
def test_a_saved_model_can_be_loaded(spec: ModelByWidth, tmp_path: Path) -> None:
    model, input_ids = perturbed(built(spec)), tokens(5, 11)
    pretrained.save_pretrained(model, tmp_path)
    loaded = pretrained.load_pretrained(spec, tmp_path)
    assert loaded.vocab_size == model.vocab_size
    difference = (logits_of(loaded, input_ids) - logits_of(model, input_ids)).abs().max()
    assert difference == 0 if spec in SHAPES else difference < 1e-5


def test_a_model_saved_by_transformers_can_be_loaded(tmp_path: Path) -> None:
    model = perturbed(built(SHAPES[2]))
    pretrained.save_pretrained(model, tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    loaded = pretrained.load_pretrained(SHAPES[2], tmp_path / "again")
    assert torch.equal(logits_of(loaded, tokens(2, 5)), logits_of(model, tokens(2, 5)))


def test_loading_a_model_of_another_shape_raises_an_error(tmp_path: Path) -> None:
    pretrained.save_pretrained(built(SHAPES[1]), tmp_path)
    with pytest.raises(ValueError, match=r"num_hidden_layers 3, .*tie_word_embeddings False, .* True"):
        pretrained.load_pretrained(SHAPES[1].model_copy(update={"num_layers": 2, "tie_embeddings": True}), tmp_path)


@pytest.mark.parametrize("spec", SHAPES)
def test_mup_at_its_base_width_equals_the_standard_parametrization(spec: ModelByWidth) -> None:
    mup = spec.model_copy(update={"parametrization": MuP(kind="mup", base_width=spec.hidden_size)})
    standard, scaled = built(spec), built(mup)
    assert all(torch.equal(a, b) for a, b in zip(standard.parameters(), scaled.parameters(), strict=True))
    assert torch.equal(logits_of(standard, tokens(5, 11)), logits_of(scaled, tokens(5, 11)))


@pytest.mark.parametrize("spec", [*SHAPES, *MUP_SHAPES], ids=str)
def test_segments_of_a_row_have_the_logits_of_separate_rows(spec: ModelByWidth) -> None:
    model, rows = perturbed(built(spec)), [tokens(2, length) for length in (4, 7, 1, 5)]
    packed = torch.cat(rows, dim=1)
    segments = torch.cat([torch.full_like(row, number) for number, row in enumerate(rows)], dim=1)
    expected = torch.cat([logits_of(model, row) for row in rows], dim=1)
    assert (logits_of(model, packed, segments) - expected).abs().max() < 1e-5
    across = logits_of(model, packed)
    assert (across[:, :4] - expected[:, :4]).abs().max() < 1e-5
    assert (across[:, 4:] - expected[:, 4:]).abs().max() > 1e-2


@pytest.mark.parametrize("spec", SHAPES)
def test_the_formula_counts_the_parameters_of_a_model(spec: ModelByWidth) -> None:
    model = built(spec)
    counts = parameter_counts(spec, 97)
    assert counts == model.count_parameters()
    assert counts.total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("h", "num_layers", "total"), [(80, 4, 890_320), (64, 12, 1_172_032), (272, 12, 15_843_728)])
def test_the_formula_gives_the_sizes_of_the_paper(h: int, num_layers: int, total: int) -> None:
    assert parameter_counts(ModelByWidth(hidden_size=h, num_layers=num_layers), 3000).total == total


@pytest.mark.parametrize("target", [120_000, 890_000, 1_170_000, 15_000_000])
def test_the_width_nearest_to_the_target_is_chosen(target: int) -> None:
    solved = width_for_params(ModelByParams(num_params=target), 3000)
    distance = abs(parameter_counts(solved, 3000).total - target)
    for multiple in range(1, 40):
        other = ModelByWidth(hidden_size=16 * multiple)
        assert distance <= abs(parameter_counts(other, 3000).total - target)


def test_a_size_far_from_that_of_every_width_raises_an_error() -> None:
    with pytest.raises(ValueError, match=r"1,000 .* 112,528 .*hidden_size 16"):
        width_for_params(ModelByParams(num_params=1_000), 3000)


def test_weights_are_determined_by_the_generator() -> None:
    a, b = built(SHAPES[0]), built(SHAPES[0])
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
