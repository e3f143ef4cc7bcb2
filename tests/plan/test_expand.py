"""Tests of planning: solved targets, counted tokens and bits, warnings, and the shipped sweeps."""

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from typer.testing import CliRunner

from raycap.cli import app
from raycap.facts.build import populations_of
from raycap.facts.entropy import code_length_bits
from raycap.facts.order import Mix
from raycap.facts.profiles import census_schema
from raycap.facts.questions import Questions
from raycap.facts.solve_population import expected_trained, profiles_for_bits
from raycap.pipeline import prepare
from raycap.plan.expand import expand
from raycap.plan.sizes import parameter_counts
from raycap.results import PlannedTrial
from raycap.spec import (
    EncodingScheme,
    HeldOut,
    Kind,
    ProfilesByBits,
    QuestionsByShare,
    RelationStructure,
    SelectionScheme,
)
from raycap.spec.file import SpecError, load_sweep
from raycap.tokens.rows import RowSource
from raycap.tokens.training_data import TrainingData

ROOT = Path(__file__).parents[2]
SLOWLY_PLANNED = ("biographies", "eight_gpus", "name_code", "random_pairs", "random_strings", "trap_boundary")
NEED_A_MODEL = ("lora",)
"""Sweeps that start from the model of another sweep; tests/learner/test_adapters.py plans this one."""
SPECS = sorted(path for path in (ROOT / "sweeps" / "specs").rglob("*.yaml") if path.stem not in NEED_A_MODEL)


@cache
def planned(name: str, *overrides: str) -> list[PlannedTrial]:
    return expand(load_sweep(str(ROOT / "sweeps" / "specs" / name), overrides))


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in SLOWLY_PLANNED)) for path in SPECS],
)
def test_shipped_sweeps_are_valid_and_ask_a_question(path: Path) -> None:
    sweep = load_sweep(str(path))
    assert sweep.spec.name == path.stem
    assert sweep.question.endswith(")") or sweep.question.endswith("?")
    trials = planned(str(path.relative_to(ROOT / "sweeps" / "specs")))
    assert len(trials) == len(sweep.points)
    assert len({trial.label for trial in trials}) == len(trials)
    assert not any("only" in warning or "cut" in warning for trial in trials for warning in trial.warnings)


def test_num_params_is_solved_to_the_sizes_of_the_paper() -> None:
    trials = [trial for trial in planned("one_hop.yaml") if len(trial.populations[0].relations) == 4]
    sizes = {trial.spec.model.hidden_size: trial.parameters.total for trial in trials}
    assert sizes == {80: 890_320, 96: 1_166_688, 112: 1_475_824}  # 0.89, 1.17 and 1.48 million in the paper
    populations = {trial.populations[0].num_profiles for trial in trials}
    assert {25_000, 30_000, 50_000} <= populations


def test_the_two_hop_sweep_is_planned_with_the_shares_and_relations_of_the_paper() -> None:
    trials = planned("two_hop.yaml")
    assert {trial.spec.questions.one_hop_share for trial in trials} == {1 / 11}
    assert {len(trial.populations[0].relations) for trial in trials} == {17}
    assert all(trial.spec.tokenizer.kind == "bpe" and not trial.tokens_exact for trial in trials)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("trial.questions={hops: [1, 2], one_hop_share: 0.3, chain_of_thought: true, held_out: {tuples: 0.2}}",),
        ("trial.questions={kind: biographies}", "trial.profiles.structure=bipartite"),
        (
            "trial.profiles={source: strings, num_strings: 300, vocab_size: 32, length: 8}",
            "trial.questions={kind: names}",
        ),
        ("trial.profiles={source: pairs, num_keys: 300}",),
    ],
    ids=["one_hop", "two_hop", "biographies", "strings", "pairs"],
)
def test_planned_numbers_equal_those_of_the_trial(overrides: tuple[str, ...]) -> None:
    small = ("grid={}", "trial.model.hidden_size=12", "trial.training.length.exposures=1")
    (trial,) = planned("grid.yaml", *small, *overrides)
    data = TrainingData.of(trial.spec, populations_of(trial.spec))
    order = data.order((Mix(0, data.shares()),))
    rows = RowSource(data.composers, order, trial.steps, 0, 1).rows_from(0)
    assert trial.tokens == pytest.approx(sum(int(batch.lengths.sum()) for batch in rows), rel=0.01)
    before, after = (data.exposures(order.num_texts_before(step)) for step in (trial.steps - 1, trial.steps))
    assert before < 1 <= after
    (profiles,) = populations_of(trial.spec)
    assert trial.populations == (profiles.facts,)
    assert trial.parameters == parameter_counts(trial.spec.model, data.vocab_size)
    assert trial.tokens_exact


