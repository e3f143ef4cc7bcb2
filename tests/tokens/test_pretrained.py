"""Existing tokenizers: their ids, their cost in the plan, their identity, and the refusal of those that alter texts."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

import raycap
from raycap.facts.build import corpora_of, profiles_of
from raycap.facts.corpus import END, render_texts
from raycap.spec import PretrainedTokenizer
from raycap.spec.document import SpecError
from raycap.tokens.composer import Composer
from raycap.tokens.pretrained import load_pretrained_tokenizer
from raycap.tokens.tokenizers import build_tokenizer
from tests.support.tiny import TINY

CORPUS = [
    "Question: What was James John Smith's parent's employer? Answer: Heron Security",
    "They were born on 1950-01-02.",
]
SIZE = 300


def saved(folder: Path, **changes: Any) -> Path:
    """Train a byte-level BPE tokenizer, change some of its parts, and save it as a tokenizer.json of a folder."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE, special_tokens=["<pad>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    for name, part in changes.items():
        setattr(tokenizer, name, part)
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def sweep(tokenizer: dict[str, Any]) -> raycap.Sweep:
    trial = TINY.model_dump(mode="json", exclude={"tokenizer", "questions"}) | {"tokenizer": tokenizer}
    return raycap.Sweep.from_dict({"name": "pretrained", "trial": trial, "grid": {"questions.hops": [[1], [1, 2]]}})


def test_ids_are_those_of_the_file_after_the_end_token(tmp_path: Path) -> None:
    before = Tokenizer.from_file(str(saved(tmp_path / "bpe") / "tokenizer.json"))
    spec = PretrainedTokenizer(kind="pretrained", path=str(tmp_path / "bpe"))
    corpora = corpora_of(profiles_of(TINY.profiles), TINY.questions)
    after = build_tokenizer(spec, corpora)
    assert after.get_vocab_size() == SIZE + 1
    assert after.get_vocab() == {END: 0} | {token: index + 1 for token, index in before.get_vocab().items()}
    composer = Composer.build(corpora[0], after)
    ids = composer.trained[np.arange(5)]
    rows = composer.compose(ids, composer.row_length)
    for text, row, length in zip(render_texts(corpora[0], ids), rows.input_ids.tolist(), rows.lengths, strict=True):
        whole = before.encode(text.removesuffix(END), add_special_tokens=False).ids
        assert row[:length] == [*(index + 1 for index in whole), 0]
        assert after.decode(row[:length], skip_special_tokens=False) == text


def test_the_plan_shows_the_cost_and_a_trial_is_identified_by_the_file(tmp_path: Path) -> None:
    folder = saved(tmp_path / "bpe")
    plan = sweep({"kind": "pretrained", "path": str(folder)}).plan()
    assert len(plan) == 2
    for warnings in plan["warnings"]:
        assert [f"{SIZE + 1} tokens" in each for each in warnings].count(True) == 1
    (trial, *_) = sweep({"kind": "pretrained", "path": str(folder / "tokenizer.json")}).trials
    assert trial.trial_id == plan["trial_id"][0]
    assert trial.parameters.embedding == (SIZE + 1) * 16
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert sweep({"kind": "pretrained", "path": str(moved)}).plan()["trial_id"].equals(plan["trial_id"])
    tree = json.loads((moved / "tokenizer.json").read_text())
    (moved / "tokenizer.json").write_text(json.dumps(tree, indent=3))
    assert not set(sweep({"kind": "pretrained", "path": str(moved)}).plan()["trial_id"]) & set(plan["trial_id"])
    result = raycap.run_trial(trial.spec)
    assert result.vocab_size == SIZE + 1
    assert result.trial_id == trial.trial_id


@pytest.mark.parametrize(
    ("change", "quoted"),
    [
        ({"normalizer": normalizers.Lowercase()}, "Question"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "apart"),
        ({"end": True}, END),
        ({"gap": True}, "ids"),
        ({"sha256": "ab"}, "tokenizer.sha256"),
        ({"path": "missing"}, "missing"),
        ({"hub": "owner/name"}, "owner/name"),
        ({"path": None}, "path and hub"),
        ({"broken": True}, "tokenizer.path"),
    ],
    ids=str,
)
def test_tokenizers_that_cannot_be_used_are_refused(tmp_path: Path, change: dict[str, Any], quoted: str) -> None:
    parts = {name: change[name] for name in ("normalizer", "pre_tokenizer") if name in change}
    folder = saved(tmp_path / "bpe", **parts)
    file = folder / "tokenizer.json"
    tree = json.loads(file.read_text())
    if "end" in change:
        tree["model"]["vocab"][END] = len(tree["model"]["vocab"])
    if "gap" in change:
        tree["model"]["vocab"]["far away"] = 10_000
    file.write_text("{}" if "broken" in change else json.dumps(tree))
    spec = {"kind": "pretrained", "path": str(folder)} | {k: change[k] for k in ("sha256", "path") if k in change}
    if "hub" in change:
        spec = {"kind": "pretrained", "hub": change["hub"]}
    with pytest.raises(SpecError, match=quoted.replace("|", r"\|")):
        _ = sweep(spec).trials


def test_unigram_tokenizers_get_the_end_token_too(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), *((letter, -2.0) for letter in "abcdefgh "), ("each", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    after = load_pretrained_tokenizer(PretrainedTokenizer(kind="pretrained", path=str(tmp_path)))
    assert after.encode(f"a each{END}").ids == [*(index + 1 for index in tokenizer.encode("a each").ids), 0]
    assert after.encode("z").ids == [1]
