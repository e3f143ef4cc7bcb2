"""Loading of sweep files: the grid, validation of the whole file and the position of every fault."""

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


def write_spec(folder: Path, text: str) -> str:
    path = folder / "spec.yaml"
    path.write_text(text)
    return str(path)


def problems(folder: Path, text: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load_sweep(write_spec(folder, text), overrides)
    return [problem.replace(str(folder), "") for problem in caught.value.problems]


def test_the_grid_is_the_product_of_its_axes(tmp_path: Path) -> None:
    sweep = load_sweep(write_spec(tmp_path, GOOD))
    assert [tuple(p.coordinates.values()) for p in sweep.points] == [(w, s) for w in (8, 12) for s in (0, 1, 2)]
    assert sweep.question == "What is asked?"
    assert sweep.points[-1].trial.model == ModelByWidth(
        num_layers=2, heads=sweep.points[0].trial.model.heads, hidden_size=12
    )
    assert sweep.points[0].trial.training.optimizer.lr == 0.01  # YAML 1.2: 1e-2 is a number


def test_all_faults_of_the_whole_grid_are_reported_together_with_their_positions(tmp_path: Path) -> None:
    text = (
        GOOD.replace("num_layers: 2", "num_layers: two")
        .replace("lr: 1e-2", "lrr: 1e-2")
        .replace("[8, 12]", "[8, 13]")
        .replace("grid:", "griid: {}\ngrid:")
    )
    found = problems(tmp_path, text)
    expected = [
        ("/spec.yaml:11:1: griid: ", "'grid'"),
        ("/spec.yaml:6:5: trial.model.num_layers: ", 'got "two" (L, the number of transformer blocks)'),
        ("/spec.yaml:10:17: trial.training.optimizer.lrr: ", "'lr'"),
        ("/spec.yaml:13:26: trial.model.hidden_size: ", "13"),
    ]
    assert len(found) == len(expected)
    for problem, (start, content) in zip(found, expected, strict=True):
        assert problem.startswith(start)
        assert content in problem


@pytest.mark.parametrize(
    ("change", "position", "content"),
    [
        (("num_profiles: 100", "num_profiles: 16001"), ":4:14", "16000"),
        (("{num_profiles: 100,", "{num_relations: 18,"), ":4:14", "17"),
        (("  model:\n", "  questions: {hops: [1, 4]}\n  model:\n"), ":5:25", "1, 2, 3, got 4"),
        (("  model:\n", "  questions: {hops: [2, 1]}\n  model:\n"), ":5:15", "[2, 1]"),
        (("  model:\n", "  questions: {one_hop_share: 0.5}\n  model:\n"), ":5:15", "one_hop_share"),
        (("  model:\n", "  tokenizer: {kind: wrd}\n  model:\n"), ":5:3", "'word'"),
        (("  model:\n", "  questions: {hops: [1, 2], weights: [1]}\n  model:\n"), ":5:29", "[1.0]"),
        (("  model:\n", "  questions: {chain_of_thought: true}\n  model:\n"), ":5:15", "chain_of_thought"),
        (("  model:\n", "  questions: {held_out: {tuples: 0.1}}\n  model:\n"), ":5:15", "hops is [1]"),
        (
            ("  model:\n", "  questions: {kind: bios}\n  model:\n"),
            ":5:3",
            'got "bios"',
        ),
        (("num_profiles: 100", "num_profiles: 101, structure: bipartite"), ":4:14", "got 101; use 102"),
        (("num_profiles: 100", "source: strings, num_strings: 9"), ":4:47", "unknown field"),
        (("{lr: 1e-2}", "{kind: schedule_free, schedule: cosine}"), ":10:38", "unknown field"),
        (("{lr: 1e-2}", "{decay_share: 0.5}"), ":10:17", "schedule linear"),
        (("{lr: 1e-2}", "{kind: adam}"), ":10:5", 'got "adam"'),
        (("{lr: 1e-2}", "{lr: 1e-2}\n    stop: {min_improvement: 0.1}"), ":11:5", "optimizer.schedule: constant"),
        (
            ("{lr: 1e-2}", "{lr: 1e-2}\n    curriculum: [{weights: [1, 0], until: {steps: 5}}]"),
            ":3:1",
            "training.curriculum",
        ),
        (("{exposures: 5}", "{exposures: 5, steps: 3}"), ":9:14", "give one of"),
        (("{exposures: 5}", "{exposures: .nan}"), ":9:14", 'got ".nan"'),
        (("seed: [0, 1, 2]", "seed: []"), ":13:3", "at least 1 item"),
        (("seed: [0, 1, 2]", "sede: [0, 1, 2]"), ":13:3", "'seed'"),
        (("name: good", "name: ../evil"), ":2:1", "../evil"),
        (("name: good", "name: trials"), ":2:1", "'trials'"),
        (("name: good", "name: good\nname: again"), ":3:1", "'name'"),
        (("grid:", "grid: ["), ":13:", "not valid YAML"),
        (("name: good", "execution: {num_workers: 2, gpus_per_worker: 0.5}"), ":2:29", "num_workers: 1"),
    ],
)
def test_a_broken_rule_is_reported_with_its_position(
    tmp_path: Path, change: tuple[str, str], position: str, content: str
) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    found = problems(tmp_path, text)
    assert any(problem.startswith(f"/spec.yaml{position}") and content in problem for problem in found), found


def test_two_hops_without_relations_are_refused(tmp_path: Path) -> None:
    text = GOOD.replace("num_profiles: 100", "num_profiles: 100, num_relations: 0")
    found = problems(tmp_path, text.replace("  model:\n", "  questions: {hops: [1, 2]}\n  model:\n"))
    assert len(found) == 1
    assert found[0].startswith("/spec.yaml:3:1: trial: ")
    assert "profiles.num_relations is 0" in found[0]


def test_a_grid_with_too_many_points_is_refused_without_building_it(tmp_path: Path) -> None:
    axis = list(range(1000))
    text = GOOD.replace("[0, 1, 2]", str(axis)) + f"  training.batch_size: {[a + 1 for a in axis]}\n"
    assert "grid: 2 x 1,000 x 1,000 = 2,000,000 points" in problems(tmp_path, text)[0]


def test_overrides_are_validated_like_the_file(tmp_path: Path) -> None:
    path = write_spec(tmp_path, GOOD)
    sweep = load_sweep(path, ("trial.training.batch_size=64", "grid.model.hidden_size=[6]", "execution.num_workers=2"))
    assert {p.trial.training.batch_size for p in sweep.points} == {64}
    assert {p.coordinates["model.hidden_size"] for p in sweep.points} == {6}
    assert sweep.spec.execution.num_workers == 2
    assert problems(tmp_path, GOOD, "trial.training.batchsize=64", "nonsense")[0].startswith("override 'nonsense'")
    (problem,) = problems(tmp_path, GOOD, "trial.training.batchsize=64")
    assert problem.startswith("override 'trial.training.batchsize=64': trial.training.batchsize: ")
    assert "'batch_size'" in problem


def test_faults_of_overrides_and_of_the_file_are_reported_together(tmp_path: Path) -> None:
    text = GOOD.replace("num_layers: 2", "num_layers: two")
    found = problems(tmp_path, text, "nonsense", "name.x=1", "trial.training.new.x=1")
    assert [problem.partition(": ")[0] for problem in found] == [
        "override 'nonsense'",
        "override 'name.x=1'",
        "/spec.yaml:6:5",
        "override 'trial.training.new.x=1'",
    ]


def test_an_axis_may_set_a_field_inside_the_value_of_another_axis_that_leaves_it_out(tmp_path: Path) -> None:
    lines = ["  training.optimizer: [{warmup_steps: 5}, {kind: muon}]\n", "  training.optimizer.lr: [0.1, 0.2]\n"]
    head = GOOD.partition("  model.hidden")[0]
    points = load_sweep(write_spec(tmp_path, head + "".join(lines))).points
    assert [point.trial.training.optimizer.lr for point in points] == [0.1, 0.2] * 2
    assert [point.trial.training.optimizer.kind for point in points] == ["adamw"] * 2 + ["muon"] * 2
    assert len(load_sweep(write_spec(tmp_path, head + "".join(reversed(lines)))).points) == len(points)
    (problem,) = problems(tmp_path, head + "".join(lines).replace("warmup_steps: 5", "lr: 0.5"))
    assert problem.startswith("/spec.yaml:12:24: grid.training.optimizer: ")
    assert "grid.training.optimizer.lr" in problem


def test_a_fault_inside_a_value_of_an_axis_is_reported_at_that_value(tmp_path: Path) -> None:
    text = GOOD.partition("  model.hidden")[0] + "  training.length:\n    - {steps: 5}\n    - {steps: 0}\n"
    (problem,) = problems(tmp_path, text)
    assert problem.startswith("/spec.yaml:14:8: trial.training.length.steps: ")
    assert "got 0 (Number of optimizer steps)" in problem


def test_whole_numbers_may_be_written_with_an_exponent(tmp_path: Path) -> None:
    override = "trial.training.length={tokens: 2e5}"
    assert load_sweep(write_spec(tmp_path, GOOD), (override,)).points[0].trial.training.length == Tokens(tokens=200_000)
    assert "got 2.5" in problems(tmp_path, GOOD, "trial.training.length={tokens: 2.5}")[0]


def test_a_missing_file_lists_the_known_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SpecError, match=r"specs/gird\.yaml"):
        load_sweep("specs/gird.yaml")
    (tmp_path / "sweeps" / "specs").mkdir(parents=True)
    (tmp_path / "sweeps" / "specs" / "grid.yaml").write_text(GOOD)
    assert load_sweep("specs/grid.yaml").spec.name == "good"
    with pytest.raises(SpecError, match=r"'sweeps/specs/grid\.yaml'"):
        load_sweep("specs/gird.yaml")
    with pytest.raises(SpecError, match=r"sweeps/specs/grid\.yaml"):
        load_sweep("nothing like it")


leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
trees = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
)


@settings(max_examples=150, deadline=None)
@given(
    path=st.sampled_from(
        ["name", "trial", "trial.profiles", "trial.model.heads", "trial.training.length", "trial.training.optimizer.lr",
         "grid", "analysis.schemes", "execution.num_workers", "storage", "trial.questions.hops", "trial.tokenizer",
         "trial.questions", "trial.questions.held_out", "trial.fill", "trial.fill.parent", "trial.training.optimizer",
         "trial.training.packing", "trial.training.curriculum", "trial.training.stop", "trial.model.parametrization"]
    ),
    value=trees,
)  # fmt: skip
def test_any_value_of_any_field_is_accepted_or_reported(
    tmp_path_factory: pytest.TempPathFactory, path: str, value: object
) -> None:
    tree = {"name": "x", "grid": {"model.hidden_size": [16]}}
    *sections, leaf = path.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
    node[leaf] = value
    file = tmp_path_factory.mktemp("fuzz") / "spec.yaml"
    file.write_text(json.dumps(tree))
    try:
        load_sweep(str(file))
    except SpecError as error:
        assert error.problems
        assert all(problem.startswith(f"{file}:") for problem in error.problems)


def test_only_the_trial_section_determines_the_identity(tmp_path: Path) -> None:
    path = write_spec(tmp_path, GOOD)
    plain = [p.trial.trial_id for p in load_sweep(path).points]
    moved = load_sweep(path, ("execution.num_workers=2", "storage=elsewhere", "name=other", "tracking.experiment=e"))
    assert [p.trial.trial_id for p in moved.points] == plain
    assert len(set(plain)) == len(plain)
    restored = TrialSpec.model_validate_json(load_sweep(path).points[0].trial.model_dump_json())
    assert restored.trial_id == plain[0]
    assert load_sweep(path, ("trial.training.length.exposures=5.0",)).points[0].trial.trial_id == plain[0]