def test_dataset_bits_are_code_lengths_of_the_headline_kind() -> None:
    (trial,) = planned("grid.yaml", "grid={}", "trial.model.hidden_size=12")
    optimal = {s: code_length_bits(trial.populations[0], EncodingScheme.OPTIMAL, s) for s in SelectionScheme}
    assert trial.dataset_bits == {str(s): bits for s, bits in optimal.items()}
    questions = "trial.questions={hops: [1, 2], held_out: {tuples: 0.25, second_people: 0.1}}"
    for structure in RelationStructure:
        people = f"trial.profiles.structure={structure}"
        (mixed,) = planned("grid.yaml", "grid={}", people, questions, "analysis.schemes=[2-hop-big-hash]")
        (profiles,) = populations_of(mixed.spec)
        trained = Questions(profiles, 2, held_out=mixed.spec.questions.held_out).num_trained()
        for selection in SelectionScheme:
            bits = code_length_bits(
                profiles.facts, EncodingScheme.TWO_HOP_BIG_HASH, selection, Kind.TWO_HOP, num_trained=trained
            )
            assert mixed.dataset_bits[str(selection)] == pytest.approx(
                bits, rel=0.02
            )  # the plan uses the expected number of trained questions


@pytest.mark.parametrize("num_relations", [0, 1, 4, 17])
@pytest.mark.parametrize("selection", SelectionScheme)
@pytest.mark.parametrize("scheme", EncodingScheme)
@pytest.mark.parametrize("target_bits", [1e5, 1e6, 1e7])
@pytest.mark.parametrize("structure", RelationStructure)
def test_target_bits_are_met_to_within_a_profile(
    num_relations: int,
    selection: SelectionScheme,
    scheme: EncodingScheme,
    target_bits: float,
    structure: RelationStructure,
) -> None:
    hops = (1, 2) if num_relations else (1,)
    questions = QuestionsByShare(hops=hops, held_out=HeldOut(tuples=0.2) if num_relations else HeldOut())
    fields = {"num_relations": num_relations, "structure": structure, "scheme": scheme, "selection": selection}
    solved = profiles_for_bits(ProfilesByBits(target_bits=target_bits, **fields), questions)
    kind, unit = questions.kinds[-1], 2 if structure is RelationStructure.BIPARTITE else 1
    schema = census_schema(solved.names, num_relations, structure)

    def bits(num_profiles: int) -> float:
        facts = schema.facts(num_profiles)
        trained = expected_trained(facts, questions, kind)
        return code_length_bits(facts, scheme, selection, kind, num_trained=trained)

    assert bits(solved.num_profiles) <= target_bits < bits(solved.num_profiles + unit)


@pytest.mark.parametrize("scheme", EncodingScheme)
def test_dataset_bits_of_a_solved_population_equal_the_target(scheme: EncodingScheme) -> None:
    """Dataset bits are at most one profile below the target, also with held-out questions."""
    questions = "{hops: [1, 2], chain_of_thought: true, held_out: {relations: 0.25, second_people: 0.1}}"
    profiles = (
        f"trial.profiles={{target_bits: 2e5, scheme: {scheme}, selection: set, names: {{first: 40, middle: 40}}}}"
    )
    (trial,) = planned("grid.yaml", "grid={}", f"trial.questions={questions}", profiles, f"analysis.schemes=[{scheme}]")
    solved = trial.populations[0].num_profiles
    assert 2e5 * (1 - 2 / solved) < trial.dataset_bits["set"] <= 2e5


