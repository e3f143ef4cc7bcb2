"""Models of transformers: counted, trained, resumed, saved and loaded as themselves."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from raycap.learner import architectures
from raycap.plan.expand import expand, resolve
from raycap.plan.sizes import parameter_counts
from raycap.spec import (
    AdamW,
    Fill,
    ParentTrial,
    Steps,
    TrainingSpec,
    TransformersByConfig,
    TransformersByParams,
    TrialSpec,
)
from raycap.spec.file import SpecError, load_sweep
from raycap.storage import Storage, model_folder
from tests.support.tiny import TINY, trained, trained_with_a_pause, weights

VOCAB_SIZE = 50
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "initializer_range": 0.1}
HEADS = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
MIXTRAL = {"model_type": "mixtral", "hidden_size": 16, "intermediate_size": 24, "num_local_experts": 5, **HEADS}
MAMBA2 = {
    "model_type": "mamba2",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_heads": 4,
    "head_dim": 8,
    "state_size": 8,
    "n_groups": 1,
    "chunk_size": 8,
}
OLMO2 = {"model_type": "olmo2", "hidden_size": 16, "intermediate_size": 24, **HEADS}


def trial(config: Mapping[str, Any], **training: Any) -> TrialSpec:
    spec = TrainingSpec(
        length=Steps(steps=30), batch_size=32, num_evaluations=2, optimizer=AdamW(lr=0.01, warmup_steps=5)
    ).model_copy(update=training)
    model = TransformersByConfig(kind="transformers", config=dict(config))
    return resolve(TINY.model_copy(update={"model": model, "training": spec}), Storage.at("unused"))


@pytest.mark.parametrize(
    "config",
    [GPT2, MIXTRAL, *(pytest.param(each, marks=pytest.mark.slow) for each in (MAMBA2, OLMO2))],
    ids=lambda config: config["model_type"],
)
def test_a_trial_learns_resumes_bit_equal_and_is_saved_as_itself(config: dict[str, Any], tmp_path: Path) -> None:
    spec = trial(config)
    whole = trained(spec)
    first, last = whole.result.evaluations[0].train_loss_bits, whole.result.final.train_loss_bits
    assert last < 0.9 * first
    assert whole.result.parameters == parameter_counts(spec.model, whole.result.vocab_size)
    assert whole.result.parameters.total == sum(p.numel() for p in whole.model.parameters())

    resumed = trained_with_a_pause(spec, Storage.at(str(tmp_path / "runs")))
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed.result.final.losses == whole.result.final.losses

    architectures.save_model(whole.model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    tokens = torch.arange(1, 9).repeat(2, 1)
    logits = plain(tokens).logits
    again = architectures.load_model(spec.model, tmp_path)
    assert torch.allclose(again.network(tokens).logits, logits, atol=1e-6)
    assert torch.allclose(whole.model.network(tokens).logits, logits, atol=1e-6)


def test_a_fill_starts_from_the_losses_of_its_parent(tmp_path: Path) -> None:
    storage, parent = Storage.at(str(tmp_path)), trained(trial(GPT2))
    parent.save_model(storage, model_folder(parent.result.trial_id))
    second = TINY.profiles.model_copy(update={"seed": 1, "num_profiles": 20})
    fill = Fill(parent=ParentTrial(trial_id=parent.result.trial_id), profiles=second)
    still = TrainingSpec(length=Steps(steps=1), optimizer=AdamW(lr=1e-9))
    spec = parent.result.spec.model_copy(update={"fill": fill, "training": still})
    losses = trained(spec, storage=storage).result.final.losses
    (first,) = (row.sum_bits for row in losses.rows if row.population == 0 and row.subject == "birth_date")
    (expected,) = (row.sum_bits for row in parent.result.final.losses.rows if row.subject == "birth_date")
    assert first == pytest.approx(expected, rel=1e-4)


def test_groups_of_parameters_and_those_that_a_token_meets_are_counted() -> None:
    counts = parameter_counts(TransformersByConfig(kind="transformers", config=MIXTRAL), VOCAB_SIZE)
    expert = 3 * 16 * 24
    assert counts.embedding == counts.unembedding == VOCAB_SIZE * 16
    assert counts.attention == 2 * 4 * 16 * 16
    assert counts.mlp == 2 * 5 * (expert + 16)  # each expert has a row of the router
    assert counts.norms == 5 * 16
    assert counts.active == counts.total - 2 * 3 * expert  # two of five experts
    gpt2 = parameter_counts(TransformersByConfig(kind="transformers", config=GPT2), VOCAB_SIZE)
    assert (gpt2.embedding, gpt2.unembedding) == ((VOCAB_SIZE + 16) * 16, 0)  # with positions; tied
    assert gpt2.active == gpt2.total


def test_a_width_is_solved_from_the_parameters_that_the_model_has() -> None:
    config = {name: value for name, value in MIXTRAL.items() if name not in ("hidden_size", "intermediate_size")}
    spec = TransformersByParams(
        kind="transformers", config=config, num_params=30_000, multiple_of=4, proportional={"intermediate_size": 2}
    )
    model = resolve(TINY.model_copy(update={"model": spec}), Storage.at("unused")).model
    vocab_size = 649
    width = model.hidden_size
    assert model.config["intermediate_size"] == 2 * width
    sizes = {
        other: parameter_counts(
            TransformersByConfig(
                kind="transformers", config={**config, "hidden_size": other, "intermediate_size": 2 * other}
            ),
            vocab_size,
        ).total
        for other in (width - 4, width, width + 4)
    }
    assert min(sizes, key=lambda other: abs(sizes[other] - 30_000)) == width


def test_specs_of_one_model_have_one_identity() -> None:
    common = {"model_type": "gpt2", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    more = {name: GPT2[name] for name in ("n_positions", "initializer_range")}
    assert trial(GPT2).trial_id == trial(common | more).trial_id != trial(GPT2 | {"n_layer": 1}).trial_id
    llama = TINY.model_dump(mode="json") | {"model": TINY.model.model_dump(mode="json") | {"kind": "llama"}}
    assert TrialSpec.model_validate_json(json.dumps(llama)).trial_id == TINY.trial_id


@pytest.mark.parametrize(
    ("config", "field", "words"),
    [
        ({"model_type": "gtp2"}, "model.config.model_type", "gpt2"),
        ({"model_type": "t5"}, "model.config.model_type", "causal"),
        ({"model_type": "gemma4"}, "model.config.model_type", "hidden_size"),
        (GPT2 | {"n_head": 3}, "model.config", "gpt2"),
        (GPT2 | {"n_embed": 3}, "model.config.n_embed", "n_embd"),
        (GPT2 | {"n_embd": "wide"}, "model.config", "n_embd"),
        (GPT2 | {"hidden_size": 8}, "model.config.hidden_size", "n_embd"),
        (GPT2 | {"vocab_size": 9}, "model.config.vocab_size", "raycap"),
        (GPT2 | {"resid_pdrop": 0.1}, "model.config.resid_pdrop", "0.1"),
        (
            {
                "model_type": "bert",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
            },
            "model.config.model_type",
            "later",
        ),
    ],
)
def test_configurations_that_do_not_fit_are_refused_with_their_field(
    config: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)) as refused:
        trial(config)
    assert str(refused.value).startswith(f"{field}: ")


def test_settings_that_these_models_do_not_support_are_refused(tmp_path: Path) -> None:
    sweep = {
        "trial": {
            "profiles": TINY.profiles.model_dump(mode="json"),
            "model": {"kind": "transformers", "config": GPT2 | {"n_positions": 4}},
            "training": {"optimizer": {"kind": "muon"}, "packing": {"kind": "windows", "attend_across": False}},
        },
        "execution": {"replicas": 2, "compile": True, "cuda_graph": True},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    with pytest.raises(SpecError) as refused:
        expand(load_sweep(str(tmp_path / "sweep.yaml"), ()))
    fields = {
        "model.config.max_position_embeddings",
        "execution.replicas",
        "execution.compile",
        "execution.cuda_graph",
        "training.optimizer.kind",
        "training.packing.attend_across",
    }
    assert all(
        any(re.search(rf": (trial\.|trial: )?{re.escape(field)}: ", line) for line in refused.value.problems)
        for field in fields
    )
