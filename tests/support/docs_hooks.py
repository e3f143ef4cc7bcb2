"""Imports the hooks of the documentation build from docs/hooks, which is not a package."""

from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "hooks"


def load_hook(name: str) -> ModuleType:
    """Import a hook as mkdocs does: with the folder of the hooks on the search path."""
    pytest.importorskip("latex2mathml", reason="pip install -e '.[docs]'")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return import_module(name)