def test_target_bits_depend_on_the_kind_of_questions() -> None:
    """A number of bits of names only takes more people than the same number of bits of names and facts."""
    sizes = {}
    for kind in ("hops", "names", "biographies"):
        overrides = ("trial.profiles={target_bits: 2e5}", f"trial.questions={{kind: {kind}}}")
        (trial,) = planned("grid.yaml", "grid={}", *overrides)
        assert trial.dataset_bits["enumerate"] == pytest.approx(2e5, rel=1e-3)
        sizes[kind] = trial.populations[0].num_profiles
    assert sizes["hops"] == sizes["biographies"] < sizes["names"] // 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trial.profiles={target_bits: 3}", "target_bits: .*got 3"),
        ("trial.profiles={target_bits: 1e6, names: {first: 2, middle: 2, last: 2}}", "8 profiles"),
        ("trial.profiles={source: disk, path: /nowhere}", "/nowhere"),
        ("trial.questions={hops: [1, 2], held_out: {relations: 0.02}}", "relations: .*0.02"),
        (
            "trial={questions: {kind: biographies}, training: {packing: {kind: windows, length: 16}}}",
            "training.packing.length: must be at least 4[0-9], .* got 16",
        ),
        ("trial.training.precision=fp16", "training.precision: fp16"),
        (
            "trial={questions: {hops: [1, 2]}, "
            "training: {length: {steps: 9}, curriculum: [{weights: [1, 0], until: {steps: 9}}]}}",
            "training.curriculum",
        ),
        (
            "trial.training={length: {exposures: 9}, optimizer: {schedule: constant}, stop: {}}",
            "training.stop.window_exposures: .*50",
        ),
        (
            "trial={profiles: {num_relations: 1, structure: bipartite}, questions: {hops: [1, 2, 3]}}",
            "three-hop",
        ),
        (
            "trial.model={num_params: 100}",
            r"100 .*38,736 .*hidden_size 16",
        ),
        ("trial.fill={parent: {trial_id: 0123456789ab}, profiles: {seed: 1}}", "0123456789ab"),
        ("trial.fill={parent: {path: /nowhere}, profiles: {seed: 1}}", "/nowhere"),
    ],
)
def test_targets_that_cannot_be_met_are_refused_with_the_reason(override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        planned("grid.yaml", "grid={}", override)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("execution.gpus_per_worker=0", "execution.gpus_per_worker"),
        ("execution.num_workers=2", "execution.num_workers"),
        ("trial.training.precision=fp16", "training.precision"),
        ("trial.training.optimizer={kind: schedule_free}", "training.optimizer.kind"),
        ("trial.training.packing={kind: windows, length: 256}", "training.packing.kind"),
    ],
)
def test_steps_that_no_cuda_graph_can_record_are_refused(override: str, field: str) -> None:
    recordable = ("grid={}", "execution={gpus_per_worker: 1, cuda_graph: true}")
    assert planned("grid.yaml", *recordable)
    with pytest.raises(SpecError, match=rf"{field}: .*execution\.cuda_graph: false"):
        planned("grid.yaml", *recordable, override)


def test_unsuitable_trials_have_warnings() -> None:
    def warnings(*overrides: str) -> tuple[str, ...]:
        (trial,) = planned("grid.yaml", "grid={}", *overrides)
        return trial.warnings

    assert warnings("trial.model.hidden_size=12") == ()
    larger, much_larger = (warnings(f"trial.model.hidden_size={size}") for size in (48, 256))
    assert larger
    assert much_larger
    assert larger != much_larger
    assert "sees each fact only 0.06 times" in warnings(
        "trial.model.hidden_size=12", "trial.training.length={steps: 2}"
    )


def test_points_that_resolve_to_one_trial_are_planned_once() -> None:
    assert len(planned("grid.yaml", "grid={model.hidden_size: [12, 12]}")) == 1


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
    table = CliRunner().invoke(app, ["plan", "specs/grid.yaml", storage]).output
    assert all(trial["trial_id"] in table for trial in plan["trials"])


def test_a_bad_spec_exits_with_2_and_no_traceback() -> None:
    output = run("specs/grid.yaml", "trial.knd=1")
    assert output.returncode == 2
    assert "Traceback" not in output.stderr
    assert output.stderr.strip()
    for spec, *overrides in (["specs/nowhere.yaml"], ["specs/grid.yaml", "storage=zz://x"]):
        with pytest.raises(SpecError):  # which the command reports in the same way
            prepare(spec, tuple(overrides))
