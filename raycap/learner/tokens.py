"""From questions to rows of tokens, composed from pre-tokenised pieces and never from text. No torch here.

A question is a chain of pieces, each tokenised once per population:

    "Question: What was" | " James Lee Smith" | "'s parent" | "'s employer" | "? Answer:" | " Heron Security<|end|>"

Both tokenizers split texts at the seams between pieces, so a row equals the tokens of the whole text (a property test
proves it), and the answer mask is known with the row instead of being searched for.
"""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from raycap.facts.profiles import Attribute, IntArray, Profiles
from raycap.facts.questions import (
    END,
    PROMPT_END,
    PROMPT_START,
    Questions,
    asked_person,
    num_questions,
    possessive,
    render,
    unpack,
)
from raycap.spec import TokenizerSpec, WordTokenizer

END_ID = 0
MAX_BPE_QUESTIONS = 50_000
"""BPE is trained on at most this many one-hop questions of the population."""


@dataclass(frozen=True)
class PieceTable:
    """Tokens of many pieces: `tokens` (n, longest), padded with END_ID, and `lengths` (n,)."""

    tokens: IntArray
    lengths: IntArray

    @classmethod
    def of(cls, pieces: list[list[int]]) -> "PieceTable":
        """A table of some pieces."""
        lengths = np.array([len(piece) for piece in pieces], np.int32)
        tokens = np.full((len(pieces), max(lengths, default=0)), END_ID, np.int32)
        tokens[np.arange(tokens.shape[1]) < lengths[:, None]] = [token for piece in pieces for token in piece]
        return cls(tokens, lengths)

    @cached_property
    def uniform_length(self) -> bool:
        """Whether all pieces have the same number of tokens."""
        return bool((self.lengths == self.tokens.shape[1]).all())


@dataclass(frozen=True)
class Rows:
    """Questions with their answers as tokens, one per row, padded on the right with END_ID."""

    input_ids: IntArray  # (n, length)
    answer_mask: NDArray[np.bool_]  # (n, length), true at the answer's tokens and the end token after it

    def __len__(self) -> int:
        return len(self.input_ids)

    def __getitem__(self, part: slice) -> "Rows":
        return Rows(self.input_ids[part], self.answer_mask[part])

    @classmethod
    def concatenate(cls, parts: list["Rows"]) -> "Rows":
        """Rows of one length, one after the other."""
        if len(parts) == 1:
            return parts[0]
        return cls(np.concatenate([p.input_ids for p in parts]), np.concatenate([p.answer_mask for p in parts]))


# --- tokenizers -------------------------------------------------------------------------------------------------------


def build_tokenizer(spec: TokenizerSpec, profiles: Profiles) -> Tokenizer:
    """The tokenizer of a population. The same spec and population give the same tokenizer in every process."""
    if isinstance(spec, WordTokenizer):
        return _word_tokenizer(profiles)
    return _bpe_tokenizer(profiles, spec.vocab_size)


def num_embeddings(spec: TokenizerSpec, tokenizer: Tokenizer) -> int:
    """Rows of the embedding: every word, or the declared vocabulary of a BPE (which a small population may not fill)."""
    return tokenizer.get_vocab_size() if isinstance(spec, WordTokenizer) else spec.vocab_size


def value_words(attribute: Attribute, value: str) -> tuple[str, ...]:
    """The word tokens of an attribute's value: the whole value, but year, month and day of a date.

    A word per date would make 67,200 tokens, or, if only dates that occur had one, tell the model which do.
    """
    return (value[:4], value[4:7], value[7:]) if attribute.name == "birth_date" else (value,)


