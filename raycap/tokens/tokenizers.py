"""Tokenizers of a population: word-level with a fixed vocabulary, byte-level BPE trained on the texts, or existing ones."""

import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from raycap.facts.corpus import END, Corpus, TrainedIds, render_texts
from raycap.facts.questions import CHAIN_LINK, Questions
from raycap.facts.wordings import ANSWER, PROMPT_END, QUESTION
from raycap.spec import BpeTokenizer, Kind, PretrainedTokenizer, TokenizerSpec, WordTokenizer
from raycap.tokens.pretrained import load_pretrained_tokenizer

END_ID = 0
"""Token id of the end token. Padding uses the same id."""
MAX_BPE_TEXTS = 50_000
"""Largest number of texts that BPE is trained on."""


def build_tokenizer(spec: TokenizerSpec, corpora: tuple[Corpus, ...]) -> Tokenizer:
    """Return the tokenizer for the corpora about one population. It is a deterministic function of the arguments."""
    if isinstance(spec, WordTokenizer):
        return _word_tokenizer(corpora)
    if isinstance(spec, PretrainedTokenizer):
        return load_pretrained_tokenizer(spec)
    return _bpe_tokenizer(corpora, spec.vocab_size)


def num_embeddings(spec: TokenizerSpec, tokenizer: Tokenizer) -> int:
    """Return the number of rows of the embedding.

    It is the size of the vocabulary. For BPE it is the declared vocab_size, even if training on a small population yields
    fewer tokens.
    """
    return spec.vocab_size if isinstance(spec, BpeTokenizer) else tokenizer.get_vocab_size()


def fixed_texts(corpora: tuple[Corpus, ...]) -> tuple[str, ...]:
    """Return the distinct fixed texts of some corpora. The first is the end token."""
    return tuple(dict.fromkeys(text for corpus in corpora for text in corpus.texts))


def _word_tokenizer(corpora: tuple[Corpus, ...]) -> Tokenizer:
    """Return a word-level tokenizer whose words are the fixed texts, subjects, attribute values and name parts."""
    profiles = corpora[0].profiles
    schema = profiles.schema
    has_facts = {corpus.kind for corpus in corpora} != {Kind.NAME}  # names alone need no words for subjects and values
    attributes = schema.attributes if has_facts else ()
    subjects = [schema.wording(subject).possessive for subject in schema.subjects] if has_facts else []
    values = {word for attribute in attributes for value in attribute.values for word in attribute.words(value)}
    names = {part for pool in set(schema.name_pools) for part in pool if part}
    texts = [text.strip() for text in fixed_texts(corpora)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*texts, *subjects, *sorted(values | names)]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    reworded = any(wording.questions for wording in schema.wordings.values())
    pattern = _word_pattern(fixed_texts(corpora), subjects, values, names, reworded=reworded)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    # Decoding joins words by spaces, except before words that attach to the preceding one.
    attached = rf"'s |\? |-[0-9]{{2}}\z|[.;]\z|{re.escape(END)}"
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(rf"\A(?!{attached})"), " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _word_pattern(
    texts: tuple[str, ...], subjects: list[str], values: set[str], names: set[str], *, reworded: bool
) -> str:
    """Return a regular expression that matches one word at a time.

    Words that contain spaces or punctuation are only matched in the context in which they occur in texts, so that they
    are not mistaken for a part of a name. `reworded` states whether some questions have another wording than the default.
    """

    def any_of(literals: set[str] | list[str]) -> str:
        # Longest first, so that a literal is not matched where a longer one that begins with it would match.
        return "|".join(re.escape(literal) for literal in sorted(literals, key=lambda text: (-len(text), text)))

    plain_word = re.compile(r"[^\s?'.;]+")
    special_values = {value for value in values if not plain_word.fullmatch(value)}  # such as "New York"
    special_names = {name for name in names if not plain_word.fullmatch(name)}
    ends = list(dict.fromkeys([PROMPT_END, *(text.strip() for text in texts if text.endswith(ANSWER))]))
    others = [text for text in texts if not text.endswith(ANSWER)]
    starts = [text for text in others if text.startswith(QUESTION) or text.endswith(":")]
    starts += [text for text in others if text not in starts and text[0] != " " and text[-1].isalpha()]
    leads = [text.strip() for text in others if text.startswith(" ")]
    before_values = [*(f"{end} " for end in ends), f"{CHAIN_LINK} ", *(f" {lead} " for lead in leads)]
    # In the default wording, names are never followed by "?", and possessives never by a space.
    after_subjects, after_names = ("[?' ]", r" |\?|'s |;|\.|\z") if reworded else ("[?']", r" |'s |;|\.|\z")
    # The first alternative that matches wins, so they are ordered from specific to general.
    alternatives = [
        *([rf"\A(?:{any_of(starts)})(?= )"] if starts else []),  # "Question: What was" at the beginning
        any_of(ends),
        *([rf"(?:{any_of(subjects)})(?={after_subjects})"] if subjects else []),
        *([rf"(?<={any_of(before_values)})(?:{any_of(special_values)})(?=\.|\z)"] if special_values else []),
        *([rf"(?<= )(?:{any_of(leads)})(?= )"] if leads else []),
        r"[0-9]{4}(?=-[0-9]{2}-[0-9]{2})",  # year of a date
        r"-[0-9]{2}",  # month or day of a date
        *([rf"(?:{any_of(special_names)})(?={after_names})"] if special_names else []),
        r"[.;](?= |\z)",  # punctuation, but not in the middle of a word
        plain_word.pattern,
    ]
    return "|".join(alternatives)


def _bpe_tokenizer(corpora: tuple[Corpus, ...], vocab_size: int) -> Tokenizer:
    """Return a byte-level BPE tokenizer that is trained on the texts of the first corpus.

    For questions it is trained on the one-hop questions, so that it does not depend on the numbers of hops.
    """
    corpus: Corpus = corpora[0]
    if isinstance(corpus, Questions):
        corpus = Questions(corpus.profiles, 1)
    trained = TrainedIds(corpus)
    ids = trained[np.linspace(0, len(trained) - 1, min(len(trained), MAX_BPE_TEXTS)).astype(np.int64)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (text.replace(END, "") for text in render_texts(corpus, ids)),
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    return tokenizer


def first_tokens(tokenizer: Tokenizer, words: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the first token of each word as it occurs inside texts, after a space unless it is attached."""
    vocabulary = tokenizer.get_vocab()
    if isinstance(tokenizer.model, models.WordLevel):
        return np.array([vocabulary[word] for word in words])
    texts = [word if word[0] in "'-" else f" {word}" for word in words]
    return np.array([each.ids[0] for each in tokenizer.encode_batch_fast(texts, add_special_tokens=False)])


TOKENIZER_SETTINGS = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "eos_token": END,
    "pad_token": END,
    "clean_up_tokenization_spaces": False,
    "model_input_names": ["input_ids", "attention_mask"],
}
"""Content of the tokenizer_config.json of a saved model."""


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the files that `transformers.AutoTokenizer.from_pretrained` loads as a PreTrainedTokenizerFast."""
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(TOKENIZER_SETTINGS, indent=2))


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load a tokenizer that was saved by save_tokenizer. Raises ValueError if the file is not a tokenizer."""
    try:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the library raises no more specific type
        raise ValueError(
            f"tokenizer.json of the model cannot be used: {error}; restore the files of the model"
        ) from error
