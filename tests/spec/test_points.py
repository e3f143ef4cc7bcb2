"""Points of a sweep: products of axes, lists of points, exclusions, and sections that are merged into the trial."""

import itertools
import json
import math
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.spec import ModelByParams, Steps, TrialSpec
from raycap.spec.file import SpecError, load_sweep
from raycap.spec.forms import Forms, contains, merged, nested
from raycap.spec.points import products

AXES: dict[str, list[Any]] = {
    "training.seed": [0, 1, 2],
    "training.batch_size": [8, 16],
    "model.num_layers": [1, 2, 3],
    "profiles.num_profiles": [50, 60],
}
BASE = {
    "profiles": {"num_profiles": 100, "names": {"first": 20, "middle": 20, "last": 40}},
    "model": {"num_layers": 4, "hidden_size": 16, "heads": {"num_heads": 1}},
    "training": {"length": {"exposures": 5}, "optimizer": {"lr": 0.01, "schedule": "cosine"}},
}


def load(folder: Path, **sections: Any) -> Any:
    (folder / "spec.yaml").write_text(json.dumps({"trial": BASE} | sections))
    return load_sweep(str(folder / "spec.yaml"))


def problems(folder: Path, **sections: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        load(folder, **sections)
    return caught.value.problems


@st.composite
def axes(draw: st.DrawFn, *, lists: bool) -> dict[str, Any]:
    """Axes with one or several of their values; with `lists`, single values are lists, too."""
    chosen = {}
    for path in draw(st.lists(st.sampled_from(sorted(AXES)), max_size=3, unique=True)):
        values = draw(st.lists(st.sampled_from(AXES[path]), min_size=1, max_size=3, unique=True))
        chosen[path] = values[0] if len(values) == 1 and not lists and draw(st.booleans()) else values
    return chosen


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


@settings(max_examples=60, deadline=None)
@given(
    grid=axes(lists=True),
    entries=st.lists(axes(lists=False), max_size=3),
    exclusions=st.lists(axes(lists=False).filter(bool), max_size=2),
)
def test_points_are_the_products_of_the_entries_with_the_grid_less_the_exclusions(
    tmp_path_factory: pytest.TempPathFactory,
    grid: dict[str, Any],
    entries: list[dict[str, Any]],
    exclusions: list[dict[str, Any]],
) -> None:
    expected: list[dict[str, Any]] = []
    for entry in entries or [{}]:
        product = {path: as_list(values) for path, values in (grid | entry).items()}
        expected += [dict(zip(product, values, strict=True)) for values in itertools.product(*product.values())]
    assert sum(product.num_points for product in products(grid, entries)) == len(expected)
    defaults = {"training.seed": 0, "training.batch_size": 512, "model.num_layers": 4, "profiles.num_profiles": 100}
    stated = {path: value for path, value in defaults.items() if path in ("model.num_layers", "profiles.num_profiles")}

    def matches(point: dict[str, Any], exclusion: dict[str, Any]) -> bool:
        values = stated | point
        return all(path in values and values[path] in as_list(value) for path, value in exclusion.items())

    kept = [point for point in expected if not any(matches(point, one) for one in exclusions)]
    has_dead = any(not any(matches(point, one) for point in expected) for one in exclusions)
    has_unused_axis = bool(entries) and any(all(path in entry for entry in entries) for path in grid)
    folder = tmp_path_factory.mktemp("points")
    if has_dead or has_unused_axis or not kept:
        assert problems(folder, grid=grid, points=entries, exclude=exclusions)
        return
    sweep = load(folder, grid=grid, points=entries, exclude=exclusions)
    paths = {path for point in expected for path in point}

    def values(point: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(point.get(path, defaults[path]) for path in sorted(paths))

    assert sorted(map(values, kept)) == sorted(values(point.coordinates) for point in sweep.points)
    assert all(point.coordinates.keys() == paths for point in sweep.points)
    for point in sweep.points:
        tree = point.trial.model_dump(mode="json")
        for path, value in point.coordinates.items():
            section, field = path.split(".")
            assert tree[section][field] == value


@pytest.mark.parametrize(
    "sections",
    [
        {
            "grid": {
                path: list(range(1, 1001)) for path in ("training.seed", "training.order_seed", "profiles.seed", "x")
            }
        },
        {"points": [{path: list(range(1, 1001)) for path in ("training.seed", "profiles.seed")}] * 3},
    ],
)
def test_points_are_counted_before_they_are_built(sections: dict[str, Any], tmp_path: Path) -> None:
    grid, entries = sections.get("grid", {}), sections.get("points", [])
    assert sum(product.num_points for product in products(grid, entries)) in (10**12, 3 * 10**6)
    (problem,) = problems(tmp_path, **sections)  # of the count only: "x" would be an unknown field of every point
    assert "1,000,000,000,000" in problem or "3,000,000" in problem


SPEC = """\
trial:
  model: {num_layers: 2, hidden_size: 16, heads: {num_heads: 1}}
  training: {length: {exposures: 5}}
grid:
  training.seed: [0, 1]
points:
  - {model.hidden_size: [8, 13]}
  - {model: {num_layer: 2}}
  - {training.sed: 3}
  - {training.length: [{steps: 3}], training.length.exposures: 4}
  - {training.batch_size: []}
  - training.seed
exclude:
  - {model.hidden_size: 8}
  - {model.hidden_size: 80}
"""


@pytest.mark.parametrize(
    ("lines", "position", "content"),
    [
        ([6], "6:5", "13"),
        ([7], "7:5", "did you mean 'num_layers'"),
        ([8], "8:6", "did you mean 'seed'"),
        ([9], "9:5", "points.0.training.length.exposures"),
        ([10], "10:6", "at least one value"),
        ([11], "11:5", "points.0"),
        ([12, 13, 14], "14:5", "excludes no point"),
    ],
)
def test_faults_of_points_have_the_position_of_the_value(
    lines: list[int], position: str, content: str, tmp_path: Path
) -> None:
    """Every line but the head and the given ones is blank."""
    text = [line if i < 6 or i in lines else "" for i, line in enumerate(SPEC.splitlines())]
    if lines[0] > 11:
        text[5:7] = ["points:", "  - {model.hidden_size: [8, 12]}"]
    (tmp_path / "spec.yaml").write_text("\n".join(text) + "\n")
    with pytest.raises(SpecError) as caught:
        load_sweep(str(tmp_path / "spec.yaml"))
    line, column = position.split(":")
    assert any(f"spec.yaml:{int(line) + 1}:" in problem and content in problem for problem in caught.value.problems), (
        caught.value.problems,
        column,
    )


def test_a_grid_axis_that_every_entry_replaces_is_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, grid={"training.seed": [0]}, points=[{"training.seed": 1}, {"training.seed": [2]}])
    assert "grid.training.seed" in problem
    assert len(load(tmp_path, grid={"training.seed": [0]}, points=[{"training.seed": [1, 2]}, {}]).points) == 3


def test_coordinates_of_a_point_that_does_not_set_an_axis_are_those_of_its_trial(tmp_path: Path) -> None:
    entries = [
        {},
        {"training.optimizer": {"kind": "muon", "warmup_steps": 5}},
        {"training.seed": 3},
        {"model": {"hidden_size": 8}},
        {"questions.hops": [[1, 2]], "questions.chain_of_thought": True},
        {"model.num_params": 20_000},
    ]
    points = load(tmp_path, points=entries).points
    assert [point.coordinates["training.seed"] for point in points] == [0, 0, 3, 0, 0, 0]
    assert [point.coordinates["questions.hops"] for point in points] == [[1]] * 4 + [[1, 2], [1]]
    assert [point.coordinates["model.num_params"] for point in points] == [None] * 5 + [20_000]
    optimizers = [point.coordinates["training.optimizer"] for point in points]
    assert optimizers[:3] == [BASE["training"]["optimizer"], entries[1]["training.optimizer"], optimizers[0]]
    assert points[1].trial.training.optimizer.lr == 0.01


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model", {"num_layers": 1}, {"num_layers": 1, "hidden_size": 16, "heads": {"num_heads": 1}}),
        ("model", {"heads": {"head_size": 8}}, {"num_layers": 4, "hidden_size": 16, "heads": {"head_size": 8}}),
        ("model", {"num_params": 9_000}, {"num_layers": 4, "num_params": 9_000, "heads": {"num_heads": 1}}),
        ("training.length", {"steps": 3}, {"steps": 3}),
        ("training.optimizer", {"kind": "schedule_free"}, {"kind": "schedule_free", "lr": 0.01}),
        ("training.optimizer", {"kind": "muon", "lr": 0.1}, {"kind": "muon", "lr": 0.1, "schedule": "cosine"}),
        ("profiles", {"source": "pairs", "num_keys": 9}, {"source": "pairs", "num_keys": 9}),
        ("profiles", {"target_bits": 900}, {"target_bits": 900, "names": BASE["profiles"]["names"]}),
    ],
)
def test_a_section_is_merged_into_that_of_the_trial(path: str, value: Any, expected: Any, tmp_path: Path) -> None:
    tree = merged(BASE, nested(path, value), Forms.of(TrialSpec))
    assert reduce(getitem, path.split("."), tree) == expected
    (point,) = load(tmp_path, grid={path: [value]}).points
    assert point.coordinates == {path: value}
    if path == "training.length":
        assert point.trial.training.length == Steps(steps=3)
    if "num_params" in value:
        assert isinstance(point.trial.model, ModelByParams)