def _word_tokenizer(profiles: Profiles) -> Tokenizer:
    schema = profiles.schema
    subjects = [possessive(subject) for subject in schema.subjects]
    values = {
        word for attribute in schema.attributes for value in attribute.values for word in value_words(attribute, value)
    }
    names = {part for pool in schema.name_pools for part in pool}
    vocabulary = [END, PROMPT_START, PROMPT_END, *subjects, *sorted(values | names)]

    def any_of(literals: set[str] | list[str]) -> str:
        return "|".join(re.escape(literal) for literal in sorted(literals, key=lambda text: (-len(text), text)))

    plain_word = re.compile(r"[^\s?']+")
    odd_values = {value for value in values if not plain_word.fullmatch(value)}
    odd_names = {name for name in names if not plain_word.fullmatch(name)}
    alternatives = [
        rf"\A{re.escape(PROMPT_START)}(?= )",
        re.escape(PROMPT_END),
        rf"(?:{any_of(subjects)})(?=[?'])",
        *([rf"(?<={re.escape(PROMPT_END)} )(?:{any_of(odd_values)})\z"] if odd_values else []),
        r"[0-9]{4}(?=-[0-9]{2}-[0-9]{2})",
        r"-[0-9]{2}",
        *([rf"(?:{any_of(odd_names)})(?= |'s |\z)"] if odd_names else []),
        plain_word.pattern,
    ]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(dict.fromkeys(vocabulary))}))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(alternatives)), behavior="removed", invert=True)
    no_space_before = [decoders.Replace(f" {text}", text) for text in ("'s ", "? ", "-", END)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(r"\A"), " "), *no_space_before, decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _bpe_tokenizer(profiles: Profiles, vocab_size: int) -> Tokenizer:
    total = num_questions(profiles, 1)
    ids = np.linspace(0, total - 1, min(total, MAX_BPE_QUESTIONS)).astype(np.int64)
    texts = [prompt + answer for prompt, answer in render(profiles, unpack(profiles, 1, ids))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files from which transformers' AutoTokenizer makes a PreTrainedTokenizerFast."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END,
        "pad_token": END,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


# --- composing rows ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Composer:
    """Makes rows from questions about one population. Plain arrays, cheap to send to another process."""

    profiles: Profiles
    start: PieceTable
    names: PieceTable
    subjects: PieceTable
    prompt_end: PieceTable
    answers: PieceTable
    """Every answer that occurs, with its end token."""
    answer_of: IntArray
    """(N, subjects): the row of `answers` that answers each one-hop question."""

    @classmethod
    def build(cls, profiles: Profiles, tokenizer: Tokenizer) -> "Composer":
        """Tokenise every piece of a population once."""
        schema = profiles.schema
        vocabulary = tokenizer.get_vocab()
        whole_words = isinstance(tokenizer.model, models.WordLevel)

        def encode(pieces: list[tuple[str, ...]]) -> list[list[int]]:
            """Each piece given as its words; BPE sees them with the spaces that stand between and before them."""
            if whole_words:
                return [[vocabulary[word] for word in words] for words in pieces]
            texts = ["".join(words) for words in pieces]
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

        space = "" if whole_words else " "
        parts, people = _used_parts(profiles)
        part_ids = [encode([(space + part,) for part in pool]) for pool in parts]
        names = [
            [token for table, index in zip(part_ids, person, strict=True) for token in table[index]]
            for person in people.tolist()
        ]
        answers, answer_of = [[*name, END_ID] for name in names], [profiles.relations]
        for attribute, column in zip(schema.attributes, profiles.attributes.T, strict=True):
            used, which = np.unique(column, return_inverse=True)  # there are 67,200 dates, and few of them occur
            values = [attribute.values[index] for index in used]
            pieces = encode([value_words(attribute, value) if whole_words else (f" {value}",) for value in values])
            answer_of.insert(-1, (len(answers) + which[:, None]).astype(np.int32))
            answers += [[*piece, END_ID] for piece in pieces]
        return cls(
            profiles=profiles,
            start=PieceTable.of(encode([(PROMPT_START,)])),
            names=PieceTable.of(names),
            subjects=PieceTable.of(encode([(possessive(subject),) for subject in schema.subjects])),
            prompt_end=PieceTable.of(encode([(PROMPT_END,)])),
            answers=PieceTable.of(answers),
            answer_of=np.concatenate(answer_of, axis=1),
        )

    def row_length(self, hops: int) -> int:
        """Tokens in the longest possible row of a number of hops."""
        tables = [self.start, self.names, *[self.subjects] * hops, self.prompt_end, self.answers]
        return sum(table.tokens.shape[1] for table in tables)

    def compose(self, questions: Questions, length: int) -> Rows:
        """Rows of shape (n, length); length is at least row_length(questions.hops)."""
        num_attributes = len(self.profiles.schema.attributes)
        zeros = np.zeros(len(questions.person), np.int32)
        pieces = [(self.start, zeros), (self.names, questions.person)]
        pieces += [(self.subjects, num_attributes + relation) for relation in questions.relations.T]
        pieces += [(self.subjects, questions.subject), (self.prompt_end, zeros)]
        answer = self.answer_of[asked_person(self.profiles, questions), questions.subject]

        input_ids = np.full((len(zeros), length), END_ID, np.int32)
        cursor: int | IntArray = 0  # where the next piece goes; one number as long as it is the same in every row
        for table, index in [*pieces, (self.answers, answer)]:
            answer_start = cursor
            cursor = _put(input_ids, cursor, table, index)
        columns = np.arange(length, dtype=np.int32)
        starts, ends = (np.broadcast_to(at, len(zeros))[:, None] for at in (answer_start, cursor))
        return Rows(input_ids, (columns >= starts) & (columns < ends))

    def mean_tokens(self, hops: int) -> tuple[float, float]:
        """Mean number of tokens, and of answer tokens (end token included), over all questions of a number of hops."""
        num_attributes, relations = len(self.profiles.schema.attributes), self.profiles.relations
        asked = np.full(self.profiles.num_profiles, 1.0)  # how many chains of relations end at each person
        for _ in range(hops - 1):
            asked = np.bincount(relations.ravel(), np.repeat(asked, relations.shape[1]), minlength=len(asked))
        answer_lengths = self.answers.lengths[self.answer_of].mean(axis=1)
        mean_answer = float((answer_lengths * asked).sum() / asked.sum())
        mean_relation = self.subjects.lengths[num_attributes:].mean() * (hops - 1) if hops > 1 else 0.0
        fixed = (
            self.start.lengths[0]
            + self.prompt_end.lengths[0]
            + self.subjects.lengths.mean()
            + self.names.lengths.mean()
        )
        return float(fixed + mean_relation) + mean_answer, mean_answer


def _used_parts(profiles: Profiles) -> tuple[list[list[str]], IntArray]:
    """The name parts that occur, per pool, and each person's indices into them; census pools are far larger."""
    used, columns = [], []
    for position, pool in enumerate(profiles.schema.name_pools):
        seen, column = np.unique(profiles.names[:, position], return_inverse=True)
        used.append([pool[index] for index in seen])
        columns.append(column)
    return used, np.stack(columns, axis=1).astype(np.int32)


def _put(input_ids: IntArray, cursor: int | IntArray, table: PieceTable, index: IntArray) -> int | IntArray:
    """Write one piece per row at the cursor; returns where each row goes on."""
    width = table.tokens.shape[1]
    tokens = table.tokens[index]
    if isinstance(cursor, int):
        input_ids[:, cursor : cursor + width] = tokens
        return cursor + width if table.uniform_length else cursor + table.lengths[index]
    rows = np.arange(len(input_ids))
    for column in range(width):  # padding written past a short piece is overwritten by the next one
        input_ids[rows, cursor + column] = tokens[:, column]
    return cursor + table.lengths[index]
