"""The folder of compiled code."""

import os
import stat
from pathlib import Path

import pytest

from raycap.learner.hardware import COMPILE_CACHE_VARIABLE, use_private_compile_cache


def test_compiled_code_is_kept_where_no_other_user_can_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(COMPILE_CACHE_VARIABLE, "chosen")
    use_private_compile_cache()
    assert os.environ[COMPILE_CACHE_VARIABLE] == "chosen"
    monkeypatch.delenv(COMPILE_CACHE_VARIABLE)
    use_private_compile_cache()
    folder = Path(os.environ[COMPILE_CACHE_VARIABLE])
    assert folder.is_relative_to(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    monkeypatch.delenv(COMPILE_CACHE_VARIABLE)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    use_private_compile_cache()
    assert COMPILE_CACHE_VARIABLE not in os.environ
