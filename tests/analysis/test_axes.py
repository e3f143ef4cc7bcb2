"""Tests of the axes of a sweep: values, labels, default roles, roles from the spec, and refused roles."""

from pathlib import Path
from typing import Any

import pytest

from raycap.analysis.axes import Axis, Role, axes
from raycap.plan.expand import expand
from raycap.spec.document import SpecError
from raycap.spec.file import load_sweep

SPECS = Path(__file__).parents[2] / "sweeps" / "specs"


def axes_in(spec: str, *overrides: str) -> dict[str, Axis]:
    loaded = load_sweep(str(SPECS / f"{spec}.yaml"), overrides)
    return {axis.path: axis for axis in axes(expand(loaded), loaded.spec.analysis)}


@pytest.mark.parametrize(
    ("override", "roles"),
    [
        ("grid.training.optimizer.lr=[0.01,0.02]", {"training.optimizer.lr": Role.NUISANCE}),
        ("grid.training.length.exposures=[10,20]", {"training.length.exposures": Role.NUISANCE}),
        ("grid.training.optimizer=[{kind: adamw},{kind: muon}]", {"training.optimizer": Role.NUISANCE}),
        ("grid.profiles.num_profiles=[500,1000]", {"profiles.num_profiles": Role.TREATMENT}),
        ("grid.model.num_layers=[1,2]", {"model.num_layers": Role.TREATMENT}),
        ("grid.training.curriculum=[[]]", {}),  # one value is no axis
        ("grid={model.num_layers: [1, 2]}", {"model.num_layers": Role.SIZE}),
    ],
)
def test_axes_have_default_roles(override: str, roles: dict[str, Role]) -> None:
    found = {path: axis.role for path, axis in axes_in("grid", override).items()}
    widths = {} if "grid={" in override else {"model.hidden_size": Role.SIZE, "training.seed": Role.SEED}
    assert found == widths | roles


POINTS = (
    "points=[{model.hidden_size: 10, profiles.num_profiles: 600, training.seed: [0, 1, 2]}, {model.hidden_size: 12, "
)
POINTS += (
    "profiles.num_profiles: 900}, {model.hidden_size: 14, profiles.num_profiles: 990, training.optimizer.lr: 0.01}]"
)


def test_a_field_that_follows_the_size_is_not_compared_unless_the_spec_says_so() -> None:
    grid = ("grid={}", POINTS)
    found = axes_in("grid", *grid)
    assert {path: axis.role for path, axis in found.items()} == {
        "model.hidden_size": Role.SIZE,
        "profiles.num_profiles": Role.SIZE,
        "training.seed": Role.SEED,
        "training.optimizer.lr": Role.NUISANCE,
    }
    assert (
        axes_in("grid", *grid, "analysis.compare=[profiles.num_profiles]")["profiles.num_profiles"].role
        is Role.TREATMENT
    )
    for more in ("[800, 900]", "600"):  # two values at one size, and two sizes with one value
        points = POINTS.replace("profiles.num_profiles: 900}", f"profiles.num_profiles: {more}}}")
        assert axes_in("grid", "grid={}", points)["profiles.num_profiles"].role is Role.TREATMENT


def test_every_trial_has_a_value_of_an_axis_that_only_some_points_set() -> None:
    loaded = load_sweep(str(SPECS / "grid.yaml"), ("grid={}", POINTS))
    trials = expand(loaded)
    for axis in axes(trials, loaded.spec.analysis):
        section, *fields = axis.path.split(".")
        for trial in trials:
            value = trial.spec.model_dump(mode="json")[section]
            for field in fields:
                value = value[field]
            assert axis.values[axis.index(trial)] == value


def test_the_spec_overrides_the_default_roles() -> None:
    grid = ("grid.training.optimizer.lr=[0.01,0.02]", "grid.profiles.num_relations=[2,4]")
    found = axes_in(
        "grid", *grid, "analysis.compare=[training.optimizer.lr]", "analysis.nuisance=[profiles.num_relations]"
    )
    assert found["training.optimizer.lr"].role is Role.TREATMENT
    assert found["profiles.num_relations"].role is Role.NUISANCE


def test_values_are_in_the_order_of_the_grid_and_found_by_trial() -> None:
    loaded = load_sweep(str(SPECS / "grid.yaml"), ("grid.training.optimizer.lr=[0.02,0.01]",))
    trials = expand(loaded)
    rate = next(axis for axis in axes(trials, loaded.spec.analysis) if axis.label == "lr")
    assert rate.values == (0.02, 0.01)
    assert [trial.spec.training.optimizer.lr for trial in trials] == [rate.values[rate.index(t)] for t in trials]


def test_labels_are_unique() -> None:
    found = axes_in("grid", "grid.profiles.seed=[0,1]")
    assert {axis.label for axis in found.values()} == {"hidden_size", "training.seed", "profiles.seed"}


@pytest.mark.parametrize(
    ("override", "shown"),
    [
        ("analysis.compare=[model.hidden]", "model.hidden_size"),  # the nearest axis
        ("analysis.nuisance=[training.seed]", "training.seed"),
        ("analysis={nuisance: [model.hidden_size], compare: [model.hidden_size]}", "model.hidden_size"),
    ],
)
def test_roles_of_other_fields_are_refused(override: str, shown: str) -> None:
    with pytest.raises(SpecError) as refused:
        load_sweep(str(SPECS / "grid.yaml"), (override,))
    (problem,) = refused.value.problems
    assert "analysis" in problem
    assert shown in problem


def test_the_place_of_a_refused_role_is_that_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "roles.yaml"
    lines: list[Any] = ["grid:", "  model.hidden_size: [16, 32]", "analysis:", "  nuisance: [training.lr]"]
    path.write_text("\n".join(lines))
    with pytest.raises(SpecError) as refused:
        load_sweep(str(path))
    assert f"{path}:4:14" in refused.value.problems[0]


def test_every_value_of_a_section_is_described() -> None:
    axis = axes_in("grid", "grid.model.mlp=[{},null,{gated: false}]")["model.mlp"]
    texts = {axis.describe(index) for index in range(3)}
    assert len(texts) == 3
    assert all("mlp" in text for text in texts)
