"""Arms of a block, looped and not: MLPs without gates, other activations and widths, attention only, parallel blocks."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from raycap.learner import model as llama
from raycap.learner import pretrained
from raycap.learner.model import ParameterGroup
from raycap.plan.sizes import block_weights, parameter_counts
from raycap.spec import Activation, HeadSize, Loop, LoopSharing, Mlp, ModelByWidth, MuP, TrialSpec
from raycap.storage.saved_model import WEIGHTS
from tests.support.whole_rows import logits_of

VOCAB_SIZE = 97
TOKENS = torch.randint(0, VOCAB_SIZE, (5, 11), generator=torch.Generator().manual_seed(2))
MUP = MuP(kind="mup", base_width=8)


def shape(**arm: Any) -> ModelByWidth:
    return ModelByWidth(hidden_size=16, num_layers=2, heads=HeadSize(head_size=8), **arm)


SEQUENTIAL = {
    "GELU without a gate": shape(mlp=Mlp(activation=Activation.GELU, gated=False, ratio=6.0)),
    "ReLU^2 without a gate, muP": shape(
        mlp=Mlp(activation=Activation.RELU2, gated=False, ratio=0.3), parametrization=MUP, tie_embeddings=True
    ),
    "GELU with a gate": shape(mlp=Mlp(activation=Activation.GELU, ratio=8 / 3), tie_embeddings=True),
    "attention only, muP": shape(mlp=None, parametrization=MUP),
    "looped without a gate": shape(
        mlp=Mlp(activation=Activation.RELU2, gated=False), loop=Loop(times=3, shared=LoopSharing.MLP, own_norms=True)
    ),
    "looped attention only": shape(mlp=None, loop=Loop(times=2, own_norms=True)),
}
PARALLEL = {
    "parallel": shape(parallel=True, tie_embeddings=True),
    "parallel and looped, no gate": shape(
        parallel=True, mlp=Mlp(gated=False), loop=Loop(times=2, shared=LoopSharing.ATTENTION, own_norms=True)
    ),
}


def built(spec: ModelByWidth) -> llama.Llama:
    """Return a model whose weights are all perturbed, so that gains are not 1."""
    model, generator = llama.Llama(spec, VOCAB_SIZE), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if ParameterGroup.of(name) is ParameterGroup.GAIN else 0.0, 0.1, generator=generator)
    return model


def parallel_reference(spec: ModelByWidth, folder: Path) -> LlamaForCausalLM:
    """Return transformers' Llama with the stored weights, and blocks changed to parallel ones."""
    settings = pretrained.config(spec.model_copy(update={"parallel": False, "mlp": Mlp(ratio=4.0)}), VOCAB_SIZE)
    reference = LlamaForCausalLM(LlamaConfig(**settings))
    reference.load_state_dict(load_file(folder / WEIGHTS), strict=False)

    def forward(block: Any, x: torch.Tensor, **options: Any) -> torch.Tensor:
        normed = block.input_layernorm(x)
        mlp = block.mlp
        gate = mlp.gate_proj(normed)
        inner = torch.nn.functional.silu(gate) * mlp.up_proj(normed)
        if spec.mlp and not spec.mlp.gated:
            inner = torch.nn.functional.silu(mlp.up_proj(normed))
        return x + block.self_attn(hidden_states=normed, **options)[0] + mlp.down_proj(inner)

    for block in reference.model.layers:
        block.forward = forward.__get__(block)
    return reference


@pytest.mark.parametrize("arm", [*SEQUENTIAL, *PARALLEL])
def test_logits_equal_those_of_transformers_before_and_after_loading(arm: str, tmp_path: Path) -> None:
    spec = (SEQUENTIAL | PARALLEL)[arm]
    model = built(spec)
    pretrained.save_pretrained(model, tmp_path)
    if spec.parallel:
        reference = parallel_reference(spec, tmp_path)
        with pytest.raises(ValueError, match="raycap"):  # transformers must not compute another model from these files
            AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        reference = AutoModelForCausalLM.from_pretrained(tmp_path)
    logits = logits_of(model, TOKENS)
    assert logits.std() > 0.1
    with torch.no_grad():
        assert (logits - reference(TOKENS).logits).abs().max() < 1e-5
    assert (logits_of(pretrained.load_pretrained(spec, tmp_path), TOKENS) - logits).abs().max() < 1e-5
    other = spec.model_copy(update={"mlp": Mlp(ratio=5.0), "parallel": False})
    with pytest.raises(ValueError, match="intermediate_size"):
        pretrained.load_pretrained(other, tmp_path)


@pytest.mark.parametrize("arm", [*SEQUENTIAL, *PARALLEL])
def test_parameters_are_counted_as_the_tensors_are(arm: str) -> None:
    spec = (SEQUENTIAL | PARALLEL)[arm]
    model, counts = built(spec), parameter_counts(spec, VOCAB_SIZE)
    assert model.count_parameters() == counts
    assert counts.total == sum(weights[0].numel() for weights in model.storage.values())
    # Without a loop, every weight of a matrix is used once. A loop uses the weights of all of its copies.
    unlooped = spec.model_copy(update={"loop": None, "num_layers": spec.depth})
    matrices = parameter_counts(unlooped, VOCAB_SIZE)
    assert block_weights(spec) == matrices.attention + matrices.mlp
    if not spec.parallel:
        plain = AutoModelForCausalLM.from_config(LlamaConfig(**pretrained.config(unlooped, VOCAB_SIZE)))
        in_gates = 0 if spec.mlp is None or spec.mlp.gated else spec.depth * spec.hidden_size * spec.mlp_width
        unused = spec.depth * 4 * spec.hidden_size if spec.mlp is None else 0  # an MLP of width 1 and its gains
        assert plain.num_parameters() == matrices.total + in_gates + unused


def test_a_gate_costs_half_of_an_mlp_without_one() -> None:
    gated, ungated = shape(), shape(mlp=Mlp(activation=Activation.GELU, gated=False, ratio=6.0))
    assert parameter_counts(gated, VOCAB_SIZE) == parameter_counts(ungated, VOCAB_SIZE)


def test_an_arm_is_part_of_the_identity_of_a_trial_and_the_default_is_not() -> None:
    plain = TrialSpec(model=shape()).trial_id
    assert (
        TrialSpec(model=shape(mlp=Mlp(activation=Activation.SILU, gated=True, ratio=4), parallel=False)).trial_id
        == plain
    )
    arms = SEQUENTIAL | PARALLEL
    assert len({plain, *(TrialSpec(model=arm).trial_id for arm in arms.values())}) == 1 + len(arms)


@pytest.mark.parametrize(
    ("arm", "field"),
    [
        ({"mlp": None, "parallel": True}, "parallel"),
        ({"mlp": None, "loop": {"times": 2, "shared": "mlp"}}, "loop"),
        ({"mlp": None, "loop": {"times": 2, "shared": "attention"}}, "loop"),
        ({"mlp": {"ratio": 0}}, "mlp.ratio"),
        ({"mlp": {"activation": "swish"}}, "mlp.activation"),
        ({"loop": {"times": 1}}, "loop.times"),
    ],
)
def test_arms_that_cannot_be_built_are_refused_with_the_field(arm: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as caught:
        ModelByWidth.model_validate_json(json.dumps(arm))
    assert [".".join(map(str, error["loc"])) for error in caught.value.errors()] == [field]
