"""Check that tokenizing texts gives the tokens that models are trained on, and that these decode to the text.

Rows of tokens are composed from tokenized pieces. With a tokenizer that raycap builds, and generated names and values, they
equal the tokens of the whole text by construction. A pretrained tokenizer may join tokens across the boundaries of pieces,
or change letters. With loaded names and values, rows may differ for every tokenizer: the word tokenizer splits texts by
patterns, so an employer that reads like a date is split like a date, and byte-level BPE may merge punctuation across the
boundary of two pieces. An exported model would then get other tokens from its tokenizer than those that it was trained on.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from tokenizers import Encoding, Tokenizer, models, pre_tokenizers

from raycap.facts.corpus import END, Corpus, Ids, TrainedIds, render_texts
from raycap.facts.profiles import NO_VALUE, Profiles, census_schema
from raycap.facts.questions import Questions
from raycap.facts.relations import NO_PERSON
from raycap.spec import Kind, NamePools
from raycap.tokens.composer import Composer

MAX_TEXTS = 5_000
"""Number of training texts of each corpus that are checked, beside one for every part of a name and every value."""
BATCH_SIZE = 4_096


class _Fact(NamedTuple):
    """A value or name of one person, with its column, and the subject of a question that shows it."""

    column: str
    value: str
    person: int
    subject: int
    row: int
    """Row of the value in the column: that of `person`, or of the person that the fact leads to."""


class _Altered(NamedTuple):
    """A text whose tokens are not those of the composed row, or do not decode to the text."""

    position: int
    """Position of the text among those that were checked."""
    text: str
    encoding: Encoding | None
    """None if the text contains a word that the tokenizer lacks."""
    decoded: str

    def keeps(self, value: str) -> bool:
        """Whether a token ends where a value or name ends, in the text and in the decoded text."""
        end = self.text.rfind(f" {value}") + len(value) + 1
        ends = {end for _, end in self.encoding.offsets} if self.encoding else set()
        return end in ends and f" {value}" in self.decoded


def check_texts(composer: Composer, tokenizer: Tokenizer) -> None:
    """Check the texts of one corpus.

    Raises ValueError with column, row and value, or with the text, if the tokens of a text differ from those of its row or
    do not decode to the text.
    """
    corpus, profiles = composer.corpus, composer.corpus.profiles
    has_facts = corpus.kind is not Kind.NAME
    is_word_level = isinstance(tokenizer.model, models.WordLevel)
    remedy = f"change it, or set tokenizer: {{kind: {'bpe' if is_word_level else 'word'}}}"
    if has_facts and is_word_level:
        _refuse_values_that_are_names(profiles, remedy)
    facts = _facts(profiles, has_facts=has_facts)
    # For questions of several hops, the one-hop questions contain every name and value.
    short = Questions(profiles, 1) if isinstance(corpus, Questions) else corpus
    ids = np.array([_text_about(short, fact) for fact in facts], np.int64)
    for altered in _altered(composer if short is corpus else Composer.build(short, tokenizer), ids, tokenizer):
        fact = _altered_fact(profiles, facts[altered.position], altered, tokenizer)
        raise ValueError(
            f"column {fact.column}, row {fact.row}: the tokenizer does not keep {fact.value!r} apart from the text around "
            f"it, {altered.text!r}, or does not decode it unchanged; {remedy}"
        )
    trained = TrainedIds(corpus)
    sample = np.unique(np.linspace(0, len(trained) - 1, min(len(trained), MAX_TEXTS)).astype(np.int64))
    for altered in _altered(composer, trained[sample], tokenizer):
        raise ValueError(f"the tokenizer does not keep the names and values of {altered.text!r} apart; {remedy}")


def _altered_fact(profiles: Profiles, fact: _Fact, altered: _Altered, tokenizer: Tokenizer) -> _Fact:
    """Return the fact whose value is altered in a text.

    A biography contains all values of a person, so it may be another fact than the one that the text was chosen for.
    """
    row = fact.person
    others = [_Fact("name", profiles.full_name(row), row, fact.subject, row)]
    others += [
        _Fact(attribute.name, value, row, column, row)
        for column, attribute in enumerate(profiles.schema.attributes)
        if (value := profiles.attribute_value(row, column)) is not None and f" {value}" in altered.text
    ]
    parts = [part for part in altered.text.split(END) if part]
    pre_tokenizer = tokenizer.pre_tokenizer or pre_tokenizers.Sequence([])
    words = {word for part in parts for word, _ in pre_tokenizer.pre_tokenize_str(part)}
    for candidate in (fact, *others):
        if not isinstance(tokenizer.model, models.WordLevel):
            survives = altered.keeps(candidate.value)
        elif candidate.column == "name":
            survives = words >= {*candidate.value.split(" ")}
        else:
            attribute = profiles.schema.attributes[candidate.subject]
            survives = words >= {*attribute.words(candidate.value)}
            survives &= altered.encoding is None or f" {candidate.value}" in altered.decoded
        if not survives:
            return candidate
    return fact


def _refuse_values_that_are_names(profiles: Profiles, remedy: str) -> None:
    """Raise ValueError for a value that is the full name of a person.

    The word tokenizer has one word for a value and one for each part of a name. In an answer, where both may occur, it
    could not decide how to split this text.
    """
    if not profiles.schema.relations:
        return
    names = (profiles.full_name(person) for person in range(profiles.num_profiles))
    row_of = {name: person for person, name in enumerate(names) if " " in name}
    for column, attribute in enumerate(profiles.schema.attributes):
        for value in profiles.used_values[column].tolist():
            if (named := row_of.get(attribute.values[value])) is not None:
                row = int((profiles.attributes[:, column] == value).argmax())
                raise ValueError(
                    f"column {attribute.name}, row {row}: {attribute.values[value]!r} is the full name of the person in "
                    f"row {named}, so the word tokenizer cannot distinguish them; {remedy}"
                )


def _facts(profiles: Profiles, *, has_facts: bool) -> list[_Fact]:
    """Return facts that together contain every value and every part of a name that is not from raycap's lists.

    A part of a name is contained in the name of a person that a question asks about, and in an answer.
    """
    schema, facts = profiles.schema, []
    lists = {attribute.name: attribute for attribute in census_schema(NamePools(), 0).attributes}
    if has_facts:
        for column, attribute in enumerate(schema.attributes):
            known = lists.get(attribute.name)
            if attribute.are_dates or (known is not None and attribute.values == known.values):
                continue
            values, rows = np.unique(profiles.attributes[:, column], return_index=True)
            for value, row in zip(values.tolist(), rows.tolist(), strict=True):
                if value == NO_VALUE:
                    continue
                facts.append(_Fact(attribute.name, attribute.values[value], row, column, row))
    if schema.num_loaded_names is None:
        return facts
    people = np.unique(np.concatenate([np.unique(part, return_index=True)[1] for part in profiles.names.T])).tolist()
    for person in people:
        asked = np.flatnonzero(profiles.answers[person] != NO_PERSON)  # empty for a person without facts
        facts += [_Fact("name", profiles.full_name(person), person, subject, person) for subject in asked[:1].tolist()]
    if has_facts and schema.relations:
        named, (targets, first) = set(people), np.unique(profiles.relations.reshape(-1), return_index=True)
        for target, index in zip(targets.tolist(), first.tolist(), strict=True):
            if target in named:  # NO_PERSON is not
                person, relation = divmod(index, len(schema.relations))
                facts.append(
                    _Fact("name", profiles.full_name(target), person, len(schema.attributes) + relation, target)
                )
    return facts


def _text_about(corpus: Corpus, fact: _Fact) -> int:
    """Return the id of a text of a corpus that contains a fact."""
    if isinstance(corpus, Questions):
        return fact.person * len(corpus.profiles.schema.subjects) + fact.subject
    return fact.person * (corpus.num_ids // corpus.profiles.num_profiles)


def _altered(composer: Composer, ids: Ids, tokenizer: Tokenizer) -> Iterator[_Altered]:
    """Yield the texts whose tokens are not those of the composed row, or do not decode to the text."""
    for begin in range(0, len(ids), BATCH_SIZE):
        batch = ids[begin : begin + BATCH_SIZE]
        texts, rows = render_texts(composer.corpus, batch), composer.compose(batch, composer.row_length)
        encodings = [_encode(text, tokenizer) for text in texts]
        decoded = tokenizer.decode_batch([each.ids if each else [] for each in encodings], skip_special_tokens=False)
        composed = [row[:length].tolist() for row, length in zip(rows.input_ids, rows.lengths.tolist(), strict=True)]
        for index, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if encoding is None or encoding.ids != composed[index] or decoded[index] != text:
                yield _Altered(begin + index, text, encoding, decoded[index])


def _encode(text: str, tokenizer: Tokenizer) -> Encoding | None:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # for words that are not in the vocabulary, the library raises no more specific type
        return None
