"""Loaded names and values stay distinct in tokens and texts, or are refused with column, row and value."""

import itertools

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from raycap.facts.biographies import BiographyCorpus
from raycap.facts.columns import from_table
from raycap.facts.corpus import Corpus, Table, render_texts
from raycap.facts.names_corpus import NamesCorpus
from raycap.facts.profiles import Profiles
from raycap.facts.questions import Questions
from raycap.spec import Biographies, BpeTokenizer, TokenizerSpec, WordTokenizer
from raycap.tokens.composer import Composer
from raycap.tokens.text_check import check_texts
from raycap.tokens.tokenizers import build_tokenizer
from tests.support.loaded import NAMES, people, targets

WORD, BPE = WordTokenizer(), BpeTokenizer(kind="bpe", vocab_size=300)
EMPLOYER = 3
"""Index of the employer among the attributes."""


def loaded(values: list[str], names: list[str] | None = None) -> Profiles:
    """Return people with these employers, each related to the next one."""
    names = names or NAMES[: len(values)]
    next_one = targets([(row + 1) % len(names) for row in range(len(names))], names)
    table = people(len(names), name=names, parent=next_one)
    return from_table(table.set_column(table.column_names.index("employer"), "employer", pa.array(values)))


def corpora(profiles: Profiles) -> list[Corpus]:
    return [
        Questions(profiles, 1),
        Questions(profiles, 2),
        Questions(profiles, 2, chain_of_thought=True),
        BiographyCorpus(profiles, Biographies(kind="biographies", per_person=2, permute=True)),
    ]


def checked(corpus: Corpus, spec: TokenizerSpec) -> tuple[Composer, Tokenizer]:
    tokenizer = build_tokenizer(spec, (corpus,))
    composer = Composer.build(corpus, tokenizer)
    check_texts(composer, tokenizer)
    return composer, tokenizer


def tokens_of(composer: Composer, table: Table) -> list[tuple[int, ...]]:
    """Return the tokens of the pieces of a table."""
    pieces = composer.tables[table]
    return [tuple(row[:n]) for row, n in zip(pieces.cells["token"].tolist(), pieces.lengths.tolist(), strict=True)][:-1]


TWINS = [
    ("Acme", "Acme "),
    ("Acme", " Acme"),
    ("Acme Ltd", "Acme  Ltd"),
    ("Acme Ltd", "Acme\u00a0Ltd"),
    ("Acme", "acme"),
    ("Caf\u00e9", "Cafe\u0301"),
    ("Acme", "Ac\u200bme"),
    ("Acme", "\u202eAcme"),
    ("Acme", "Acme\u2060"),
    ("Acme", "Acme\n"),
    ("Acme", "Acme\t"),
    ("Acme", "\ufeffAcme"),
    ("\u212b", "\u00c5"),
    ("A", "A\0"),
    ("A;B", "A; B"),
    ("?", "Acme"),
]


@pytest.mark.parametrize("spec", [WORD, BPE], ids=["word", "bpe"])
@pytest.mark.parametrize("twins", TWINS, ids=repr)
def test_similar_values_have_different_tokens(twins: tuple[str, str], spec: TokenizerSpec) -> None:
    profiles = loaded([*twins * 3])
    assert len(profiles.used_values[EMPLOYER]) == 2
    assert profiles.facts.attribute_entropies_bits["employer"] == pytest.approx(1)
    composer, tokenizer = checked(Questions(profiles, 1), spec)
    assert len(set(tokens_of(composer, Table.ANSWER))) == len(tokens_of(composer, Table.ANSWER))
    ids = np.array([EMPLOYER, 5 + EMPLOYER])  # of the first two of five subjects each
    assert [text.partition("Answer: ")[2] for text in render_texts(composer.corpus, ids)] == [
        f"{t}<|end|>" for t in twins
    ]
    decoded = tokenizer.decode_batch([tokenizer.encode(text).ids for text in render_texts(composer.corpus, ids)], False)
    assert decoded == render_texts(composer.corpus, ids)


@pytest.mark.parametrize("spec", [WORD, BPE], ids=["word", "bpe"])
@pytest.mark.parametrize(
    "middle", ["Lee\u00a0", "\u00a0Lee", "lee", "Le\u0301e", "L\u200bee", "\u202eLee", "Lee\u2028", "Lee\x1c"]
)
def test_similar_names_have_different_tokens(middle: str, spec: TokenizerSpec) -> None:
    names = ["Ann Lee Poe", f"Ann {middle} Poe", "Bob Lee Poe"]
    try:
        composer, _ = checked(Questions(loaded(["Acme"] * 3, names), 1), spec)
    except ValueError as error:  # BPE cannot keep a space apart that ends a name part
        assert spec is BPE
        assert "column name, row 1: " in str(error)
        return
    assert len(set(tokens_of(composer, Table.NAME))) == 3


@pytest.mark.parametrize("value", ["1999-01-01", "-05", ";", NAMES[2]])
def test_values_that_the_word_tokenizer_mistakes_are_refused(value: str) -> None:
    profiles = loaded(["Acme", value, "Bolt", "Bolt"])
    for corpus in corpora(profiles):
        with pytest.raises(ValueError, match="column employer, row 1: ") as caught:
            checked(corpus, WORD)
        assert repr(value) in str(caught.value)
        assert "bpe" in str(caught.value)
        if value != ";" or not isinstance(corpus, BiographyCorpus):  # BPE joins ";" and the full stop after it
            checked(corpus, BPE)
    checked(NamesCorpus(profiles), WORD)  # which has no employers


odd = st.text(
    st.sampled_from(" aA.;?'\u00a0\u200b\u202e\u0301\t-1") | st.characters(codec="utf-8"), min_size=1, max_size=5
)
part = st.text(st.sampled_from("aA'.;?\u00a0\u200b\u0301-1"), min_size=1, max_size=3)
name = st.tuples(part, part, part).map(lambda parts: " ".join(parts) + "x")


@pytest.mark.parametrize("spec", [WORD, BPE], ids=["word", "bpe"])
@settings(max_examples=10, deadline=None)
@given(
    values=st.lists(odd, min_size=1, max_size=4, unique=True), names=st.lists(name, min_size=4, max_size=4, unique=True)
)
@example(values=["a", "a "], names=["A a bx", "A a\u00a0 bx", "a a bx", "' ; ?x"])
def test_texts_are_tokenized_one_to_one_or_refused(spec: TokenizerSpec, values: list[str], names: list[str]) -> None:
    every = list(itertools.islice(itertools.cycle(values), len(names)))
    try:
        profiles = loaded(every, names)
    except ValueError as error:
        assert any(f"column {column}, row" in str(error) for column in ("name", "employer"))
        return
    for corpus in corpora(profiles):
        try:
            composer, tokenizer = checked(corpus, spec)
        except ValueError:
            continue
        texts = render_texts(corpus, np.arange(corpus.num_ids))
        rows = composer.compose(np.arange(corpus.num_ids), composer.row_length)
        composed = [tuple(row[:n].tolist()) for row, n in zip(rows.input_ids, rows.lengths, strict=True)]
        assert composed == [tuple(tokenizer.encode(text).ids) for text in texts]
        assert len(set(composed)) == len(set(texts))
        assert tokenizer.decode_batch(list(map(list, composed)), skip_special_tokens=False) == texts
