"""Fuzzing of spec files: every mutant is either planned and stored, or refused with the position of every fault.

Mutants are the texts of shipped specs, reduced to a few people, with random edits and unusual overrides.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from raycap.pipeline import prepare
from raycap.results import SweepRecord
from raycap.spec.file import SpecError
from tests.support.specs import GOOD

ROOT = Path(__file__).parents[2]

SMALL_SIZES = {
    r"num_profiles: [\d_]+": "num_profiles: 300",
    r"num_profiles: \[[^]]*\]": "num_profiles: [100, 300]",
    r"num_keys: [\d_]+": "num_keys: 300",
    r"num_strings: \[[^]]*\]": "num_strings: [50, 100]",
    r"target_bits: [^,]+": "target_bits: 4e4",
    r"num_params: [\d_]+": "num_params: 85_000",
    r"num_params: \[[^]]*\]": "num_params: [85_000, 300_000]",
    r"num_layers: \[[^]]*\]": "num_layers: [4]",
    r"vocab_size: 3000": "vocab_size: 400",
}
"""Replacements that make the shipped specs small, because planning generates their people."""


def split_words(text: str) -> list[str]:
    return text.split()


def shrunk(text: str) -> str:
    for pattern, replacement in SMALL_SIZES.items():
        text = re.sub(pattern, replacement, text)
    return text


SPECS = [GOOD, *(shrunk(path.read_text()) for path in sorted((ROOT / "sweeps" / "specs").glob("*.yaml")))]
WORDS = sorted({word for text in SPECS for word in re.findall(r"[A-Za-z_]+", text)})
NUMBERS = split_words("0 1 2 3 4 5 7 8 16 40 64 0.1 0.5 0.999 2.5 1e3 1_000")
NAMES = split_words("""generate pairs strings bpe word mup muon schedule_free names hops biographies windows rows fp16
    bf16 constant plateau bipartite observed""")
UNUSUAL = split_words(r"""~ null true yes -1 -0.5 1e-300 1e30 1e300 1e400 .nan -.inf 0x10 017 1:30 2020-01-01 x '' '5'
    [] {} [1] [1,2] {a:1} [[1]] !!int !foo &a *a | >- ? << ../x / \ "\0" "\e[31m" "\ud800" """)
SECTIONS = [
    "[1, 2, 3]",
    "[0.5, 0.5]",
    "[1, 1e-300]",
    "{steps: 5}",
    "{tokens: 1e6}",
    "{exposures: 1e9}",
    "{kind: names}",
    "{kind: biographies}",
    "{kind: muon}",
    "{num_heads: 2}",
    "{head_size: 8}",
    "{min_improvement: 0.1}",
    "[{weights: [1, 0], until: {steps: 5}}]",
    "{parent: {trial_id: '0123456789ab'}, profiles: {seed: 1}}",
    "{parent: {path: nowhere}, profiles: {num_profiles: 10, seed: 1}}",
    "{source: pairs, num_keys: 10}",
]
VALUES = [*NUMBERS, *NAMES, *UNUSUAL, *SECTIONS, "", "9" * 400]
PATHS = split_words("""
    name storage tracking.uri execution.num_workers execution.replicas analysis.schemes analysis.accounting x
    trial trial.profiles trial.profiles.structure trial.profiles.num_relations trial.profiles.seed
    trial.questions trial.questions.hops trial.questions.weights trial.questions.held_out.tuples
    trial.questions.chain_of_thought trial.questions.kind trial.tokenizer.kind trial.model.heads
    trial.model.num_layers trial.model.hidden_size trial.training trial.training.length
    trial.training.length.steps trial.training.optimizer.kind trial.training.optimizer.lr
    trial.training.packing.kind trial.training.stop trial.training.curriculum trial.training.order_seed
    trial.fill trial.fill.parent.trial_id trial.fill.weights trial.fill.profiles grid grid.training.seed
    grid.model.hidden_size grid.training.batch_size grid.questions.hops grid.profiles grid.profiles.seed
    grid.training.optimizer
