"""Composed rows equal the tokens of the whole texts, for both tokenizers and every kind of corpus."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from raycap.facts.biographies import BiographyCorpus
from raycap.facts.build import profiles_of
from raycap.facts.corpus import END, Corpus, TrainedIds, render_texts
from raycap.facts.names_corpus import NamesCorpus
from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.questions import Questions
from raycap.facts.random_data import pairs, strings
from raycap.results import Part
from raycap.spec import (
    Biographies,
    BpeTokenizer,
    NamePools,
    ProfilesFromDisk,
    RandomPairs,
    RandomStrings,
    RelationStructure,
    TokenizerSpec,
    WordTokenizer,
)
from raycap.tokens import pieces
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import END_ID, build_tokenizer, load_tokenizer, num_embeddings, save_tokenizer
from tests.support.strategies import populations

WORD, BPE = WordTokenizer(), BpeTokenizer(kind="bpe", vocab_size=400)
POOLS = NamePools(first=20, middle=20, last=40)
SMALL = generate(census_schema(POOLS, 4), 100, seed=0)
PAIRED = generate(census_schema(POOLS, 4, RelationStructure.BIPARTITE), 100, seed=0)


def all_corpora(profiles: Profiles) -> list[Corpus]:
    """Return one corpus of every kind about a population."""
    spec = Biographies(kind="biographies", per_person=2, permute=True)
    corpora: list[Corpus] = [Questions(profiles, 1), NamesCorpus(profiles), BiographyCorpus(profiles, spec)]
    if profiles.schema.relations:
        corpora += [
            Questions(profiles, 2),
            Questions(profiles, 2, True),
            Questions(profiles, 3),
            Questions(profiles, 3, True),
        ]
    return corpora


def assert_rows_equal_tokenized_texts(corpus: Corpus, spec: TokenizerSpec, stride: int = 1) -> None:
    tokenizer = build_tokenizer(spec, (corpus,))
    composer = Composer.build(corpus, tokenizer)
    trained = TrainedIds(corpus)
    ids = trained[np.arange(0, len(trained), stride)]
    rows = composer.compose(ids, composer.row_length + 2)
    assert np.array_equal(composer.compose(ids, composer.row_length).cells, rows.cells[:, :-2])
    lengths, measured = composer.lengths(ids)
    for i, text in enumerate(render_texts(corpus, ids)):
        whole = tokenizer.encode(text, add_special_tokens=False).ids
        assert rows.input_ids[i].tolist() == whole + [END_ID] * (rows.input_ids.shape[1] - len(whole)), text
        assert lengths[i] == len(whole)
        assert (rows.labels[i] > 0).sum() == measured[i]
        if isinstance(corpus, Questions):  # all of the answer, and nothing before it
            prompt = text[: text.index("? Answer:") + len("? Answer:")]
            assert rows.labels[i].nonzero()[0].tolist() == list(range(len(tokenizer.encode(prompt).ids), len(whole)))


@pytest.mark.parametrize("spec", [WORD, BPE])
@settings(max_examples=20, deadline=None)
@given(profiles=populations())
def test_rows_equal_tokenized_texts(spec: TokenizerSpec, profiles: Profiles) -> None:
    for corpus in all_corpora(profiles):
        assert_rows_equal_tokenized_texts(corpus, spec, stride=1 + corpus.num_ids // 200)


@pytest.mark.parametrize("spec", [WORD, BpeTokenizer(kind="bpe")])
def test_rows_equal_tokenized_texts_with_census_names(spec: TokenizerSpec) -> None:
    corpora = all_corpora(generate(census_schema(NamePools(), 17), 100, seed=0))
    # A word vocabulary has all names of the census, so it takes a second to build: one-hop questions, biographies, chains.
    for corpus in corpora if spec != WORD else corpora[::2]:
        assert_rows_equal_tokenized_texts(corpus, spec, stride=1 + corpus.num_ids // 300)


@pytest.mark.parametrize("spec", [WORD, BPE])
def test_rows_omit_facts_that_a_person_lacks(spec: TokenizerSpec) -> None:
    for corpus in all_corpora(PAIRED):
        assert_rows_equal_tokenized_texts(corpus, spec, stride=1 + corpus.num_ids // 300)


def test_rows_of_random_data_equal_tokenized_texts() -> None:
    random_strings = strings(RandomStrings(source="strings", num_strings=50, vocab_size=16, length=9))
    keys = pairs(RandomPairs(source="pairs", num_keys=60, num_relations=3, num_values=16))
    for corpus in (NamesCorpus(random_strings), Questions(keys, 1)):
        assert_rows_equal_tokenized_texts(corpus, WORD)
    tokenizer = build_tokenizer(WORD, (NamesCorpus(random_strings),))
    assert tokenizer.get_vocab_size() == 16 + 1  # the tokens of the strings and the end token


def test_rows_equal_tokenized_texts_of_a_file_of_the_reference(shared_profiles: Path) -> None:
    loaded = profiles_of(ProfilesFromDisk(source="disk", path=str(shared_profiles)))
    for spec in (WORD, BpeTokenizer(kind="bpe")):
        assert_rows_equal_tokenized_texts(Questions(loaded, 1), spec, stride=11)


@pytest.mark.parametrize("profiles", [SMALL, PAIRED], ids=["uniform", "bipartite"])
def test_stretches_that_are_too_large_to_cache_give_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, profiles: Profiles
) -> None:
    monkeypatch.setattr(pieces, "CHAINS_PER_CHUNK", 77)
    for corpus in all_corpora(profiles):
        tokenizer = build_tokenizer(BPE, (corpus,))
        cached, uncached = Composer.build(corpus, tokenizer), Composer.build(corpus, tokenizer)
        trained = TrainedIds(corpus)
        ids = trained[np.random.default_rng(0).permutation(len(trained))[:1000]]
        rows = cached.compose(ids, cached.row_length)
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "MAX_TABLE_BYTES", 0)
            assert np.array_equal(uncached.compose(ids, cached.row_length).cells, rows.cells)
        assert uncached.row_length == cached.row_length


def test_large_vocabularies_use_wider_cells() -> None:
    """The census has more names than 16 bits can distinguish."""
    corpus = Questions(generate(census_schema(NamePools(), 4), 50, seed=0), 2)
    tokenizer = build_tokenizer(WORD, (corpus,))
    assert tokenizer.get_vocab_size() > 2**16
    for each, dtype in ((tokenizer, np.uint32), (build_tokenizer(BPE, (corpus,)), np.uint16)):
        composer = Composer.build(corpus, each)
        assert composer.compose(np.arange(9), composer.row_length).input_ids.dtype == dtype


@pytest.mark.parametrize("spec", [WORD, BPE])
def test_a_pickled_composer_does_not_contain_joined_stretches(spec: TokenizerSpec) -> None:
    corpus = Questions(SMALL, 2, chain_of_thought=True)
    composer = Composer.build(corpus, build_tokenizer(spec, (corpus,)))
    ids = np.arange(0, corpus.num_ids, 7)
    before = len(pickle.dumps((composer.corpus_index, composer.tables)))
    rows = composer.compose(ids, composer.row_length)
    assert len(pickle.dumps(composer)) < before + 1.1 * len(pickle.dumps(corpus))
    again = pickle.loads(pickle.dumps(composer)).compose(ids, composer.row_length)
    assert np.array_equal(again.cells, rows.cells)


def test_rows_too_short_for_a_text_are_refused() -> None:
    corpus = Questions(SMALL, 2)
    composer = Composer.build(corpus, build_tokenizer(WORD, (corpus,)))
    with pytest.raises(ValueError, match="length: "):
        composer.compose(np.arange(3), composer.row_length - 1)


def test_labels_identify_subject_and_part() -> None:
    corpus = Questions(SMALL, 2, chain_of_thought=True)
    composer = Composer.build(corpus, build_tokenizer(WORD, (corpus,)))
    ids = np.arange(corpus.num_ids)
    rows = composer.compose(ids, composer.row_length)
    subjects = corpus.unpack(ids).subject
    for i in range(0, len(ids), 97):
        measured = [corpus.measures[label - 1] for label in rows.labels[i] if label]
        assert {measure.subject for measure in measured} == {SMALL.schema.subjects[subjects[i]]}
        assert [measure.part for measure in measured] == [Part.CHAIN] * 4 + [Part.ANSWER] * (len(measured) - 4)
    assert (rows.lengths == composer.lengths(ids)[0]).all()


def test_each_word_is_one_token() -> None:
    tokenizer = build_tokenizer(WORD, (Questions(SMALL, 2, True),))
    text = "Question: What was James Mary Smith's best friend's birth date? Answer: John Mary Smith; 1950-01-02<|end|>"
    assert tokenizer.encode(text).tokens == [
        *("Question: What was", "James", "Mary", "Smith", "'s best friend", "'s birth date", "? Answer:"),
        *("John", "Mary", "Smith", ";", "1950", "-01", "-02", "<|end|>"),
    ]
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_the_word_vocabulary_does_not_depend_on_the_population() -> None:
    other = generate(SMALL.schema, 100, seed=1)
    for first, second in zip(all_corpora(SMALL), all_corpora(other), strict=True):
        assert build_tokenizer(WORD, (first,)).get_vocab() == build_tokenizer(WORD, (second,)).get_vocab()


@pytest.mark.parametrize("spec", [WORD, BPE])
def test_token_counts_equal_those_of_all_rows(spec: TokenizerSpec) -> None:
    for corpus in all_corpora(SMALL):
        composer = Composer.build(corpus, build_tokenizer(spec, (corpus,)))
        rows = composer.compose(np.arange(corpus.num_ids), composer.row_length)
        counts = composer.token_counts
        assert counts.mean == pytest.approx(rows.lengths.mean())
        assert counts.mean_measured == pytest.approx((rows.labels > 0).sum(axis=1).mean())
        assert (counts.longest, counts.exact) == (rows.lengths.max(), True)


@pytest.mark.parametrize("spec", [WORD, BPE])
def test_saved_tokenizers_load_as_fast_tokenizers_of_transformers(spec: TokenizerSpec, tmp_path: Path) -> None:
    for corpus in all_corpora(SMALL):
        tokenizer = build_tokenizer(spec, (corpus,))
        save_tokenizer(tokenizer, tmp_path)
        loaded = AutoTokenizer.from_pretrained(tmp_path)
        assert isinstance(loaded, PreTrainedTokenizerFast)
        for text in render_texts(corpus, np.arange(0, corpus.num_ids, 1 + corpus.num_ids // 9)):
            ids = tokenizer.encode(text).ids
            assert loaded(text)["input_ids"] == load_tokenizer(tmp_path).encode(text).ids == ids
            assert loaded.decode(ids).strip() == text
        assert (loaded.eos_token, loaded.pad_token) == (END, END)
        assert len(loaded) <= num_embeddings(spec, tokenizer)


def test_training_bpe_is_deterministic() -> None:
    corpus = Questions(SMALL, 1)
    assert build_tokenizer(BPE, (corpus,)).to_str() == build_tokenizer(BPE, (corpus,)).to_str()
