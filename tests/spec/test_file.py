"""A sweep file is read, checked whole, and every fault told with its place."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.facts.names import RELATIONS, census_first_names, census_last_names
from raycap.spec import (
    NUM_CENSUS_FIRST_NAMES,
    NUM_CENSUS_LAST_NAMES,
    NUM_RELATIONS_KNOWN,
    ExecutionSpec,
    ModelByWidth,
    Tokens,
    TrialSpec,
)
from raycap.spec.file import SpecError, load_sweep
from tests.support.specs import GOOD


def written(folder: Path, text: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(text)
    return str(path)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_sweep(written(folder, text), overrides)
    return [problem.replace(str(folder), "") for problem in caught.value.problems]


def test_the_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    sweep = load_sweep(written(tmp_path, GOOD))
    assert [tuple(p.coordinates.values()) for p in sweep.points] == [(w, s) for w in (8, 12) for s in (0, 1, 2)]
    assert sweep.question == "What is asked?"
    assert sweep.points[-1].trial.model == ModelByWidth(
        num_layers=2, heads=sweep.points[0].trial.model.heads, hidden_size=12
    )
    assert sweep.points[0].trial.training.optimizer.lr == 0.01  # YAML 1.2: 1e-2 is a number


def test_all_faults_of_the_whole_grid_are_told_at_once_with_their_places(tmp_path: Path) -> None:
    text = (
        GOOD.replace("num_layers: 2", "num_layers: two")
        .replace("lr: 1e-2", "lrr: 1e-2")
        .replace("[8, 12]", "[8, 13]")
        .replace("grid:", "griid: {}\ngrid:")
    )
    assert problems(tmp_path, text) == [
        "/spec.yaml:11:1: griid: unknown field; did you mean 'grid'?",
        '/spec.yaml:6:5: trial.model.num_layers: should be a valid integer, got "two" (L: number of transformer blocks)',
        "/spec.yaml:10:17: trial.training.optimizer.lrr: unknown field; did you mean 'lr'?",
        "/spec.yaml:13:26: trial.model.hidden_size: 1 heads do not divide hidden_size 13 into even sizes; choose a "
        "multiple of 2 (h: width of the residual stream)",
    ]


@pytest.mark.parametrize(
    ("change", "place", "told"),
    [
        (("num_profiles: 100", "num_profiles: 16001"), ":4:14", "pools make only 16000"),
        (("{num_profiles: 100,", "{num_relations: 18,"), ":4:14", "less than or equal to 17"),
        (("  model:\n", "  questions: {hops: [1, 4]}\n  model:\n"), ":5:25", "must be one of 1, 2, 3, got 4"),
        (
            ("  model:\n", "  questions: {hops: [2, 1]}\n  model:\n"),
            ":5:15",
            "must be one or more of 1, 2, 3 in ascending order",
        ),
        (("  model:\n", "  questions: {one_hop_share: 0.5}\n  model:\n"), ":5:15", "has no effect when hops is [1]"),
        (("  model:\n", "  tokenizer: {kind: wrd}\n  model:\n"), ":5:3", "did you mean 'word'?"),
        (("  model:\n", "  questions: {hops: [1, 2], weights: [1]}\n  model:\n"), ":5:29", "one for each of hops"),
        (("  model:\n", "  questions: {chain_of_thought: true}\n  model:\n"), ":5:15", "one-hop questions alone"),
        (("  model:\n", "  questions: {held_out: {tuples: 0.1}}\n  model:\n"), ":5:15", "but hops is [1]"),
        (
            ("  model:\n", "  questions: {kind: bios}\n  model:\n"),
            ":5:3",
            'must be one of hops, biographies, names, got "bios"',
        ),
        (("num_profiles: 100", "num_profiles: 101, structure: bipartite"), ":4:14", "must be even, got 101; take 102"),
        (("num_profiles: 100", "source: strings, num_strings: 9"), ":4:47", "unknown field"),
        (("{lr: 1e-2}", "{kind: schedule_free, schedule: cosine}"), ":10:38", "unknown field"),
        (("{lr: 1e-2}", "{decay_share: 0.5}"), ":10:17", "has no effect with schedule linear"),
        (("{lr: 1e-2}", "{kind: adam}"), ":10:5", 'must be one of adamw, schedule_free, muon, got "adam"'),
        (("{lr: 1e-2}", "{lr: 1e-2}\n    stop: {min_improvement: 0.1}"), ":11:5", "set optimizer.schedule: constant"),
        (
            ("{lr: 1e-2}", "{lr: 1e-2}\n    curriculum: [{weights: [1, 0], until: {steps: 5}}]"),
            ":3:1",
            "mixes kinds of text, but there is one",
        ),
        (("{exposures: 5}", "{exposures: 5, steps: 3}"), ":9:14", "unknown field"),
        (("{exposures: 5}", "{exposures: .nan}"), ":9:14", 'should be a valid number, got ".nan"'),
        (("seed: [0, 1, 2]", "seed: []"), ":13:3", "should have at least 1 item"),
        (("seed: [0, 1, 2]", "sede: [0, 1, 2]"), ":13:3", "did you mean 'seed'?"),
        (("name: good", "name: ../evil"), ":2:1", "should match pattern"),
        (("name: good", "name: trials"), ":2:1", "choose another name"),
        (("name: good", "name: good\nname: again"), ":3:1", "the key 'name' is here twice"),
        (("grid:", "grid: ["), ":13:", "not valid YAML"),
        (("name: good", "execution: {num_workers: 2, gpus_per_worker: 0.5}"), ":2:29", "needs num_workers: 1"),
    ],
)
def test_each_rule_tells_its_place(tmp_path: Path, change: tuple[str, str], place: str, told: str) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    found = problems(tmp_path, text)
    assert any(problem.startswith(f"/spec.yaml{place}") and told in problem for problem in found), found


def test_two_hops_without_relations_are_refused(tmp_path: Path) -> None:
    text = GOOD.replace("num_profiles: 100", "num_profiles: 100, num_relations: 0")
    found = problems(tmp_path, text.replace("  model:\n", "  questions: {hops: [1, 2]}\n  model:\n"))
    assert found == [
        "/spec.yaml:3:1: trial: two-hop questions need at least one relation, but profiles.num_relations is 0"
    ]


def test_a_grid_too_large_to_build_is_refused_by_counting(tmp_path: Path) -> None:
    axis = list(range(1000))
    text = GOOD.replace("[0, 1, 2]", str(axis)) + f"  training.batch_size: {[a + 1 for a in axis]}\n"
    assert "grid: 2 x 1,000 x 1,000 = 2,000,000 points, more than 100,000" in problems(tmp_path, text)[0]


def test_overrides_are_validated_like_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    sweep = load_sweep(path, ("trial.training.batch_size=64", "grid.model.hidden_size=[6]", "execution.num_workers=2"))
    assert {p.trial.training.batch_size for p in sweep.points} == {64}
    assert {p.coordinates["model.hidden_size"] for p in sweep.points} == {6}
    assert sweep.spec.execution.num_workers == 2
    assert problems(tmp_path, GOOD, "trial.training.batchsize=64", "nonsense")[0].startswith("override 'nonsense'")
    (problem,) = problems(tmp_path, GOOD, "trial.training.batchsize=64")
    assert problem == (
        "override 'trial.training.batchsize=64': trial.training.batchsize: unknown field; did you mean 'batch_size'?"
    )


def test_faults_of_overrides_and_of_the_file_are_told_together(tmp_path: Path) -> None:
    text = GOOD.replace("num_layers: 2", "num_layers: two")
    found = problems(tmp_path, text, "nonsense", "name.x=1", "trial.training.new.x=1")
    assert [problem.partition(": ")[0] for problem in found] == [
        "override 'nonsense'",
        "override 'name.x=1'",
        "/spec.yaml:6:5",
        "override 'trial.training.new.x=1'",
    ]


def test_an_axis_may_set_a_field_in_what_an_earlier_one_sets(tmp_path: Path) -> None:
    axes = "  training.optimizer: [{lr: 0.5}, {kind: muon}]\n  training.optimizer.lr: [0.1, 0.2]\n"
    points = load_sweep(written(tmp_path, GOOD.partition("  model.hidden")[0] + axes)).points
    assert [point.trial.training.optimizer.lr for point in points] == [0.1, 0.2] * 2
    assert [point.coordinates["training.optimizer"] for point in points] == [{"lr": 0.5}] * 2 + [{"kind": "muon"}] * 2
    (told,) = problems(
        tmp_path, GOOD.partition("  model.hidden")[0] + "".join(reversed(axes.splitlines(keepends=True)))
    )
    assert told == (
        "/spec.yaml:13:3: grid.training.optimizer: would replace what grid.training.optimizer.lr has set; put it before that"
    )


def test_a_fault_inside_a_value_of_an_axis_is_told_there(tmp_path: Path) -> None:
    text = GOOD.partition("  model.hidden")[0] + "  training.length:\n    - {steps: 5}\n    - {steps: 0}\n"
    (told,) = problems(tmp_path, text)
    assert told == (
        "/spec.yaml:14:8: trial.training.length.steps: should be greater than 0, got 0 "
        "(Number of steps of batch_size questions each)"
    )


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    override = "trial.training.length={tokens: 2e5}"
    assert load_sweep(written(tmp_path, GOOD), (override,)).points[0].trial.training.length == Tokens(tokens=200_000)
    assert "should be a valid integer, got 2.5" in problems(tmp_path, GOOD, "trial.training.length={tokens: 2.5}")[0]


def test_a_missing_file_lists_what_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match="no such spec file, neither as given nor under sweeps/"):
        load_sweep("specs/gird.yaml")
    (tmp_path / "sweeps" / "specs").mkdir(parents=True)
    (tmp_path / "sweeps" / "specs" / "grid.yaml").write_text(GOOD)
    assert load_sweep("specs/grid.yaml").spec.name == "good"
    with pytest.raises(SpecError, match=r"did you mean sweeps/specs/grid\.yaml"):
        load_sweep("specs/gird.yaml")
    with pytest.raises(SpecError, match=r"there are: sweeps/specs/grid\.yaml"):
        load_sweep("nothing like it")


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(
    place=st.sampled_from(
        ["name", "trial", "trial.profiles", "trial.model.heads", "trial.training.length", "trial.training.optimizer.lr",
         "grid", "analysis.schemes", "execution.num_workers", "storage", "trial.questions.hops", "trial.tokenizer",
         "trial.questions", "trial.questions.held_out", "trial.fill", "trial.fill.parent", "trial.training.optimizer",
         "trial.training.packing", "trial.training.curriculum", "trial.training.stop", "trial.model.parametrization"]
    ),
    value=trees,
)  # fmt: skip
def test_any_value_anywhere_is_a_spec_or_a_told_fault(
    tmp_path_factory: pytest.TempPathFactory, place: str, value: object
) -> None:
    tree = {"name": "x", "grid": {"model.hidden_size": [16]}}
    *sections, leaf = place.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = value
    path = tmp_path_factory.mktemp("fuzz") / "spec.yaml"
    path.write_text(json.dumps(tree))
    try:
        load_sweep(str(path))
    except SpecError as error:
        assert error.problems
        assert all(problem.startswith(f"{path}:") for problem in error.problems)


def test_identity_is_the_trial_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD)
    plain = [p.trial.trial_id for p in load_sweep(path).points]
    moved = load_sweep(path, ("execution.num_workers=2", "storage=elsewhere", "name=other", "tracking.experiment=e"))
    assert [p.trial.trial_id for p in moved.points] == plain
    assert len(set(plain)) == len(plain)
    written_out = TrialSpec.model_validate_json(load_sweep(path).points[0].trial.model_dump_json())
    assert written_out.trial_id == plain[0]
    assert load_sweep(path, ("trial.training.length.exposures=5.0",)).points[0].trial.trial_id == plain[0]


def test_bounds_in_the_spec_are_those_of_the_lists() -> None:
    assert len(RELATIONS) == NUM_RELATIONS_KNOWN
    assert len(census_first_names()) == NUM_CENSUS_FIRST_NAMES
    assert len(census_last_names()) == NUM_CENSUS_LAST_NAMES


def test_every_field_is_documented() -> None:
    def undocumented(schema: dict) -> list[str]:
        return [
            f"{title}.{name}"
            for title, model in schema["$defs"].items()
            for name, field in model.get("properties", {}).items()
            if "description" not in field and "$ref" not in field and "oneOf" not in field
        ]

    assert undocumented(TrialSpec.model_json_schema()) == []
    assert all("description" in field for field in ExecutionSpec.model_json_schema()["properties"].values())