def test_bounds_in_the_spec_equal_the_lengths_of_the_lists() -> None:
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


@pytest.mark.parametrize("uri", ["s3://KEY:SECRET@bucket/x", "s3://KEY:SEC/RET@bucket/x", "s3://b/x?secret_key=SECRET"])
def test_a_storage_with_a_password_is_refused_without_showing_it(tmp_path: Path, uri: str) -> None:
    for found in (problems(tmp_path, f"{GOOD}storage: {uri}\n"), problems(tmp_path, GOOD, f"storage={uri}")):
        assert "storage: " in found[0]
        assert "AWS_SECRET_ACCESS_KEY" in found[0]
        assert "SEC" not in found[0].replace("AWS_SECRET_ACCESS_KEY", "").replace("secret_key", "")


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("training.seed=3", "write trial.training"),
        ("model.hidden_size=8", "write trial.model"),
        ("grid.trial.training.seed=[1]", "remove 'trial.'"),
        ("grid.execution.replicas=[1,2]", "write execution outside"),
        ("trial.storage=x", "write storage outside"),
    ],
)
def test_paths_of_overrides_and_of_the_grid_have_hints(override: str, remedy: str, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(GOOD)
    with pytest.raises(SpecError) as caught:
        load_sweep(str(path), (override,))
    assert remedy in str(caught.value)