json_trees = st.recursive(
    st.integers(0, 3) | st.none(),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=6,
)


@given(base=json_trees, value=json_trees)
def test_merged_trees_contain_the_value_and_the_rest_of_the_base(base: Any, value: Any) -> None:
    found = merged(base, value, None)
    assert contains(found, value)
    assert merged(found, value, None) == found
    if isinstance(base, dict) and isinstance(value, dict):
        assert found.keys() == base.keys() | value.keys()
        assert all(found[key] == base[key] for key in base.keys() - value.keys())


def test_the_sizes_of_the_paper_are_one_sweep() -> None:
    path = Path(__file__).parents[2] / "sweeps" / "specs" / "one_hop.yaml"
    trials = [point.trial for point in load_sweep(str(path)).points]
    cells = {
        (t.profiles.num_profiles, t.model.num_params, t.profiles.num_relations, t.model.num_layers) for t in trials
    }
    small = {(n, p) for n, p, relations, layers in cells if (relations, layers) == (4, 4) and n > 10_000}
    sizes = (890_000, 1_170_000, 1_480_000)
    assert small == {(n, p) for n, p in itertools.product((25_000, 30_000, 50_000), sizes)} - {(25_000, 890_000)}
    assert {layers for *_, relations, layers in cells if relations == 17} == {4, 12}
    assert len(trials) < math.prod(map(len, map(set, zip(*cells, strict=True))))
