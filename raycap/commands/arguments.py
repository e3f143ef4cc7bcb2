"""Arguments and options that several commands share, and loading of the sweeps and trials that they name."""

import json
from pathlib import Path
from typing import Annotated

import typer

from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import SweepSpec
from raycap.spec.document import SpecError
from raycap.spec.locations import canonical_location
from raycap.storage import Storage
from raycap.storage.sweep_folder import InvalidRecordError, NotASweepError, SweepFolder


def spec_files() -> list[str]:
    """Return sweep files near the working directory, for shell completion."""
    return sorted(
        str(path) for pattern in ("*.yaml", "*/*.yaml", "sweeps/specs/*.yaml") for path in Path().glob(pattern)
    )


SpecFile = Annotated[
    str, typer.Argument(metavar="SPEC", help="Sweep file, or its path under sweeps/.", autocompletion=spec_files)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the spec, such as trial.training.batch_size=64 or 'grid.training.seed=[3]'.",
    ),
]
OnlyFailed = Annotated[bool, typer.Option("--only-failed", help="Only trials whose last run failed.")]
Trials = Annotated[
    str | None,
    typer.Option("--trials", metavar="ID,ID", help="Only these trials: ids, labels, or unique prefixes of them."),
]
SetName = Annotated[
    str | None, typer.Option("--set-name", metavar="NAME", help="Another name for the sweep and its folder.")
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Stop at this time, these GPU hours or this cost: 30m, 2h, 1d, 20gpuh, 50usd, or several: 2h,50usd.",
    ),
]
NotifyCommand = Annotated[
    str | None,
    typer.Option(
        "--notify-cmd",
        metavar="CMD",
        help="Shell command that is run at the end in any case, with the variables RAYCAP_SWEEP, RAYCAP_STATUS (finished, "
        "failed, refused, budget, interrupted; refused also if Ray died), RAYCAP_FOLDER and RAYCAP_EXIT_CODE.",
    ),
]


def sweep_folders() -> list[str]:
    """Return folders of sweeps near the working directory, for shell completion."""
    return sorted(str(record.parent) for record in Path().glob(f"*/*/{SweepFolder.SWEEP}"))


SweepArgument = Annotated[
    str,
    typer.Argument(
        metavar="SWEEP",
        help="Folder or URI of a sweep, such as runs/grid; its sweep file; or its name, or the id or label of a trial.",
        autocompletion=sweep_folders,
    ),
]
StorageOption = Annotated[
    str,
    typer.Option("--storage", metavar="LOCATION", help="Folder or URI in which names, ids and labels are looked up."),
]
DEFAULT_STORAGE: str = SweepSpec.model_fields["storage"].default
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def all_overrides(overrides: list[str] | None, set_name: str | None) -> tuple[str, ...]:
    """Return all overrides of a command line, including that of `--set-name`."""
    renamed = [] if set_name is None else [f"name={json.dumps(set_name)}"]
    return (*(overrides or ()), *renamed)


def open_sweep(folder: str, *needed: str) -> tuple[SweepRecord, Storage]:
    """Return the sweep in a folder and its storage.

    The name and the storage in the record are replaced by the current ones, because a folder may have been moved or
    renamed. Raises SpecError if one of the needed files is missing (by default sweep.json and, unless the sweep is a pool,
    run.json), or if sweep.json is not valid.
    """
    try:
        opened = SweepFolder.at(folder)
        opened.require(*needed)
        record = opened.read_sweep()
        if not needed and record.spec.pool is None:
            opened.require(SweepFolder.RUN)
    except (NotASweepError, InvalidRecordError) as error:
        raise SpecError([str(error)]) from None
    except (ValueError, OSError) as error:
        raise SpecError([f"{folder}: {error}; give the path or URI of a sweep's folder"]) from error
    storage, name = opened.storage, opened.name
    is_moved = record.spec.name != name or canonical_location(record.storage) != canonical_location(storage.location())
    current = {"name": name, "storage": storage.location()} if is_moved else {}
    return record.model_copy(update={"spec": record.spec.model_copy(update=current)}), storage


def planned_trial(record: SweepRecord, spec: str, index: int) -> PlannedTrial:
    """Return the trial at an index of a sweep. Raises SpecError, which names the spec."""
    if not 0 <= index < len(record.trials):
        raise SpecError([f"{spec}: --index must lie in 0..{len(record.trials) - 1}, got {index}"])
    return record.trials[index]
