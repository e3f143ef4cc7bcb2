"""An optimizer, a schedule and a corpus of the user's own module: equal to raycap's, or refused if they do not fit."""

import os
import re
import sys
from pathlib import Path

import pytest

import raycap
from raycap.results import TrialResult
from raycap.spec import TrialSpec
from raycap.spec.document import SpecError
from raycap.spec.file import load_sweep
from tests.support.tiny import TINY

ROOT = Path(__file__).parents[1]
MODULE = """\
import torch
from raycap.facts.biographies import BiographyCorpus
from raycap.spec import Biographies

def adamw(groups, betas):
    return torch.optim.AdamW(groups, betas=betas, fused=True)

def linear(step, num_steps):
    return 1 - step / num_steps

def biographies(profiles, per_person, seed):
    return BiographyCorpus(profiles, Biographies(kind="biographies", per_person=per_person, seed=seed))

def negative(step, num_steps):
    return -1.0

def nothing(groups):
    return None

number = 3
"""
SPEC = """\
name: own
trial:
  questions: {kind: custom, function: own_parts:biographies, per_person: 2, options: {seed: 1}}
  training:
    optimizer:
      kind: custom
      function: own_parts:adamw
      options: {betas: [0.9, 0.99]}
      schedule: {function: own_parts:linear}
      warmup_steps: 0
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the module `own_parts` and a spec that uses it."""
    (tmp_path / "own_parts.py").write_text(MODULE)
    (tmp_path / "spec.yaml").write_text(SPEC)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    return tmp_path


def trained(questions: dict, optimizer: dict) -> TrialResult:
    training = {"length": {"steps": 8}, "batch_size": 16, "num_evaluations": 2, "optimizer": optimizer}
    tree = TINY.model_dump(mode="json", include={"profiles", "model"}) | {"questions": questions, "training": training}
    return raycap.run_trial(tree)


def test_own_parts_that_repeat_those_of_raycap_give_the_same_losses(folder: Path) -> None:
    rates = {"lr": 0.01, "warmup_steps": 0}
    ours = trained({"kind": "biographies", "per_person": 2, "seed": 1}, rates)
    tree = load_sweep("spec.yaml").points[0].trial.model_dump(mode="json")
    own = trained(tree["questions"], tree["training"]["optimizer"] | rates)
    assert [each.losses for each in own.evaluations] == [each.losses for each in ours.evaluations]
    assert own.trial_id != ours.trial_id


def test_the_example_of_the_manual_runs(folder: Path) -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    section = page[page.index("### Your own code") : page.index("### A corpus")]
    code, spec = (re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)[1] for kind in ("python", "yaml"))
    (folder / "own.py").write_text(code)
    (folder / "example.yaml").write_text(spec)
    trial = load_sweep("example.yaml").points[0].trial
    assert [each.function for each in trial.user_code] == ["own:Records", "own:Lion", "own:inverse_root"]
    tree = trial.model_dump(mode="json", include={"questions"})
    optimizer = trial.training.optimizer.model_dump(mode="json") | {"warmup_steps": 0, "lr": 0.01}
    result = trained(tree["questions"], optimizer)
    first, last = (each.losses.rows for each in (result.evaluations[0], result.final))
    assert sum(row.sum_bits for row in last) < sum(row.sum_bits for row in first)

    (folder / "own.py").write_text(code.replace('f" {subject}"', 'f"; {subject}"'))  # not a word before a value
    few = "trial.profiles={num_profiles: 20, names: {first: 8, middle: 8, last: 8}}"
    with pytest.raises(SpecError, match="; birth date"):
        _ = raycap.Sweep.from_yaml("example.yaml", few).trials


def test_the_source_is_part_of_the_identity_and_its_place_is_not_needed_to_read_it(folder: Path) -> None:
    def planned() -> TrialSpec:
        return load_sweep("spec.yaml").points[0].trial

    before = planned()
    assert planned().trial_id == before.trial_id
    again = TrialSpec.model_validate_json(before.model_dump_json())  # as for a stored record, without an import
    assert again == before
    (folder / "own_parts.py").write_text(MODULE.replace("number = 3", "number = 4"))  # of the same size
    changed = planned()
    assert changed.trial_id != before.trial_id
    assert changed.questions.load().__globals__["number"] == 4
    with pytest.raises(ValueError, match="own_parts:biographies"):
        before.questions.load()
    (folder / "own_parts.py").unlink()
    assert TrialSpec.model_validate_json(changed.model_dump_json()) == changed


@pytest.mark.parametrize(
    ("before", "after", "line", "field", "quoted"),
    [
        ("own_parts:adamw", "own_missing:adamw", 7, "training.optimizer.function", "own_missing"),
        ("own_parts:adamw", "own_parts:adamv", 7, "training.optimizer.function", "adamw"),
        ("own_parts:adamw", "own_parts:number", 7, "training.optimizer.function", "3"),
        ("own_parts:adamw", "own_parts", 7, "training.optimizer.function", "own_parts"),
        ("own_parts:adamw", "own_parts:BiographyCorpus", 7, "training.optimizer.function", "raycap.facts.biographies"),
        ("betas:", "beta:", 8, "training.optimizer.options", "beta"),
        ("own_parts:linear}", "own_parts:linear, sha256: ab}", 9, "training.optimizer.schedule.sha256", "ab"),
        ("{seed: 1}", "{}", 3, "questions.options", "seed"),
        ("own_parts:biographies", "own_broken:f", 3, "questions.function", "NameError"),
    ],
)
def test_parts_that_cannot_be_used_are_refused_with_their_line(
    folder: Path, before: str, after: str, line: int, field: str, quoted: str
) -> None:
    (folder / "own_broken.py").write_text("f = unknown\n")
    assert before in SPEC
    (folder / "spec.yaml").write_text(SPEC.replace(before, after))
    with pytest.raises(SpecError) as caught:
        load_sweep("spec.yaml")
    (problem,) = caught.value.problems
    assert problem.startswith(f"spec.yaml:{line}:")
    assert f"trial.{field}: " in problem
    assert quoted in problem


def test_values_that_do_not_fit_are_refused_when_they_are_used(folder: Path) -> None:
    for optimizer in (
        {"schedule": {"function": "own_parts:negative"}, "warmup_steps": 0},
        {"kind": "custom", "function": "own_parts:nothing"},
    ):
        with pytest.raises(ValueError, match=r"training\.optimizer.*own_parts"):
            trained({}, optimizer)
    (folder / "own_parts.py").write_text(MODULE.replace("per_person=per_person", "per_person=3"))
    with pytest.raises(ValueError, match=r"questions\.function.*80.*120"):
        trained({"kind": "custom", "function": "own_parts:biographies", "per_person": 2, "options": {"seed": 0}}, {})
    assert os.getcwd() in sys.path
