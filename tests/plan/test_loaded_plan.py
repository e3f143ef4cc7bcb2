"""Plans of loaded people: what cannot be trained is refused with file, column, row and value; what is unused is named."""

from pathlib import Path

import numpy as np
import pytest

from raycap.plan.expand import expand
from raycap.results import PlannedTrial
from raycap.spec.document import SpecError
from raycap.spec.file import load_sweep
from tests.support.loaded import NAMES, people, targets, write

SPEC = """\
# What do loaded people cost?
name: loaded
trial:
  profiles: {source: disk, path: people.parquet}
  model: {num_layers: 1, hidden_size: 8, heads: {num_heads: 1}}
  training: {length: {steps: 3}, batch_size: 8, num_evaluations: 1}
"""


@pytest.fixture(autouse=True)
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loaded.yaml").write_text(SPEC)


def planned(*overrides: str) -> PlannedTrial:
    (trial,) = expand(load_sweep("loaded.yaml", overrides))
    return trial


@pytest.mark.parametrize("value", ["", "1999-01-01", NAMES[3], "A <|end|> B"])
@pytest.mark.parametrize(
    "overrides", [(), ("trial.questions={hops: [1, 2]}",), ("trial.questions={kind: biographies}",)]
)
def test_values_that_break_texts_are_refused(value: str, overrides: tuple[str, ...]) -> None:
    write(Path("people.parquet"), people(employer=["Acme", value] * 20, parent=targets([*range(40)])))
    with pytest.raises(SpecError) as caught:
        planned(*overrides)
    (problem,) = caught.value.problems
    for part in ("loaded.yaml:4:3", "people.parquet", "column employer", "row 1", value):
        assert part in problem
    assert "fill" not in problem


def test_unused_columns_are_named_in_the_plan() -> None:
    write(Path("people.parquet"), people(note=[1] * 40, bio=["x"] * 40))
    (warning,) = [warning for warning in planned().warnings if "column" in warning]
    assert "'note', 'bio'" in warning
    write(Path("people.parquet"), people())
    assert not any("column" in warning for warning in planned().warnings)


def test_people_without_any_information_are_refused() -> None:
    same = {name: [people(1)[name][0].as_py()] * 40 for name in ("birth_date", "birth_city", "university", "employer")}
    write(Path("people.parquet"), people(**same))
    with pytest.raises(SpecError, match=r"people\.parquet: every column has only one value"):
        planned()


def test_data_bits_come_from_the_facts() -> None:
    write(Path("people.parquet"), people(300, employer=["Acme"] * 270 + ["Bolt"] * 30, birth_city=["Paris"] * 300))
    facts = planned().populations[0]
    entropy = -(0.9 * np.log2(0.9) + 0.1 * np.log2(0.1))
    assert facts.attribute_entropies_bits["employer"] == pytest.approx(entropy)
    assert facts.attribute_entropies_bits["birth_city"] == 0
    with_one_city = planned().dataset_bits["independent"]
    write(Path("people.parquet"), people(300, employer=["Acme"] * 300, birth_city=["Paris"] * 300))
    assert with_one_city - planned().dataset_bits["independent"] == pytest.approx(300 * entropy)
