"""Overrides take effect at every point of the grid, or are refused with the override that does."""

import itertools
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.cli import app
from raycap.commands.arguments import Overrides
from raycap.spec import TrialSpec
from raycap.spec.document import SpecError
from raycap.spec.file import load_sweep

ROOT = Path(__file__).parents[2]
HELP = get_args(Overrides)[1].help
"""Help of the argument that takes overrides."""
SPEC = """\
# Which override takes effect?
trial:
  profiles: {num_profiles: 100}
  model: {num_layers: 2, hidden_size: 16, heads: {num_heads: 1}}
  training: {length: {exposures: 5}, optimizer: {lr: 0.01}}
grid:
  GRID
"""


def load(folder: Path, grid: str, *overrides: str) -> list[TrialSpec]:
    (folder / "spec.yaml").write_text(SPEC.replace("GRID", grid))
    return [point.trial for point in load_sweep(str(folder / "spec.yaml"), overrides).points]


@pytest.mark.parametrize(
    ("grid", "override", "instead"),
    [
        ("training.seed: [0, 1]", "trial.training.seed=3", "grid.training.seed=[3]"),
        ("training.seed: [0, 1]", "trial.training.seed=banana", "grid.training.seed=[banana]"),
        ("training.seed: [0, 1]", "trial.training={seed: 3, batch_size: 8}", "grid.training.seed=[3]"),
        ("training.seed: [0, 1]", "trial.training=null", "grid={}"),
        ("training.length: [{exposures: 5}]", "trial.training.length.exposures=2", "grid.training.length=[{exposures: 2}]"),
        ("training.length: [{steps: 5}]", "trial.training.length.exposures=2", "grid.training.length=[{exposures: 2}]"),
        ("training.optimizer: [{lr: 0.2}]", "trial.training.optimizer.lr=0.1", "grid.training.optimizer=[{lr: 0.1}]"),
        ("training: [{seed: 1}]", "trial.training.seed=0x", "grid.training=[{seed: 0x}]"),
        ("model.heads: [{num_heads: 1}]", "trial.model.heads.num_heads=2", "grid.model.heads=[{num_heads: 2}]"),
    ],
)  # fmt: skip
def test_an_override_of_what_the_grid_varies_is_refused(grid: str, override: str, instead: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, grid, override)
    first = caught.value.problems[0]
    axis = grid.partition(":")[0]
    assert override.partition("=")[0] in first
    assert axis in first
    assert shlex.quote(instead) in first


def test_the_override_that_the_error_names_takes_effect(tmp_path: Path) -> None:
    assert [t.training.seed for t in load(tmp_path, "training.seed: [0, 1]", "grid.training.seed=[3]")] == [3]
    optimizers = "training.optimizer: [{kind: adamw}, {kind: muon}]"
    for override in ("grid.training.optimizer.lr=[0.1]", "trial.training.optimizer.lr=0.1"):
        assert [trial.training.optimizer.lr for trial in load(tmp_path, optimizers, override)] == [0.1] * 2


def test_an_override_of_what_an_entry_of_points_varies_is_refused(tmp_path: Path) -> None:
    sweep = "training.seed: [0, 1]\npoints: [{}, {training.seed: [2, 3]}, {model.num_layers: 3}]"
    with pytest.raises(SpecError) as caught:
        load(tmp_path, sweep, "trial.training.seed=4")
    overrides = shlex.split(caught.value.problems[0].partition("; use ")[2])
    assert overrides == ["grid.training.seed=[4]", "points.1.training.seed=[4]"]
    assert {trial.training.seed for trial in load(tmp_path, sweep, *overrides)} == {4}
    with pytest.raises(SpecError):
        load(tmp_path, sweep, "trial.model.num_layers=3", "trial.model.num_layers=1")
    assert load(tmp_path, sweep, "points.2.model.num_layers=1")[-1].model.num_layers == 1


