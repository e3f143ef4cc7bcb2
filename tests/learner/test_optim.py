"""Learning rate schedules, parameter groups, Muon's updates, averaged weights, and saved states."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import schedulefree
import torch

from raycap.learner import model as llama
from raycap.learner import optim
from raycap.learner.model import ParameterGroup
from raycap.learner.pretrained import transformers_weights
from raycap.spec import (
    AdamW,
    HeadSize,
    ModelByWidth,
    Muon,
    MuP,
    OptimizerSpec,
    Schedule,
    ScheduleFree,
    WeightDecay,
)
from tests.support.whole_rows import whole_rows

VOCAB_SIZE = 13
SHAPE = ModelByWidth(hidden_size=16, num_layers=2, heads=HeadSize(head_size=8))
NO_DECAY = WeightDecay(matrices=0.0, embeddings=0.0)
OPTIMIZERS = [
    AdamW(lr=0.01, warmup_steps=5),
    ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=5),
    Muon(kind="muon", lr=0.01, warmup_steps=5),
]


def built(spec: OptimizerSpec, shape: ModelByWidth = SHAPE) -> tuple[llama.Llama, optim.Optimizer]:
    model = llama.build_model(shape, VOCAB_SIZE, generators=(torch.Generator().manual_seed(1),))
    return model, optim.build_optimizer((spec,), model)


def group_of(kind: ParameterGroup, model: llama.Llama, optimizer: optim.Optimizer) -> dict[str, Any]:
    """Return the torch parameter group that holds the weights of a model group."""
    (found,) = [
        group
        for member in optimizer.members
        for group in member.param_groups
        for row in group["params"]
        if row.data_ptr() == model.storage[kind].data_ptr()
    ]
    return found


def loss_of(model: llama.Llama) -> torch.Tensor:
    rows = torch.randint(VOCAB_SIZE, (8, 7), generator=torch.Generator().manual_seed(2))
    return model.token_losses(whole_rows(rows, VOCAB_SIZE)).mean()


def train(model: llama.Llama, optimizer: optim.Optimizer, steps: range, num_steps: int = 40) -> None:
    for step in steps:
        optimizer.set_rate(step, num_steps)
        optimizer.take_gradients(loss_of(model))
        optimizer.step()


def weights(model: llama.Llama) -> list[torch.Tensor]:
    return [w.clone() for w in model.storage.values()]


def equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("schedule", Schedule)
def test_rates_warm_up_and_follow_their_schedule(schedule: Schedule) -> None:
    spec = AdamW(warmup_steps=10, schedule=schedule)
    factors = [optim.schedule_factor(spec, step, 110) for step in range(110)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[10] == 1.0
    assert all(0 < later <= earlier for earlier, later in pairwise(factors[10:]))
    halfway = {Schedule.LINEAR: 0.5, Schedule.COSINE: 0.5, Schedule.WSD: 1.0, Schedule.CONSTANT: 1.0}
    assert factors[60] == pytest.approx(halfway[schedule])
    assert factors[-1] < 0.05 or schedule is Schedule.CONSTANT


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_wsd_decays_linearly_over_the_last_share_of_steps(share: float) -> None:
    spec = AdamW(warmup_steps=10, schedule=Schedule.WSD, decay_share=share)
    num_falling = min(round(100 * share), 90)
    for step in range(10, 100):
        assert optim.schedule_factor(spec, step, 100) == pytest.approx(min(1.0, (100 - step) / num_falling))


@pytest.mark.parametrize("num_steps", [1, 2, 9])
@pytest.mark.parametrize("spec", [*OPTIMIZERS, AdamW(schedule=Schedule.WSD)], ids=str)
def test_short_runs_warm_up_over_half_their_steps(spec: OptimizerSpec, num_steps: int) -> None:
    factors = [optim.schedule_factor(spec, step, num_steps) for step in range(num_steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert max(factors) == 1.0


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: spec.kind)
def test_the_rate_of_every_group_is_scaled_from_its_peak(spec: OptimizerSpec) -> None:
    model, optimizer = built(spec)
    assert optimizer.set_rate(2, 40) == pytest.approx((0.6 * spec.lr,))
    for kind in ParameterGroup:
        peak = getattr(spec, "muon_lr", spec.lr) if kind is ParameterGroup.MATRIX else spec.lr
        assert group_of(kind, model, optimizer)["lr"] == pytest.approx(0.6 * peak)


@pytest.mark.parametrize(
    "make", [AdamW, lambda **k: ScheduleFree(kind="schedule_free", **k), lambda **k: Muon(kind="muon", **k)]
)
@pytest.mark.parametrize("decayed", ["matrices", "embeddings", "gains"])
def test_weight_decay_applies_to_its_group_only(make: Callable[..., OptimizerSpec], decayed: str) -> None:
    decay = {"matrices": 0.0, "embeddings": 0.0, "gains": 0.0, decayed: 0.5}
    model, optimizer = built(make(lr=0.1, warmup_steps=0, weight_decay=WeightDecay(**decay)))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.set_rate(0, 10)
    optimizer.gradients.zero_()
    optimizer.step()
    kinds = {"matrices": {ParameterGroup.MATRIX}, "gains": {ParameterGroup.GAIN}}
    kinds["embeddings"] = {ParameterGroup.EMBEDDING, ParameterGroup.UNEMBEDDING}
    rate = getattr(optimizer.specs[0], "muon_lr", 0.1) if decayed == "matrices" else 0.1
    for name, parameter in model.named_parameters():
        left = 1 - rate * 0.5 if ParameterGroup.of(name) in kinds[decayed] else 1.0
        assert torch.allclose(parameter, left * before[name], rtol=1e-6), name


@pytest.mark.parametrize(
    ("spec", "divisor"), zip(OPTIMIZERS, [4.0, 4.0, 2.0], strict=True), ids=lambda v: getattr(v, "kind", None)
)
def test_mup_divides_the_rate_of_matrices_and_multiplies_their_decay(spec: OptimizerSpec, divisor: float) -> None:
    wide = SHAPE.model_copy(update={"hidden_size": 64, "parametrization": MuP(kind="mup", base_width=16)})
    for kind in ParameterGroup:
        narrow_group, wide_group = (group_of(kind, *built(spec, shape)) for shape in (SHAPE, wide))
        factor = divisor if kind is ParameterGroup.MATRIX else 1.0
        assert wide_group["initial_lr"] == pytest.approx(narrow_group["initial_lr"] / factor)
        assert wide_group["weight_decay"] == pytest.approx(narrow_group["weight_decay"] * factor)


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: spec.kind)
def test_training_reduces_the_loss(spec: OptimizerSpec) -> None:
    model, optimizer = built(spec)
    before = loss_of(model).item()
    train(model, optimizer, range(40))
    with optimizer.averaged():
        assert loss_of(model).item() < 0.7 * before


def test_muon_updates_every_projection_by_a_nearly_orthogonal_matrix() -> None:
    model, optimizer = built(Muon(kind="muon", muon_lr=0.1, warmup_steps=0, weight_decay=NO_DECAY))
    before = transformers_weights(model)
    generator = torch.Generator().manual_seed(0)
    # The gradient of sum(weight * gradient) with respect to the weight is the chosen gradient.
    objective = torch.zeros(())
    for name, parameter in model.named_parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        if "qkv" in name:  # gradients of q, k and v differ in scale, and so do the singular values of each
            u, _, v = torch.linalg.svd(gradient[0].unflatten(0, (3, -1)))
            values = torch.linspace(0.2, 2.0, 16) * torch.tensor([[30.0], [1.0], [0.1]])
            gradient = (u @ torch.diag_embed(values) @ v).flatten(0, 1)[None]
        objective = objective + (parameter * gradient).sum()
    optimizer.take_gradients(objective)
    optimizer.set_rate(0, 10)
    optimizer.step()
    for name, weight in transformers_weights(model).items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "gate_proj.weight", "down_proj.weight")):
            update = (weight - before[name]) / 0.1
            values = torch.linalg.svdvals(update) / (0.2 * max(update.shape) ** 0.5)
            assert values.min() > 0.6, name
            assert values.max() < 1.3, name
            # The root mean square of an AdamW update in units of lr.
            assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)


def test_muon_equals_the_muon_of_torch_on_every_matrix_of_a_row() -> None:
    shapes = [torch.Size(shape) for shape in [(16, 16), (16, 64), (64, 16)]]
    sizes = [shape.numel() for shape in shapes]
    row, parameters = torch.ones(sum(sizes)), [torch.nn.Parameter(torch.ones(shape)) for shape in shapes]
    muon = optim.FusedMuon([{"params": [row], "shapes": shapes, "lr": 0.1, "weight_decay": 0.1}], momentum=0.9)
    reference = torch.optim.Muon(parameters, lr=0.1, weight_decay=0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        row.grad = torch.randn(row.shape, generator=generator)
        for parameter, gradient in zip(parameters, row.grad.split(sizes), strict=True):
            parameter.grad = gradient.view_as(parameter).clone()
        muon.step()
        reference.step()
    for a, b in zip(row.split(sizes), parameters, strict=True):
        assert (a.view_as(b) - b).abs().mean() < 0.02 * (a - 1).abs().mean()  # torch computes in bf16


def test_schedule_free_equals_the_library_with_its_own_warm_up() -> None:
    spec = ScheduleFree(kind="schedule_free", lr=0.02, warmup_steps=7, weight_decay=WeightDecay(gains=0.1))
    (model, optimizer), (reference, _) = built(spec), built(spec)
    train(model, optimizer, range(20))
    plain = schedulefree.AdamWScheduleFree(
        reference.parameters(), lr=0.02, betas=spec.betas, warmup_steps=7, weight_decay=0.1
    )
    plain.train()
    for _ in range(20):
        plain.zero_grad()
        loss_of(reference).backward()
        plain.step()
    assert equal(weights(model), weights(reference))
    plain.eval()
    with optimizer.averaged():
        assert equal(weights(model), weights(reference))


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: spec.kind)
def test_switching_to_averaged_weights_does_not_change_training(spec: OptimizerSpec) -> None:
    (model, optimizer), (undisturbed, other) = built(spec), built(spec)
    train(model, optimizer, range(10))
    training = weights(model)
    with optimizer.averaged():
        averaged = weights(model)
    assert equal(training, averaged) == (spec.kind != "schedule_free")
    assert equal(training, weights(model))
    train(model, optimizer, range(10, 20))
    train(undisturbed, other, range(20))
    assert equal(weights(model), weights(undisturbed))


@pytest.mark.parametrize("spec", OPTIMIZERS, ids=lambda spec: spec.kind)
def test_training_resumes_bit_equal_from_a_saved_state(spec: OptimizerSpec, tmp_path: Path) -> None:
    model, optimizer = built(spec)
    train(model, optimizer, range(10))
    torch.save((weights(model), optimizer.state_of(0)), tmp_path / "state.pt")
    train(model, optimizer, range(10, 20))

    resumed, resumed_optimizer = built(spec)
    saved, state = torch.load(tmp_path / "state.pt", weights_only=True)
    for weight, kept in zip(resumed.storage.values(), saved, strict=True):
        weight.copy_(kept)
    resumed_optimizer.load_state_of(0, state)
    train(resumed, resumed_optimizer, range(10, 20))
    assert equal(weights(model), weights(resumed))
    with optimizer.averaged(), resumed_optimizer.averaged():
        assert equal(weights(model), weights(resumed))
