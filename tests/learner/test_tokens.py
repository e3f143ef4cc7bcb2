"""Composed rows equal tokenised text, for both tokenizers, whatever the names and values look like."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raycap.facts.hosted import profiles_of
from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.questions import END, num_questions, render, unpack
from raycap.learner.tokens import END_ID, Composer, build_tokenizer, num_embeddings, save_tokenizer
from raycap.spec import BpeTokenizer, NamePools, ProfilesFromDisk, TokenizerSpec, WordTokenizer
from tests.strategies import populations

WORD, BPE = WordTokenizer(), BpeTokenizer(kind="bpe", vocab_size=400)
SMALL = generate(census_schema(NamePools(first=20, middle=20, last=40), 4), 100, seed=0)


def assert_rows_are_tokenised_text(profiles: Profiles, spec: TokenizerSpec, hops: int, stride: int = 1) -> None:
    tokenizer = build_tokenizer(spec, profiles)
    composer = Composer.build(profiles, tokenizer)
    questions = unpack(profiles, hops, np.arange(0, num_questions(profiles, hops), stride))
    rows = composer.compose(questions, composer.row_length(hops) + 2)
    for ids, mask, (prompt, answer) in zip(rows.input_ids, rows.answer_mask, render(profiles, questions), strict=True):
        whole = tokenizer.encode(prompt + answer + END).ids
        answer_start = len(tokenizer.encode(prompt).ids)
        assert ids.tolist() == whole + [END_ID] * (len(ids) - len(whole)), prompt + answer
        assert mask.nonzero()[0].tolist() == list(range(answer_start, len(whole)))


@pytest.mark.parametrize("spec", [WORD, BPE])
@settings(max_examples=60, deadline=None)
@given(profiles=populations())
def test_rows_are_tokenised_text(spec: TokenizerSpec, profiles: Profiles) -> None:
    for hops in (1, 2, 3) if profiles.schema.relations else (1,):
        assert_rows_are_tokenised_text(profiles, spec, hops)


@pytest.mark.parametrize("spec", [WORD, BpeTokenizer(kind="bpe")])
@pytest.mark.parametrize("hops", [1, 2])
def test_rows_are_tokenised_text_on_census_names(spec: TokenizerSpec, hops: int) -> None:
    census = generate(census_schema(NamePools(), 17), 200, seed=0)
    assert_rows_are_tokenised_text(census, spec, hops, stride=37)


def test_rows_are_tokenised_text_on_the_references_file(shared_profiles: Path) -> None:
    loaded = profiles_of(ProfilesFromDisk(source="disk", path=str(shared_profiles)))
    for spec in (WORD, BpeTokenizer(kind="bpe")):
        assert_rows_are_tokenised_text(loaded, spec, 1, stride=11)


def test_a_word_is_a_token() -> None:
    tokenizer = build_tokenizer(WORD, SMALL)
    text = "Question: What was James Mary Smith's best friend's birth date? Answer: 1950-01-02<|end|>"
    assert tokenizer.encode(text).tokens == [
        *("Question: What was", "James", "Mary", "Smith", "'s best friend", "'s birth date", "? Answer:"),
        *("1950", "-01", "-02", "<|end|>"),
    ]
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_vocabulary_tells_nothing_about_the_people() -> None:
    other = generate(SMALL.schema, 100, seed=1)
    assert build_tokenizer(WORD, SMALL).get_vocab() == build_tokenizer(WORD, other).get_vocab()


@pytest.mark.parametrize("spec", [WORD, BPE])
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_mean_tokens_are_those_of_all_rows(spec: TokenizerSpec, hops: int) -> None:
    composer = Composer.build(SMALL, build_tokenizer(spec, SMALL))
    questions = unpack(SMALL, hops, np.arange(num_questions(SMALL, hops)))
    rows = composer.compose(questions, composer.row_length(hops))
    lengths = rows.answer_mask.shape[1] - rows.answer_mask[:, ::-1].argmax(axis=1)
    assert composer.mean_tokens(hops) == pytest.approx((lengths.mean(), rows.answer_mask.sum(axis=1).mean()))


@pytest.mark.parametrize("spec", [WORD, BPE])
def test_saved_tokenizers_load_as_fast_ones(spec: TokenizerSpec, tmp_path: Path) -> None:
    tokenizer = build_tokenizer(spec, SMALL)
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert isinstance(loaded, PreTrainedTokenizerFast)
    for prompt, answer in render(SMALL, unpack(SMALL, 2, np.arange(0, num_questions(SMALL, 2), 501))):
        text = prompt + answer + END
        assert loaded(text)["input_ids"] == tokenizer.encode(text).ids
        assert loaded.decode(loaded(text)["input_ids"]) == text
    assert (loaded.eos_token, loaded.pad_token) == (END, END)
    assert len(loaded) <= num_embeddings(spec, tokenizer)


def test_training_a_bpe_twice_gives_the_same() -> None:
    assert build_tokenizer(BPE, SMALL).to_str() == build_tokenizer(BPE, SMALL).to_str()
