"""Weights are rounded to the nearest representable value, and the smallest ones are removed."""

import torch

from raycap.learner.compression import compressed, pruned, rounded
from raycap.learner.model import build_model
from raycap.spec import ModelByWidth, NumHeads


def test_weights_are_rounded_to_the_nearest_multiple_of_the_scale_of_their_channel() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_bits in (8, 4, 2):
        largest = 2 ** (num_bits - 1) - 1
        # Planted: integers times a scale per channel, of which each channel has the largest one.
        integers = torch.randint(-largest, largest + 1, (5, 40), generator=generator).float()
        integers[:, 0] = largest
        planted = integers * torch.tensor([0.1, 1.0, 3.0, 1e-3, 7.0])[:, None]
        assert torch.allclose(rounded(planted, num_bits), planted, rtol=1e-6)
        weight = torch.randn(5, 40, generator=generator)
        grid = torch.arange(-largest, largest + 1) * (weight.abs().amax(dim=1) / largest)[:, None]  # (5, values)
        nearest = (weight[..., None] - grid[:, None]).abs().amin(dim=2)
        assert torch.allclose((rounded(weight, num_bits) - weight).abs(), nearest, atol=1e-6)
    assert rounded(torch.zeros(2, 3), 8).equal(torch.zeros(2, 3))


def test_the_smallest_weights_are_removed() -> None:
    weight = torch.tensor([[0.5, -4.0, 0.0], [-0.1, 2.0, -3.0]])
    assert pruned(weight, 0.5).equal(torch.tensor([[0.0, -4.0, 0.0], [0.0, 2.0, -3.0]]))
    assert pruned(weight, 0.0).equal(weight)


def test_a_compressed_model_is_a_copy_with_the_same_gains() -> None:
    spec = ModelByWidth(hidden_size=8, num_layers=2, heads=NumHeads(num_heads=1), tie_embeddings=False)
    model = build_model(spec, 30, generators=(torch.Generator().manual_seed(0),))
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for options in ({"quantise": "int4"}, {"prune": 0.25}):
        changed = dict(compressed(model, options).named_parameters())
        for name, parameter in model.named_parameters():
            assert parameter.equal(before[name])
            assert changed[name].equal(parameter) == name.endswith("norm.weight")
            if not name.endswith("norm.weight"):
                assert (changed[name] == 0).float().mean() == 0.25 if "prune" in options else True
