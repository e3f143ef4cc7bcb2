"""Training that starts from saved weights: its first losses, its identity, its vocabulary, and models that are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raycap.learner import architectures
from raycap.plan.expand import expand, resolve
from raycap.spec import (
    AdamW,
    BpeTokenizer,
    PretrainedModel,
    PretrainedTokenizer,
    Steps,
    TrainingSpec,
    TransformersByConfig,
    TrialSpec,
)
from raycap.spec.file import SpecError, load_sweep
from raycap.storage import Storage
from tests.support.tiny import TINY, trained, trained_tiny, trained_with_a_pause, weights

SHORT = TrainingSpec(length=Steps(steps=20), batch_size=32, num_evaluations=2, optimizer=AdamW(lr=0.01, warmup_steps=5))
STILL = SHORT.model_copy(update={"length": Steps(steps=1), "optimizer": AdamW(lr=1e-9)})
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the model of TINY as a trial does, and return its folder."""
    folder = tmp_path_factory.mktemp("llama")
    trained_tiny().save_model(Storage.at(str(folder)), "model")
    return folder / "model"


def starting_from(folder: Path, training: TrainingSpec = SHORT, **changes: Any) -> TrialSpec:
    model = PretrainedModel(kind="pretrained", path=str(folder))
    return resolve(TINY.model_copy(update={"model": model, "training": training, **changes}), Storage.at("unused"))


def test_training_starts_from_the_losses_of_the_saved_model_and_resumes_bit_equal(llama: Path, tmp_path: Path) -> None:
    still = trained(starting_from(llama, STILL)).result
    parent = trained_tiny().result
    assert still.final.losses.select("one_hop").mean_bits == pytest.approx(
        parent.final.losses.select("one_hop").mean_bits, rel=1e-4
    )
    assert still.parameters == parent.parameters

    spec = starting_from(llama)
    whole = trained(spec)
    resumed = trained_with_a_pause(spec, Storage.at(str(tmp_path / "runs")))
    assert all(map(torch.equal, weights(resumed), weights(whole)))
    assert resumed.result.final.losses == whole.result.final.losses

    architectures.save_model(whole.model, tmp_path)
    again = architectures.load_model(spec.model, tmp_path)
    assert all(map(torch.equal, again.storage.values(), weights(whole)))


def test_a_trial_is_identified_by_the_weights_and_not_by_their_path(llama: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(llama, tmp_path / "copied")
    assert starting_from(copied).trial_id == starting_from(llama).trial_id
    changed = {name: 1.5 * weight for name, weight in load_file(copied / "model.safetensors").items()}
    save_file(changed, copied / "model.safetensors", {"format": "pt"})
    (copied / "sha256").unlink()
    spec = starting_from(copied)
    assert spec.trial_id != starting_from(llama).trial_id
    shutil.copy(llama / "model.safetensors", copied)
    with pytest.raises(ValueError, match="sha256"):
        trained(spec)


def test_a_model_of_another_architecture_and_with_a_trained_tokenizer_is_continued(tmp_path: Path) -> None:
    gpt2 = TransformersByConfig(kind="transformers", config=GPT2)
    bpe = BpeTokenizer(kind="bpe", vocab_size=300)
    changes = {"model": gpt2, "tokenizer": bpe, "training": STILL}
    first = trained(resolve(TINY.model_copy(update=changes), Storage.at("unused")))
    first.save_model(Storage.at(str(tmp_path)), "model")
    folder = tmp_path / "model"
    tokenizer = PretrainedTokenizer(kind="pretrained", path=str(folder))
    spec = starting_from(folder, STILL, tokenizer=tokenizer)
    assert (spec.model.model_type, spec.model.hidden_size, spec.model.num_layers) == ("gpt2", 16, 1)
    assert trained(spec).result.final.losses.select("one_hop").mean_bits == pytest.approx(
        first.result.final.losses.select("one_hop").mean_bits, rel=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "t5"}, "t5"),
        ({"auto_map": {"AutoModelForCausalLM": "code.Model"}}, "auto_map"),
        ({"vocab_size": 12}, "vocab_size 12"),
        ({"hidden_size": 32}, "weights"),
        ({"num_hidden_layers": 3}, "weights"),
    ],
    ids=str,
)
def test_models_that_cannot_be_used_are_refused_with_their_path(
    llama: Path, tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (folder / "sha256").unlink()
    with pytest.raises(ValueError, match=words) as refused:
        starting_from(folder)
    assert str(refused.value).startswith("model.path: ")


def test_trials_that_do_not_fit_their_model_are_refused(llama: Path, tmp_path: Path) -> None:
    sweep = {
        "trial": {
            "profiles": TINY.profiles.model_dump(mode="json"),
            "model": {"kind": "pretrained", "path": str(llama)},
        },
        "points": [
            {"profiles.num_relations": 3},
            {"tokenizer.kind": "bpe"},
            {"fill": {"parent": {"path": str(llama)}, "profiles": {"num_profiles": 2}}},
            {"training.optimizer.kind": "muon"},
            {"model.path": str(tmp_path)},
        ],
        "execution": {"replicas": 2},
    }
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    problems: list[str] = []
    for kept in ([0, 3, 4], [1], [2]):  # the spec is validated before it is resolved
        points = [sweep["points"][index] for index in kept]
        (tmp_path / "sweep.yaml").write_text(json.dumps(sweep | {"points": points}))
        with pytest.raises(SpecError) as refused:
            expand(load_sweep(str(tmp_path / "sweep.yaml"), ()))
        problems += refused.value.problems
    for words in ("best friend", "tokenizer.kind", "fill.parent", "execution.replicas", "muon", "config.json"):
        assert any(words in line for line in problems), (words, problems)
