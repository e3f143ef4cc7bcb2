"""Our Llama is transformers' Llama, and its counted formula counts it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raycap.learner import model as llama
from raycap.learner.sizes import parameter_counts, width_for_params
from raycap.learner.trial import _count_parameters
from raycap.spec import HeadSize, ModelByParams, ModelByWidth, NumHeads


def built(spec: ModelByWidth, vocab_size: int = 97) -> llama.Llama:
    return llama.build(spec, vocab_size, generator=torch.Generator().manual_seed(1))


SHAPES = [
    ModelByWidth(hidden_size=16, num_layers=1, heads=NumHeads(num_heads=1), tie_embeddings=True),
    ModelByWidth(hidden_size=48, num_layers=3, heads=HeadSize(head_size=16)),
    ModelByWidth(hidden_size=32, num_layers=2, heads=HeadSize(head_size=4), tie_embeddings=True),
]


@pytest.mark.parametrize("spec", SHAPES)
def test_logits_are_those_of_transformers(spec: ModelByWidth, tmp_path: Path) -> None:
    model = built(spec)
    llama.save(model, tmp_path)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    input_ids = torch.randint(0, 97, (5, 11), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = model(input_ids, torch.arange(55)).view(5, 11, 97)
        assert (ours - reference(input_ids).logits).abs().max() < 1e-5
        asked = torch.tensor([3, 10, 11, 54])
        assert torch.allclose(model(input_ids, asked), ours.flatten(0, 1)[asked], atol=1e-6)


@pytest.mark.parametrize("spec", SHAPES)
def test_the_formula_counts_the_built_model(spec: ModelByWidth) -> None:
    model = built(spec)
    counts = parameter_counts(spec, 97)
    assert counts == _count_parameters(model)
    assert counts.total == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("h", "num_layers", "total"), [(80, 4, 890_320), (64, 12, 1_172_032), (272, 12, 15_843_728)])
def test_the_formula_gives_the_papers_sizes(h: int, num_layers: int, total: int) -> None:
    assert parameter_counts(ModelByWidth(hidden_size=h, num_layers=num_layers), 3000).total == total


@pytest.mark.parametrize("target", [1_000, 890_000, 1_170_000, 15_000_000])
def test_the_nearest_width_to_a_target_is_taken(target: int) -> None:
    solved = width_for_params(ModelByParams(num_params=target), 3000)
    distance = abs(parameter_counts(solved, 3000).total - target)
    for multiple in range(1, 40):
        other = ModelByWidth(hidden_size=16 * multiple)
        assert distance <= abs(parameter_counts(other, 3000).total - target)


def test_weights_follow_from_the_generator() -> None:
    a, b = built(SHAPES[0]), built(SHAPES[0])
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