@pytest.mark.parametrize(
    "override", ["points.3.training.seed=1", "points.x.training.seed=1", "exclude.0.training.seed=1"]
)
def test_an_override_of_an_entry_that_does_not_exist_is_refused(override: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load(tmp_path, "training.seed: [0, 1]\npoints: [{}, {training.seed: [2, 3]}]", override)
    assert override.partition("=")[0] in caught.value.problems[0]


@pytest.mark.parametrize(
    "overrides",
    [
        ("trial.training={length: {steps: 3}}",),  # the axis still sets the seed
        ("trial.training.batch_size=8",),
        ("trial={training: {seed: 3}}",),  # as in a file
        ("trial.training={}", "trial.training.length={steps: 3}"),
        ("trial.training.seed=3", "grid={}"),
    ],
)
def test_an_override_beside_the_axes_is_accepted(overrides: tuple[str, ...], tmp_path: Path) -> None:
    assert load(tmp_path, "training.seed: [4]", *overrides)[0].training.seed == (3 if "grid={}" in overrides else 4)


FIELDS: dict[str, list[Any]] = {
    "training.seed": [0, 1],
    "training.batch_size": [8, 16],
    "training.optimizer.lr": [0.25, 0.5],
    "training.optimizer": [{"lr": 0.75}, {"warmup_steps": 7}],
    "training.length.exposures": [3, 4],
    "training.length": [{"exposures": 6}],
    "training": [{"seed": 5}, {"optimizer": {"lr": 0.125}}, {"length": {"exposures": 9}, "batch_size": 32}],
    "model.heads.num_heads": [2, 4],
    "model.heads": [{"num_heads": 8}],
}


def leaves(value: Any, path: str) -> list[tuple[str, Any]]:
    """Return the paths and values of the scalars in a value."""
    if not isinstance(value, dict):
        return [(path, value)]
    return list(itertools.chain.from_iterable(leaves(inner, f"{path}.{key}") for key, inner in value.items()))


def text(value: Any) -> str:
    return re.sub(r'"', "", str(value).replace("'", '"'))


@settings(max_examples=150, deadline=None)
@given(
    axes=st.lists(st.sampled_from(sorted(FIELDS)), max_size=3, unique=True),
    chosen=st.lists(st.sampled_from(sorted(FIELDS)), min_size=1, max_size=2, unique=True),
    data=st.data(),
)
def test_every_override_takes_effect_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, axes: list[str], chosen: list[str], data: st.DataObject
) -> None:
    overrides = {path: data.draw(st.sampled_from(FIELDS[path])) for path in chosen}
    nested = any(a != b and b.startswith(f"{a}.") for a in chosen for b in chosen)
    grid = "{" + ", ".join(f"{axis}: {text(FIELDS[axis])}" for axis in axes) + "}"
    try:
        trials = load(
            tmp_path_factory.mktemp("spec"), grid, *(f"trial.{path}={text(value)}" for path, value in overrides.items())
        )
    except SpecError as error:
        assert all("grid" in problem or "override" in problem for problem in error.problems)
        assert axes or nested
        return
    for trial in trials:
        tree = dict(leaves(trial.model_dump(mode="json"), ""))
        for path, value in () if nested else overrides.items():
            for leaf, expected in leaves(value, f".{path}"):
                assert tree[leaf] == expected


def test_the_overrides_in_the_help_take_effect() -> None:
    help_texts = [command.callback.__doc__ or "" for command in app.registered_commands if command.callback]
    commands = [
        shlex.split(line)
        for text in help_texts
        for line in text.splitlines()
        if " specs/" in line and "'mail" not in line
    ]
    shown = [
        (word, tuple(w for w in words if re.match(r"(trial|grid|execution)\.", w)))
        for words in commands
        for word in words
        if word.startswith("specs/")
    ]
    shown += [("specs/grid.yaml", (override,)) for override in re.findall(r"(?:trial|grid)\.[\w.]+=[^\s']+\w\]?", HELP)]
    assert len([overrides for _, overrides in shown if overrides]) >= 4
    for spec, overrides in shown:
        load_sweep(str(ROOT / "sweeps" / spec), overrides)
