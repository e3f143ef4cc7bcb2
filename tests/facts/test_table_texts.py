"""Texts about the facts of a table: wordings, phrasings, hops, chains of thought, held-out splits, and their tokens."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.facts.biographies import BiographyCorpus
from raycap.facts.build import corpora_of
from raycap.facts.corpus import VOID, render_texts
from raycap.facts.profiles import Profiles
from raycap.facts.questions import Questions
from raycap.spec import Biographies, HeldOut, QuestionsByShare, TrialSpec
from raycap.tokens.composer import Composer
from raycap.tokens.text_check import check_texts
from raycap.tokens.tokenizers import build_tokenizer
from tests.support.tables import ROWS, SPEC, WORDED, changed, load


def texts_of(profiles: Profiles, hops: int, chained: bool = False) -> Counter[str]:
    (corpus,) = corpora_of(profiles, QuestionsByShare(hops=(hops,), chain_of_thought=chained))
    codes = corpus.split_codes
    ids = np.arange(corpus.num_ids) if codes is None else np.flatnonzero(codes != VOID)
    return Counter(text.removesuffix("<|end|>").removeprefix("Question: ") for text in render_texts(corpus, ids))


def test_questions_have_every_phrasing_of_every_fact_that_exists(tmp_path: Path) -> None:
    """All questions of one and two hops are written by hand-made loops over the rows and compared as multisets."""
    profiles = load(tmp_path, subjects=WORDED)
    templates = {
        "home town": WORDED["home town"]["questions"],
        "age": ["How old was {name}?"] * 3,
        "born": ["What was {name}'s born?"] * 3,
        "none": ["What was {name}'s none?"] * 3,
        "boss": ["What was {name}'s line manager?"] * 3,
    }
    by_name = {row["who"]: row for row in ROWS}
    one, two, chained = Counter(), Counter(), Counter()
    for row in ROWS:
        for subject, phrasings in templates.items():
            for template in phrasings:
                if row[subject] is not None:
                    one[f"{template.format(name=row['who'])} Answer: {row[subject]}"] += 1
                if row["boss"] and (answer := by_name[row["boss"]][subject]) is not None:
                    question = template.format(name=f"{row['who']}'s line manager")
                    two[f"{question} Answer: {answer}"] += 1
                    chained[f"{question} Answer: {row['boss']}; {answer}"] += 1
    assert texts_of(profiles, 1) == one
    assert texts_of(profiles, 2) == two
    assert texts_of(profiles, 2, chained=True) == chained


def test_every_phrasing_of_a_held_out_question_is_held_out(tmp_path: Path) -> None:
    corpus = Questions(load(tmp_path, subjects=WORDED), 2, held_out=HeldOut(tuples=0.3, first_people=0.25))
    assert corpus.split_codes is not None
    first, *others = corpus.split_codes.reshape(3, -1)
    assert len(np.unique(first)) > 2
    assert all((first == codes).all() for codes in others)
    components = corpus.unpack(np.arange(corpus.num_ids))
    assert components.phrasing.tolist() == np.repeat(range(3), corpus.num_ids // 3).tolist()


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_tokens_decode_to_the_texts(kind: str, tmp_path: Path) -> None:
    spec = TrialSpec.model_validate_json(
        json.dumps({"tokenizer": {"kind": kind} | ({"vocab_size": 400} if kind == "bpe" else {})})
    ).tokenizer
    rows = ROWS if kind == "word" else changed(3, who="Élise de la Tour")  # BPE merges the end of "Jr.'s"
    profiles = load(tmp_path, rows=rows, subjects=WORDED)
    questions = [QuestionsByShare(hops=(1, 2, 3)), QuestionsByShare(hops=(2, 3), chain_of_thought=True)]
    for texts in (*questions, Biographies(kind="biographies", per_person=4, permute=True)):
        corpora = corpora_of(profiles, texts)
        tokenizer = build_tokenizer(spec, corpora)
        for corpus in corpora:
            check_texts(Composer.build(corpus, tokenizer), tokenizer)


def test_the_bpe_tokenizer_refuses_names_that_end_in_punctuation_by_row(tmp_path: Path) -> None:
    spec = TrialSpec.model_validate_json('{"tokenizer": {"kind": "bpe", "vocab_size": 400}}').tokenizer
    (corpus,) = corpora_of(load(tmp_path), QuestionsByShare())
    tokenizer = build_tokenizer(spec, (corpus,))
    with pytest.raises(ValueError, match=r"column name, row 3: .*Jr\..*kind: word"):
        check_texts(Composer.build(corpus, tokenizer), tokenizer)


def test_biographies_state_every_fact_once_in_the_leads_of_the_spec(tmp_path: Path) -> None:
    profiles = load(tmp_path, subjects=WORDED)
    corpus = BiographyCorpus(profiles, Biographies(kind="biographies", per_person=3))
    for number, text in enumerate(render_texts(corpus, np.arange(corpus.num_ids))):
        row = ROWS[number // 3]
        assert text.startswith(f"Biography: {row['who']} came from {row['home town']}.")
        assert (f" worked under {row['boss']}.<|end|>" in text) == (row["boss"] is not None)
        assert text.count(". They") == sum(row[s] is not None for s in ("age", "born", "none", "boss"))


@pytest.mark.parametrize(
    "subjects",
    [
        {"home town": {"questions": ["Where?? {name}?"]}, "born": {"questions": ["Where?? {name}?"]}},
        {"home town": {"phrase": "age"}},
        {"home town": {"leads": ["came"]}, "born": {"leads": ["came from"]}},
    ],
)
def test_wordings_that_do_not_determine_the_answer_are_refused(subjects: dict[str, Any], tmp_path: Path) -> None:
    profiles = load(tmp_path, subjects={**SPEC["subjects"], **subjects})
    with pytest.raises(ValueError, match=r"profiles\.subjects: "):
        corpora_of(profiles, QuestionsByShare())
