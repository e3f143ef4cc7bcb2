"""The notebook of the manual runs, with planted results in place of the training of its sweep."""

import json
from pathlib import Path
from typing import Any

import pytest

import raycap
from raycap.storage import Storage, result_path
from raycap.storage.checksum import with_checksum
from tests.support import planted
from tests.support.notebook import NOTEBOOK, run_notebook


def test_every_cell_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def store(variables: dict[str, Any]) -> None:
        record, storage = variables["sweep"]._planned
        storage.write("notebook/sweep.json", record.model_dump_json())
        storage.write("notebook/run.json", planted.RUN.model_dump_json())
        for result in planted.results(record, 1.8).values():
            storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json()))
        variables["results"] = raycap.load(variables["sweep"].folder)

    variables = run_notebook(store)
    assert set(variables["plan"]["state"]) == {"new"}
    assert (variables["plan"]["demanded_bits_per_param"] > 2).all()
    assert set(variables["results"].trials["state"]) == {"finished"}
    assert variables["one"]["bits_per_param"].to_list() == pytest.approx([1.8] * 6)
    assert variables["result"].num_steps == 94
    assert set(Storage.at("runs").names("trials")) == {trial.trial_id for trial in variables["sweep"].trials}


def test_the_notebook_is_stored_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"]] == []
