"""What commands are given: specs, overrides, folders of sweeps, and what these stand for."""

import json
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from raycap.results import PlannedTrial, SweepRecord
from raycap.spec.file import SpecError
from raycap.storage import Storage, parted


def spec_files() -> list[str]:
    """Sweep files near here, for the shell to complete."""
    return sorted(
        str(path) for pattern in ("*.yaml", "*/*.yaml", "sweeps/specs/*.yaml") for path in Path().glob(pattern)
    )


SpecFile = Annotated[
    str, typer.Argument(metavar="SPEC", help="Sweep file, as given or under sweeps/.", autocompletion=spec_files)
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Changes to it, such as trial.training.seed=3.")
]
OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Only trials whose last run failed.")]
Trials = Annotated[
    str | None,
    typer.Option("--trials", metavar="ID,ID", help="Only these: ids or labels, or as much of them as is unique."),
]
SetName = Annotated[
    str | None, typer.Option("--set-name", metavar="NAME", help="Call the sweep, and its folder, something else.")
]
BudgetOption = Annotated[
    str | None, typer.Option("--budget", help="Stop after so much time, or so many GPU hours: 30m, 2h, 1d, 20gpuh.")
]
NotifyCommand = Annotated[
    str | None,
    typer.Option(
        "--notify-cmd",
        metavar="CMD",
        help="Shell command to run at the end, however it comes; it is told RAYCAP_SWEEP, RAYCAP_STATUS (finished, "
        "failed, refused, budget, interrupted), RAYCAP_FOLDER and RAYCAP_EXIT_CODE.",
    ),
]


def sweep_folders() -> list[str]:
    """Folders of sweeps near here, for the shell to complete."""
    return sorted(str(record.parent) for record in Path().glob("*/*/sweep.json"))


FolderArgument = Annotated[
    str,
    typer.Argument(metavar="FOLDER", help="A sweep's folder or URI, such as runs/grid.", autocompletion=sweep_folders),
]
AsJson = Annotated[bool, typer.Option("--json", help="For programs: print it as JSON.")]


def all_overrides(overrides: list[str] | None, set_name: str | None) -> tuple[str, ...]:
    """All changes to a spec that a command line asks for."""
    renamed = [] if set_name is None else [f"name={json.dumps(set_name)}"]
    return (*(overrides or ()), *renamed)


def open_sweep(folder: str, *needed: str) -> tuple[SweepRecord, Storage]:
    """The sweep whose folder this is, by the name and at the place that the folder has now, and the storage it lies in.

    Raises SpecError where files that are needed are missing: sweep.json and run.json, if not told otherwise.
    """
    files = needed or ("sweep.json", "run.json")
    place, name = parted(folder)
    try:
        storage = Storage.at(place)
        is_there = all(storage.exists(f"{name}/{file}") for file in files)
        content = storage.read(f"{name}/sweep.json") if is_there else b""
    except (ValueError, OSError) as error:
        raise SpecError([f"{folder}: {error}"]) from error
    if not is_there:
        raise SpecError([f"{folder}: not the folder of a sweep that has run (it lacks {' or '.join(files)})"])
    try:
        record = SweepRecord.model_validate_json(content)
    except ValidationError as error:
        told = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in [".".join(map(str, told["loc"]))] if part)
        raise SpecError(
            [f"{folder}/sweep.json: {place}{told['msg']}; run the sweep's spec once more, and it is written anew"]
        ) from None
    is_moved = record.spec.name != name or not _is_at(record.spec.storage, storage)
    now = {"name": name, "storage": storage.root if storage.is_local else place} if is_moved else {}
    return record.model_copy(update={"spec": record.spec.model_copy(update=now)}), storage


def _is_at(place: str, storage: Storage) -> bool:
    try:
        return Storage.at(place).root == storage.root
    except (ValueError, OSError):  # a bucket, say, that it was copied from
        return False


def planned_trial(record: SweepRecord, spec: str, index: int) -> PlannedTrial:
    """The trial at an index of a sweep, named as its spec in errors. Raises SpecError."""
    if not 0 <= index < len(record.trials):
        raise SpecError([f"{spec}: --index must lie in 0..{len(record.trials) - 1}, got {index}"])
    return record.trials[index]
