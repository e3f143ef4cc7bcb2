"""All texts of a trial in a folder: every text once, in its split, and readable by `datasets`."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from raycap.cli import app
from raycap.export.texts import save_texts
from raycap.facts.build import corpora_of, profiles_of
from raycap.facts.corpus import END, SPLITS, TRAIN, Corpus, render_texts, trained_mask
from raycap.spec import Biographies, HeldOut, QuestionsByShare, QuestionsSpec
from tests.support.specs import GOOD
from tests.support.tiny import TINY

QUESTIONS = QuestionsByShare(hops=(1, 2), chain_of_thought=True, held_out=HeldOut(first_people=0.2, tuples=0.1))
BIOGRAPHIES = Biographies(kind="biographies", per_person=2, permute=True)


def expected(corpus: Corpus) -> dict[str, set[tuple[int, str]]]:
    """Return (id, text without end tokens) by split."""
    codes = corpus.split_codes
    codes = (
        np.full(corpus.num_ids, TRAIN) if codes is None else np.where(trained_mask(corpus.kind, codes), TRAIN, codes)
    )
    found: dict[str, set[tuple[int, str]]] = {}
    for code in np.unique(codes).tolist():
        ids = np.flatnonzero(codes == code)
        texts = [text.replace(END, "") for text in render_texts(corpus, ids)]
        found[str(SPLITS[code])] = set(zip(ids.tolist(), texts, strict=True))
    return found


@pytest.mark.parametrize("questions", [QUESTIONS, BIOGRAPHIES], ids=["questions", "biographies"])
def test_every_text_is_written_once_in_its_split(tmp_path: Path, questions: QuestionsSpec) -> None:
    spec = TINY.model_copy(update={"questions": questions})
    counts = save_texts(spec, tmp_path / "texts", description="made by a test")
    for corpus in corpora_of(profiles_of(spec.profiles), questions):
        for split, texts in expected(corpus).items():
            lines = (tmp_path / "texts" / corpus.kind / f"{split}.jsonl").read_text().splitlines()
            rows = [json.loads(line) for line in lines]
            assert len(rows) == len(texts) == counts[corpus.kind, split]
            assert {(row["id"], row["prompt"] + row["completion"]) for row in rows} == texts
            if questions is QUESTIONS:
                assert all(row["prompt"].endswith("Answer:") and row["completion"] for row in rows)
    files = {str(path.relative_to(tmp_path / "texts")) for path in (tmp_path / "texts").rglob("*.*")}
    assert files == {"README.md", *(f"{kind}/{split}.jsonl" for kind, split in counts)}


def test_the_folder_is_a_dataset_with_a_configuration_per_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import get_dataset_config_names, load_dataset

    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.yaml").write_text(GOOD)
    arguments = ["texts", "good.yaml", "trial.questions={hops: [1, 2], held_out: {first_people: 0.5}}", "--to", "texts"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    assert get_dataset_config_names(str(tmp_path / "texts")) == ["one_hop", "two_hop"]
    found = load_dataset(str(tmp_path / "texts"), "two_hop", cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in found.items()} == {"train": 1600, "first_people": 1600}
    assert CliRunner().invoke(app, arguments).exception.problems
    assert CliRunner().invoke(app, [*arguments, "--force"]).exit_code == 0
