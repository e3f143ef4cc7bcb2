"""Saved models that someone has made or changed: only known, regular, undamaged files without code are copied."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from raycap.spec import Fill, ParentModel, ParentTrial, ProfilesByCount
from raycap.storage import Storage, model_folder
from raycap.storage.saved_model import (
    CODE_SETTINGS,
    CONFIG,
    DIGEST_FILE,
    MAX_BYTES,
    MODEL_FILES,
    TOKENIZER_CONFIG,
    WEIGHTS,
    copy_model,
    digests,
    parent_model,
)

TRIAL = "0123456789ab"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The folder of a saved model in the storage `runs`. Its settings are arbitrary."""
    folder = tmp_path / "runs" / model_folder(TRIAL)
    folder.mkdir(parents=True)
    for name in MODEL_FILES:
        (folder / name).write_text(json.dumps({"name": name}))
    save_file({"weight": np.zeros(3)}, folder / WEIGHTS)
    (folder / DIGEST_FILE).write_text(digests(folder))
    (tmp_path / "secret").write_text("{}")
    return folder


def copy(folder: Path) -> list[str]:
    """Copy the model and return the names of the copied files."""
    target = folder.parents[3] / "copy"
    target.mkdir()
    copy_model(Storage.at(str(folder.parents[2])), model_folder(TRIAL), target)
    return sorted(path.name for path in target.iterdir())


def test_only_the_files_of_a_model_are_copied(model: Path) -> None:
    for extra in ("pytorch_model.bin", "evil.py", "README.md", "chat_template.jinja", "generation_config.json"):
        (model / extra).write_text("anything")
    (model / "folder").mkdir()
    (model / "notes.txt").symlink_to("/etc/passwd")
    os.mkfifo(model / "pipe")
    assert copy(model) == sorted(MODEL_FILES)


def exchange(name: str, make: Callable[[Path, Path], object]) -> Callable[[Path], object]:
    """Return a function that replaces a file of the model by what `make` puts at its path; its target is a good copy."""

    def change(model: Path) -> None:
        target = model.parents[3] / "target"
        (model / name).rename(target)
        make(model / name, target)

    return change


def link_folder(folder: Path) -> None:
    elsewhere = folder.parents[len(folder.parts) - folder.parts.index("runs") - 1] / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere)


def settings(name: str, **values: object) -> Callable[[Path], object]:
    return lambda model: rewrite(model, name, json.dumps({"inner": [values]}))


def rewrite(model: Path, name: str, text: str) -> None:
    """Change a file of the model and update its digest, so that it matches."""
    (model / name).write_text(text)
    (model / DIGEST_FILE).write_text(digests(model))


def huge(path: Path, target: Path) -> None:
    with path.open("wb") as file:
        file.truncate(MAX_BYTES.get(path.name, shutil.disk_usage(path.parent).free + 2**30) + 1)


HOSTILE: dict[str, tuple[Callable[[Path], object], tuple[str, ...]]] = {
    **{f"{name} is a link": (exchange(name, lambda path, target: path.symlink_to(target)), (name, "symbolic link"))
       for name in (*MODEL_FILES, DIGEST_FILE)},
    **{f"{name} is a pipe": (exchange(name, lambda path, target: os.mkfifo(path)), (name, "regular file"))
       for name in (*MODEL_FILES, DIGEST_FILE)},
    **{f"{name} is a folder": (exchange(name, lambda path, target: path.mkdir()), (name, "regular file"))
       for name in (*MODEL_FILES, DIGEST_FILE)},
    **{f"{name} is missing": (lambda model, name=name: (model / name).unlink(), (name, "missing"))
       for name in (*MODEL_FILES, DIGEST_FILE)},
    **{f"{name} is huge": (exchange(name, huge), (name, "bytes")) for name in MODEL_FILES},
    **{f"{name} is damaged": (lambda model, name=name: (model / name).write_text('{"a": 1}'), (name, "digest"))
       for name in MODEL_FILES},
    **{f"{name} has {code}": (settings(name, **{code: "evil.Model"}), (name, code))
       for name in (CONFIG, TOKENIZER_CONFIG) for code in sorted(CODE_SETTINGS)},
    "a device": (exchange(CONFIG, lambda path, target: path.symlink_to("/dev/zero")), (CONFIG, "symbolic link")),
    "a dangling link": (exchange(CONFIG, lambda path, target: path.symlink_to("/nowhere")), (CONFIG, "symbolic link")),
    "an escaped name of a setting": (lambda model: rewrite(model, CONFIG, '{"\\u0061uto_map": {}}'), ("auto_map",)),
    "settings that are a list": (lambda model: rewrite(model, CONFIG, "[1]"), (CONFIG, "object")),
    "deep settings": (lambda model: rewrite(model, TOKENIZER_CONFIG, "[" * 100_000), (TOKENIZER_CONFIG,)),
    "settings in another encoding": (lambda model: rewrite(model, CONFIG, "{}\x00"), (CONFIG,)),
    "pickled weights": (lambda model: rewrite(model, WEIGHTS, "cos\nsystem\n(S'true'\ntR."), (WEIGHTS, "format")),
    "weights with a huge header": (lambda model: rewrite(model, WEIGHTS, "\x7f" * 8 + "{}"), (WEIGHTS, "format")),
    "the digest of an earlier version": (lambda model: (model / DIGEST_FILE).write_text("0" * 64), ("earlier version",)),
    "an empty digest file": (lambda model: (model / DIGEST_FILE).write_text(""), ("digest", CONFIG)),
    "a linked folder of the model": (lambda model: link_folder(model), ("model", "symbolic link")),
    "a linked folder of the trial": (lambda model: link_folder(model.parent), (TRIAL, "symbolic link")),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_model_is_refused_in_one_line_with_the_file(case: str, model: Path) -> None:
    change, values = HOSTILE[case]
    change(model)
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is checked below
        copy(model)
    message = str(caught.value)
    assert "\n" not in message
    assert all(value in message for value in values), message
    people = ProfilesByCount(num_profiles=5)
    if TOKENIZER_CONFIG not in case and "deep" not in case:  # a fill trial does not read this file
        fill = Fill(parent=ParentTrial(trial_id=TRIAL), profiles=people)
        with pytest.raises(ValueError, match=r"^fill\.parent: "), parent_model(fill, Storage.at(str(model.parents[2]))):
            pass


def test_a_parent_by_path_may_itself_be_a_link_but_its_files_may_not(model: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(model)
    fill = Fill(parent=ParentModel(path=str(tmp_path / "linked")), profiles=ProfilesByCount(num_profiles=5))
    with parent_model(fill, Storage.at(str(tmp_path))) as folder:
        assert (folder / CONFIG).read_bytes() == (model / CONFIG).read_bytes()
    exchange(CONFIG, lambda path, target: path.symlink_to(target))(model)
    refused = pytest.raises(ValueError, match="symbolic link")
    with refused, parent_model(fill, Storage.at(str(tmp_path))):
        pass