""")
LINES = [
    "storage: $",
    "tracking: {uri: $}",
    "tracking: {experiment: $}",
    "execution: {num_workers: $}",
    "execution: {early_stop: [$]}",
    "analysis: {accounting: observed, schemes: [$]}",
    "  fill: $",
    "  training.stop: [$]",
    "  profiles.source: [$]",
    "  profiles.num_relations: [$]",
]
MARKS = [
    *"[]{}:,-#&*!|>'\"%@`?\\\t\r\0~=<.\n ",
    *split_words("--- ... <<: \x1b[2J \u202e \ufeff \x7f"),
    "\n---\n",
    "? ",
    ": ",
    "- ",
]

Mutation = Callable[[str, st.DataObject], str]


def _replace(text: str, data: st.DataObject) -> str:
    """Replace a word or number by another."""
    words = list(re.finditer(r"[\w.+-]+", text)) or list(re.finditer("", text))
    found = data.draw(st.sampled_from(words))
    others = NUMBERS if found[0][:1].isdecimal() and data.draw(st.booleans()) else NAMES + UNUSUAL + WORDS
    return text[: found.start()] + data.draw(st.sampled_from(others)) + text[found.end() :]


def _lines(text: str, data: st.DataObject) -> str:
    """Delete, duplicate, swap, indent, dedent or insert a line."""
    lines = text.split("\n")
    one, other = (data.draw(st.integers(0, len(lines) - 1)) for _ in range(2))
    match data.draw(st.sampled_from(["delete", "duplicate", "swap", "indent", "dedent", "insert"])):
        case "delete":
            del lines[one]
        case "duplicate":
            lines.insert(other, lines[one])
        case "swap":
            lines[one], lines[other] = lines[other], lines[one]
        case "indent":
            lines[one] = "  " + lines[one]
        case "dedent":
            lines[one] = lines[one].removeprefix("  ")
        case "insert":
            lines.insert(one, data.draw(st.sampled_from(LINES)).replace("$", data.draw(st.sampled_from(VALUES))))
    return "\n".join(lines)


def _mark(text: str, data: st.DataObject) -> str:
    """Insert characters that are special to YAML or to a terminal, or any other text."""
    index = data.draw(st.integers(0, len(text)))
    return text[:index] + data.draw(st.sampled_from(MARKS) | st.text(max_size=10)) + text[index:]


def _move(text: str, data: st.DataObject) -> str:
    """Delete a part of the text or move it."""
    begin, end, target = sorted(data.draw(st.integers(0, len(text))) for _ in range(3))
    return text[:begin] + text[end:target] + data.draw(st.sampled_from(["", text[begin:end]])) + text[target:]


def _nest(text: str, data: st.DataObject) -> str:
    """Wrap a value in a list, a section or quotes."""
    values = list(re.finditer(r"(?<=: )\S[^\n]*", text)) or list(re.finditer("", text))
    found = data.draw(st.sampled_from(values))
    around = data.draw(st.sampled_from(["[{}]", "{{a: {}}}", "{{kind: {}}}", "'{}'", "[{}, {}]", "{} {}"]))
    return text[: found.start()] + around.format(found[0], found[0]) + text[found.end() :]


OVERRIDES = st.tuples(st.sampled_from(PATHS), st.sampled_from(VALUES)).map("=".join) | st.text(max_size=20)
MUTATIONS: list[Mutation] = [_replace, _replace, _replace, _lines, _lines, _mark, _move, _nest]


def fuzz(num: int, folder: Path) -> Counter[str]:
    """Plan `num` mutants and return how many are planned, refused, and refused although they are valid YAML
    (`read`)."""
    outcomes: Counter[str] = Counter()
    path = folder / "spec.yaml"
    position = re.compile(rf"override '|override \"|{re.escape(str(path))}:[0-9]+:[0-9]+: ")

    @settings(
        max_examples=num,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],  # no shrinking: mutants have at most two mutations
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        text = data.draw(st.sampled_from(SPECS))
        for mutation in data.draw(st.lists(st.sampled_from(MUTATIONS), max_size=2)):
            text = mutation(text, data)
        overrides = data.draw(st.just([]) | st.lists(OVERRIDES, max_size=2))
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        try:
            sweep, _ = prepare(str(path), tuple(overrides))
        except SpecError as error:
            outcomes["refused"] += 1
            outcomes["read"] += not any("YAML" in problem for problem in error.problems)
            assert error.problems
            assert all(position.match(problem) for problem in error.problems), error.problems
            assert all(problem.isprintable() for problem in error.problems)
        else:
            outcomes["planned"] += 1
            assert sweep.trials
            assert all(trial.steps > 0 and trial.parameters.total > 0 for trial in sweep.trials)
            assert SweepRecord.model_validate_json(sweep.model_dump_json()) == sweep

    check()
    return outcomes


@pytest.fixture(autouse=True)
def _empty_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("num", [50, pytest.param(1_000, marks=pytest.mark.slow)])
def test_every_mutant_is_planned_or_refused(tmp_path: Path, num: int) -> None:
    outcomes = fuzz(num, tmp_path)
    assert outcomes["refused"] > outcomes["read"] > num / 4
    assert outcomes["planned"] > num / 10


@pytest.mark.slow
def test_every_unmutated_spec_is_planned(tmp_path: Path) -> None:
    for text in SPECS:
        (tmp_path / "spec.yaml").write_text(text)
        assert prepare(str(tmp_path / "spec.yaml"), ())[0].trials


@pytest.mark.parametrize("error", [OverflowError("a traceback"), SpecError(["no position"]), SpecError([])])
def test_fuzzing_fails_on_other_errors_and_on_faults_without_position(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("raycap.plan.expand.expand", fail)
    with pytest.raises((OverflowError, AssertionError)):
        fuzz(50, tmp_path)
