"""Commands `archive` and `reproduce`: results of a sweep in one file, and its trials run again and compared."""

import os
import shlex
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table

from raycap import pipeline
from raycap.commands.arguments import DEFAULT_STORAGE, StorageOption, SweepArgument, open_sweep
from raycap.commands.interruption import interruptible
from raycap.commands.named import find_sweep
from raycap.pipeline import EXIT_FAILED
from raycap.results import SweepRecord
from raycap.spec.document import SpecError, did_you_mean
from raycap.spec.file import SWEEPS_FOLDER
from raycap.spec.locations import DEFAULT_TRACKING_URI, LocationError, environment_tracking_uri, refuse_shell_syntax
from raycap.storage import Storage
from raycap.storage.archive import ENDING, ArchiveError, pack, unpack
from raycap.storage.sweep_folder import SweepFolder
from raycap.terminal.format import wide_console

if TYPE_CHECKING:
    from raycap.analysis.reproduction import Check, Spread


def archives() -> list[str]:
    """Return archives near the working directory, for shell completion."""
    return sorted(str(path) for pattern in ("*", "sweeps/findings/*") for path in Path().glob(pattern + ENDING))


def archive(
    argument: SweepArgument,
    to: Annotated[
        Path | None, typer.Option("--to", help="File to write; by default NAME.tar.xz in this folder.")
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Write the records of a sweep and the results of its finished trials to one compressed file, without the models.

    Unpacked, the file is a folder of sweeps, on which `report`, `compare` and `raycap.load` work.

    Example:

      raycap archive runs/grid --to grid.tar.xz
    """
    sweep, root = find_sweep(argument, storage=storage)
    pipeline.refuse_pool(sweep, "has no results of its own")
    finished = pipeline.read_analysis(sweep, root).measured.keys()
    file = to or Path(f"{sweep.spec.name}{ENDING}")
    content = pack(SweepFolder(root, sweep.spec.name), finished)
    try:
        file.write_bytes(content)
    except OSError as error:
        raise SpecError([f"--to {file}: cannot be written: {error.strerror}; give another file"]) from None
    print(f"{file}: {len(finished)} of {len(sweep.trials)} trials, {len(content):,} bytes")


def reproduce(
    file: Annotated[
        str,
        typer.Argument(
            metavar="ARCHIVE", help="File of `raycap archive`, or its path under sweeps/.", autocompletion=archives
        ),
    ],
    storage: Annotated[str, typer.Option("--storage", help="Folder or URI for the new results.")] = DEFAULT_STORAGE,
) -> None:
    """Run the sweep of an archive again, and compare every law and difference with the archive's 95 % interval.

    The trials are those of the archive, with the same seeds. The exit code is 0 if all numbers lie within their intervals,
    and 1 if some do not. After an interruption, the same command continues.

    Example:

      raycap reproduce findings/learning_rate.tar.xz
    """
    from raycap.analysis.reproduction import checks, spread

    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="raycap-archive-") as folder:
        archived, root = _open(_find(file), Path(folder))
        published = pipeline.read_analysis(archived, root)
    sweep, root = _moved(archived, storage)
    again = shlex.join(["raycap", "reproduce", file, "--storage", storage])
    with interruptible(at_kill=lambda: None):
        code = pipeline.run_planned(sweep, root, pipeline.Invocation(file, again, again), wide_console(), began)
    if code:
        raise typer.Exit(code)
    new = pipeline.read_analysis(sweep, root)
    found = checks(published, new)
    _show(found, spread(published, new))
    raise typer.Exit(0 if all(one.is_reproduced for one in found) else EXIT_FAILED)


def _find(file: str) -> Path:
    candidates = (Path(file), SWEEPS_FOLDER / file)
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    known = sorted(str(path) for path in SWEEPS_FOLDER.glob(f"findings/*{ENDING}"))
    hint = did_you_mean(str(candidates[1]), known) or (f"; known are: {', '.join(known)}" if known else "")
    raise SpecError([f"{file}: no such file, neither as given nor under {SWEEPS_FOLDER}/{hint}"])


def _open(file: Path, folder: Path) -> tuple[SweepRecord, Storage]:
    """Unpack an archive into a folder and return its sweep. Raises SpecError."""
    try:
        name = unpack(file, folder)
    except (ArchiveError, OSError) as error:
        raise SpecError([f"{file}: {error}; give a file of `raycap archive`"]) from None
    return open_sweep(str(folder / name))


def _moved(sweep: SweepRecord, location: str) -> tuple[SweepRecord, Storage]:
    """Return the sweep with a new storage and with the MLflow of this environment, and the storage. Raises SpecError."""
    try:
        refuse_shell_syntax(location)
        storage = Storage.at(location)
        uri = environment_tracking_uri() or DEFAULT_TRACKING_URI
    except (LocationError, ValueError) as error:
        raise SpecError([f"--storage {location}: {error}"]) from None
    tracking = sweep.spec.tracking.model_copy(update={"uri": uri})
    spec = sweep.spec.model_copy(update={"storage": location, "tracking": tracking})
    return sweep.model_copy(update={"spec": spec, "working_directory": os.getcwd()}), storage


def _show(found: "Sequence[Check]", trials: "Spread") -> None:
    shown = Table(box=SIMPLE)
    for header in ("quantity", "published, 95 % interval", "again", ""):
        shown.add_column(header)
    for one in found:
        verdict = "within" if one.is_reproduced else "outside"
        estimate, low, high = one.published
        shown.add_row(one.quantity, f"{estimate:.3f} [{low:.3f}, {high:.3f}]", f"{one.again:.3f}", verdict)
    console = wide_console()
    console.print(shown)
    within = sum(one.is_reproduced for one in found)
    console.print(f"{within} of {len(found)} numbers lie within the published intervals.", style="bold")
    if trials.num_trials:
        console.print(
            f"Learned bits of {trials.num_trials} trials differ by {trials.median:.2%} in the median and by at most "
            f"{trials.largest:.2%}."
        )
