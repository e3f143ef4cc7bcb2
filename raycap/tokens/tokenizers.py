"""The tokenizers of a population: whole words known in advance, or a byte-level BPE trained on the texts. No torch here."""

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from raycap.facts.corpus import END, Corpus, TrainedIds, possessive, render
from raycap.facts.profiles import Attribute
from raycap.facts.questions import CHAIN_LINK, PROMPT_END, TEXTS, Questions
from raycap.spec import Kind, TokenizerSpec, WordTokenizer

END_ID = 0
MAX_BPE_TEXTS = 50_000
"""BPE is trained on at most this many texts of the population."""


def build_tokenizer(spec: TokenizerSpec, corpora: tuple[Corpus, ...]) -> Tokenizer:
    """The tokenizer of the corpora about one population. The same spec and corpora give the same tokenizer everywhere."""
    if isinstance(spec, WordTokenizer):
        return _word_tokenizer(corpora)
    return _bpe_tokenizer(corpora, spec.vocab_size)


def num_embeddings(spec: TokenizerSpec, tokenizer: Tokenizer) -> int:
    """Rows of the embedding: every word, or the declared vocabulary of a BPE (which a small population may not fill)."""
    return tokenizer.get_vocab_size() if isinstance(spec, WordTokenizer) else spec.vocab_size


def value_words(attribute: Attribute, value: str) -> tuple[str, ...]:
    """The word tokens of an attribute's value: the whole value, but year, month and day of a date.

    A word per date would make 67,200 tokens, or, if only dates that occur had one, tell the model which do.
    """
    return (value[:4], value[4:7], value[7:]) if attribute.name == "birth_date" else (value,)


def fixed_texts(corpora: tuple[Corpus, ...]) -> tuple[str, ...]:
    """The texts of all corpora, each once, the end token first."""
    return tuple(dict.fromkeys(text for corpus in corpora for text in corpus.texts))


def _word_tokenizer(corpora: tuple[Corpus, ...]) -> Tokenizer:
    profiles = corpora[0].profiles
    schema = profiles.schema
    told = {corpus.kind for corpus in corpora} != {Kind.NAME}  # names alone need no words for anything else
    attributes = schema.attributes if told else ()
    subjects = [possessive(subject) for subject in schema.subjects] if told else []
    values = {word for attribute in attributes for value in attribute.values for word in value_words(attribute, value)}
    names = {part for pool in set(schema.name_pools) for part in pool}
    texts = [text.strip() for text in fixed_texts(corpora)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*texts, *subjects, *sorted(values | names)]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary))
    pattern = _word_pattern(fixed_texts(corpora), subjects, values, names)
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True)
    no_space_before = [decoders.Replace(f" {text}", text) for text in ("'s ", "? ", "-", ".", ";", END)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(Regex(r"\A"), " "), *no_space_before, decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return tokenizer


def _word_pattern(texts: tuple[str, ...], subjects: list[str], values: set[str], names: set[str]) -> str:
    """A regular expression for one word at a time; words with spaces or marks in them are told by what stands around."""

    def any_of(literals: set[str] | list[str]) -> str:
        return "|".join(re.escape(literal) for literal in sorted(literals, key=lambda text: (-len(text), text)))

    plain_word = re.compile(r"[^\s?'.;]+")
    odd_values = {value for value in values if not plain_word.fullmatch(value)}
    odd_names = {name for name in names if not plain_word.fullmatch(name)}
    question, link = TEXTS[PROMPT_END], TEXTS[CHAIN_LINK]
    starts = [
        text for text in texts if (text[0] != " " and text[-1].isalpha()) or (text.endswith(":") and text != question)
    ]
    leads = [text.strip() for text in texts if text.startswith(" ")]
    before_values = [f"{question} ", f"{link} ", *(f" {lead} " for lead in leads)]
    alternatives = [
        *([rf"\A(?:{any_of(starts)})(?= )"] if starts else []),
        re.escape(question),
        *([rf"(?:{any_of(subjects)})(?=[?'])"] if subjects else []),
        *([rf"(?<={any_of(before_values)})(?:{any_of(odd_values)})(?=\.|\z)"] if odd_values else []),
        *([rf"(?<= )(?:{any_of(leads)})(?= )"] if leads else []),
        r"[0-9]{4}(?=-[0-9]{2}-[0-9]{2})",
        r"-[0-9]{2}",
        *([rf"(?:{any_of(odd_names)})(?= |'s |;|\.|\z)"] if odd_names else []),
        r"[.;](?= |\z)",
        plain_word.pattern,
    ]
    return "|".join(alternatives)


def _bpe_tokenizer(corpora: tuple[Corpus, ...], vocab_size: int) -> Tokenizer:
    """Trained on the first corpus's texts, single hops where questions are asked: the same for any number of hops."""
    corpus: Corpus = corpora[0]
    if isinstance(corpus, Questions):
        corpus = Questions(corpus.profiles, 1)
    trained = TrainedIds(corpus)
    ids = trained[np.linspace(0, len(trained) - 1, min(len(trained), MAX_BPE_TEXTS)).astype(np.int64)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        (text.replace(END, "") for text in render(corpus, ids)),
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


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read a saved tokenizer, so that a model goes on with the tokens it was trained on."""
    return Tokenizer.from_file(str(folder / "tokenizer.json"))
