"""Execution of the notebook of the manual without Jupyter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebook.ipynb"


def run_notebook(train: Callable[[dict[str, Any]], None] | None = None) -> dict[str, Any]:
    """Execute the code cells in the working directory, and return their variables.

    `train` takes the place of the cell that trains the sweep. It gets the variables before and sets `results`.
    """
    variables: dict[str, Any] = {}
    for number, cell in enumerate(json.loads(NOTEBOOK.read_text())["cells"]):
        if cell["cell_type"] != "code":
            continue
        if train and "train" in cell["metadata"].get("tags", []):
            train(variables)
        else:
            exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), variables)
    return variables
