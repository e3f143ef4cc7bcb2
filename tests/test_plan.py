"""The plan: targets solved, numbers counted, warnings given, the shipped sweeps valid."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from raycap.facts.entropy import code_length_bits
from raycap.facts.hosted import profiles_of
from raycap.facts.order import QuestionOrder
from raycap.facts.questions import unpack
from raycap.learner.sizes import parameter_counts
from raycap.learner.tokens import Composer, build_tokenizer
from raycap.plan import expand, resolve
from raycap.results import PlannedTrial
from raycap.spec import EncodingScheme, SelectionScheme, TrialSpec
from raycap.spec.file import SpecError, load_sweep

ROOT = Path(__file__).parent.parent
SPECS = sorted((ROOT / "sweeps" / "specs").glob("*.yaml"))


def planned(name: str, *overrides: str) -> list[PlannedTrial]:
    return expand(load_sweep(str(ROOT / "sweeps" / "specs" / name), overrides))


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_ask_a_question(path: Path) -> None:
    sweep = load_sweep(str(path))
    assert sweep.spec.name == path.stem
    assert sweep.question.endswith(")") or sweep.question.endswith("?")
    assert len(expand(sweep)) == len(sweep.points)


def test_the_papers_sizes_are_solved() -> None:
    sizes = {trial.spec.model.hidden_size: trial.parameters.total for trial in planned("one_hop.yaml")}
    assert sizes == {80: 890_320, 96: 1_166_688, 112: 1_475_824}  # T1: .89, 1.17, 1.48M
    populations = {trial.population.num_profiles for trial in planned("one_hop.yaml")}
    assert {25_000, 30_000, 50_000} <= populations


def test_the_two_hop_plan_covers_the_trap_and_the_two_function_cell() -> None:
    trials = planned("two_hop.yaml")
    assert {trial.spec.questions.one_hop_share for trial in trials} == {1 / 11}
    assert {len(trial.population.relations) for trial in trials} == {4, 17}
    assert all(trial.spec.tokenizer.kind == "bpe" and not trial.tokens_exact for trial in trials)


def test_numbers_are_those_of_the_trial_itself() -> None:
    (trial,) = planned("grid.yaml", "grid={}", "trial.model.hidden_size=12", "trial.training.length.exposures=1")
    profiles = profiles_of(trial.spec.profiles)
    composer = Composer.build(profiles, build_tokenizer(trial.spec.tokenizer, profiles))
    order = QuestionOrder.of(profiles, trial.spec.questions, trial.spec.training)
    masks = [
        composer.compose(unpack(profiles, 1, order.step_ids(step)[1]), composer.row_length(1)).answer_mask
        for step in range(trial.steps)
    ]
    tokens = sum((mask.shape[1] - mask[:, ::-1].argmax(axis=1)).sum() for mask in masks)
    assert trial.tokens == pytest.approx(tokens, rel=0.001)
    assert order.exposures(trial.steps - 1) < 1 <= order.exposures(trial.steps)
    assert trial.population == profiles.facts
    assert trial.parameters == parameter_counts(trial.spec.model, 694)
    optimal = {s: code_length_bits(profiles.facts, EncodingScheme.OPTIMAL, s) for s in SelectionScheme}
    assert trial.dataset_bits == {str(s): bits for s, bits in optimal.items()}


@pytest.mark.parametrize("num_relations", [0, 4, 17])
@pytest.mark.parametrize("selection", SelectionScheme)
@pytest.mark.parametrize("target_bits", [1e5, 1e6])
def test_target_bits_are_met_to_within_a_profile(
    num_relations: int, selection: SelectionScheme, target_bits: float
) -> None:
    raw = {"target_bits": target_bits, "num_relations": num_relations, "selection": str(selection)}
    spec = resolve(TrialSpec.model_validate_json(json.dumps({"profiles": raw})))
    facts = profiles_of(spec.profiles).facts
    more = facts.model_copy(update={"num_profiles": facts.num_profiles + 1})
    below, above = (code_length_bits(f, EncodingScheme.OPTIMAL, selection) for f in (facts, more))
    assert below <= target_bits < above


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("trial.profiles={target_bits: 3}", "less than a single profile takes"),
        ("trial.profiles={target_bits: 1e6, names: {first: 2, middle: 2, last: 2}}", "more than the 8 names"),
        ("trial.profiles={source: disk, path: /nowhere}", "there is no file or folder /nowhere"),
    ],
)
def test_targets_that_cannot_be_met_are_told(override: str, told: str) -> None:
    with pytest.raises(SpecError, match=told):
        planned("grid.yaml", override)


def test_trials_are_warned_about() -> None:
    def warnings(*overrides: str) -> str:
        (trial,) = planned("grid.yaml", "grid={}", *overrides)
        return " ".join(trial.warnings)

    assert warnings("trial.model.hidden_size=12") == ""
    assert "cannot saturate" in warnings("trial.model.hidden_size=48")
    assert "trivially small" in warnings("trial.model.hidden_size=256")
    assert "sees only" in warnings("trial.model.hidden_size=12", "trial.training.length={steps: 2}")


def test_points_that_resolve_to_one_trial_are_planned_once() -> None:
    assert len(planned("grid.yaml", "grid.model.hidden_size=[12, 12]")) == 1


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "raycap.sweep", *arguments], capture_output=True, text=True, cwd=ROOT, check=False
    )


def test_the_plan_command_prints_json_and_starts_nothing(tmp_path: Path) -> None:
    storage = f"storage={tmp_path}/runs"
    output = run("specs/grid.yaml", storage, "--plan", "--json")
    assert output.returncode == 0, output.stderr
    plan = json.loads(output.stdout)
    assert [trial["state"] for trial in plan["trials"]] == ["new"] * len(plan["trials"])
    assert not (tmp_path / "runs").exists()
    table = run("specs/grid.yaml", storage, "--plan")
    assert all(trial["trial_id"] in table.stdout for trial in plan["trials"])


def test_a_bad_spec_ends_with_2_and_no_traceback(tmp_path: Path) -> None:
    for arguments in (
        ["specs/nowhere.yaml"],
        ["specs/grid.yaml", "trial.knd=1"],
        ["specs/grid.yaml", "storage=zz://x"],
    ):
        output = run(*arguments)
        assert output.returncode == 2, arguments
        assert "Traceback" not in output.stderr
        assert output.stderr.strip()
