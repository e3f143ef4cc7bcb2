"""Lookup of the sweep or trial that is the argument of `report`, `status`, `ui`, `sync`, `compare` or `export`.

The argument is a sweep file, the folder or URI of a sweep or of a trial, or a name that is looked up in the storage of
`--storage`: the name of a sweep, the id or label of a trial, or a unique prefix of an id or label.
"""

import os
from collections.abc import Iterator

from raycap import pipeline
from raycap.commands.arguments import open_sweep, planned_trial
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec.document import SpecError, did_you_mean
from raycap.spec.locations import LocationError, is_uri, refuse_shell_syntax
from raycap.spec.uris import join_uri
from raycap.storage import TRIALS_FOLDER, Storage, split_folder
from raycap.storage.sweep_folder import InvalidRecordError, NotASweepError, SweepFolder

SPEC_ENDINGS = (".yaml", ".yml")
MAX_LISTED = 8
"""Largest number of names that an error lists."""


def is_spec(argument: str) -> bool:
    """Return whether an argument is the path of a sweep file; the file need not exist."""
    return argument.lower().endswith(SPEC_ENDINGS) or os.path.isfile(argument)


def find_sweep(
    argument: str, *needed: str, overrides: tuple[str, ...] = (), storage: str = "runs"
) -> tuple[SweepRecord, Storage]:
    """Return the sweep that an argument names and its storage; for a trial, the sweep that contains it.

    A sweep file is planned, and its sweep must have run, unless it is a pool.

    Args:
        argument: The argument.
        needed: Files that the sweep's folder must have; by default those of a sweep that has run.
        overrides: Changes to a sweep file.
        storage: Folder or URI in which names, ids and labels are looked up.

    Raises:
        SpecError: There is no such sweep, or there are several. The message lists those that exist.
    """
    if is_spec(argument):
        record, root = pipeline.prepare(argument, overrides)
        if record.spec.pool:
            return record, root
        try:
            SweepFolder(root, record.spec.name).require(*(needed or (SweepFolder.SWEEP, SweepFolder.RUN)))
        except NotASweepError as error:
            raise SpecError([f"{argument}: {error}; run it first: raycap run {argument}"]) from None
        return record, root
    if overrides:
        raise SpecError([f"{argument}: overrides apply to sweep files only; remove {overrides[0]}"])
    if is_path(argument):
        folder, trial_id = _split_trial_folder(argument)
        if trial_id is not None:
            return _sweep_of_trial(trial_id, folder, needed)
        _require_sweep(argument)
        return open_sweep(argument, *needed)
    if (root := _storage(storage)).exists(f"{argument}/{SweepFolder.SWEEP}") and argument:
        return open_sweep(join_uri(storage, argument), *needed)
    return _sweep_of_trial(argument, storage, needed)


def find_trial(argument: str, overrides: tuple[str, ...], storage: str, index: int | None) -> tuple[Storage, str]:
    """Return the storage and the id of the trial that an argument names.

    If the argument names a sweep, it is the trial at `index`, or the only one. Raises SpecError if there is no such trial,
    or if there are several. The message lists those that exist.
    """
    if is_spec(argument):
        sweep, root = pipeline.prepare(argument, overrides)
        return root, _trial_at(sweep, argument, index).trial_id
    folder, trial_id = _split_trial_folder(argument) if is_path(argument) else (storage, argument)
    if trial_id is None:
        sweep, root = find_sweep(argument, SweepFolder.SWEEP)
        return root, _trial_at(sweep, argument, index).trial_id
    root = _storage(folder)
    found = sorted(name for name in root.names(TRIALS_FOLDER) if name.startswith(trial_id))
    if len(found) > 1 and trial_id not in found:
        listed = ", ".join(found[:MAX_LISTED]) + (", ..." if len(found) > MAX_LISTED else "")
        raise SpecError([f"{argument}: is a prefix of {len(found)} trials: {listed}; give a longer one"])
    if found:
        return root, found[0]
    if not is_path(argument) and root.exists(f"{argument}/{SweepFolder.SWEEP}"):
        sweep, root = find_sweep(argument, SweepFolder.SWEEP, storage=storage)
        return root, _trial_at(sweep, argument, index).trial_id
    return root, next(iter(_trials_named(trial_id, folder).values())).trial_id


def is_path(argument: str) -> bool:
    """Return whether an argument is the path or URI of a folder rather than a name that is looked up in a storage."""
    return is_uri(argument) or "/" in argument or (bool(argument) and os.path.isdir(argument))


def _split_trial_folder(argument: str) -> tuple[str, str | None]:
    """Return the storage and the trial id of the folder of a trial; the id is None for any other folder."""
    trials, trial_id = split_folder(argument)
    storage, parent = split_folder(trials)
    return storage, trial_id if parent == TRIALS_FOLDER else None


def _storage(location: str) -> Storage:
    try:
        refuse_shell_syntax(location)
        return Storage.at(location)
    except (LocationError, ValueError, OSError) as error:
        raise SpecError([f"--storage {location}: {error}; give the folder or URI that stores the sweeps"]) from error


def _require_sweep(folder: str) -> None:
    """Raise SpecError if a folder is not that of a sweep. The message lists sweeps inside the folder or beside it."""
    try:
        opened = SweepFolder.at(folder)
        if opened.exists(SweepFolder.SWEEP):
            return
        inside, siblings = _sweeps(SweepFolder.at(join_uri(folder, "x")).storage), _sweeps(opened.storage)
    except (ValueError, OSError) as error:
        raise SpecError([f"{folder}: {error}; correct the path or URI, or make it accessible"]) from error
    parent = split_folder(folder)[0] if is_uri(folder) else folder.rstrip("/").rpartition("/")[0]
    names = [join_uri(folder, name) for name in inside] or [
        join_uri(parent, name) if parent else name for name in siblings
    ]
    problem = f"{opened.location}: not the folder of a sweep that has run (it lacks {SweepFolder.SWEEP})"
    raise SpecError([f"{problem}{_hint(folder, names)}"])


def _sweeps(storage: Storage) -> list[str]:
    """Return the names of the sweeps in a storage."""
    return sorted(name for name, files in storage.folders("").items() if SweepFolder.SWEEP in files)


def _hint(argument: str, names: list[str]) -> str:
    """Return the known names as the end of an error."""
    if not names:
        return "; give a sweep file, the folder of a sweep, or --storage if it is elsewhere"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f"{did_you_mean(argument, names)}; the sweeps are: {', '.join(names[:MAX_LISTED])}{more}"


def _sweep_of_trial(name: str, storage: str, needed: tuple[str, ...]) -> tuple[SweepRecord, Storage]:
    found = _trials_named(name, storage)
    if len(found) > 1:
        raise SpecError([f"{name}: is a trial of several sweeps: {', '.join(found)}; give one of them"])
    return open_sweep(join_uri(storage, next(iter(found))), *needed)


def _trials_named(name: str, storage: str) -> dict[str, PlannedTrial]:
    """Return the trial of this id or label, or unique prefix of one, by the names of the sweeps that contain it."""
    root = _storage(storage)
    known = list(_all_trials(root))
    exact = {sweep: trial for sweep, trial in known if name in (trial.trial_id, trial.label)}
    if exact:
        return exact
    matching = [
        (sweep, trial) for sweep, trial in known if trial.trial_id.startswith(name) or trial.label.startswith(name)
    ]
    if len({trial.trial_id for _, trial in matching}) > 1:
        listed = ", ".join(dict.fromkeys(f"{trial.label} ({trial.trial_id})" for _, trial in matching[:MAX_LISTED]))
        raise SpecError([f"{name}: is a prefix of {len(matching)} trials: {listed}; give a longer one"])
    if matching:
        return dict(matching)
    words = [*dict(known), *(word for _, trial in known for word in (trial.label, trial.trial_id))]
    hint = did_you_mean(name, words) or _hint(name, sorted({sweep for sweep, _ in known}))
    raise SpecError([f"{name}: no sweep in {storage} has this name, and no trial this id or label{hint}"])


def _all_trials(root: Storage) -> Iterator[tuple[str, PlannedTrial]]:
    """Yield the trials of all sweeps in a storage with the names of the sweeps."""
    for name in _sweeps(root):
        try:
            record = SweepFolder(root, name).read_sweep()
        except (InvalidRecordError, NotASweepError):  # the next run of that sweep writes it again
            continue
        yield from ((name, trial) for trial in record.trials)


def _trial_at(sweep: SweepRecord, argument: str, index: int | None) -> PlannedTrial:
    """Return the trial at an index, or the only one if there is no index."""
    if index is None and len(sweep.trials) > 1:
        listed = ", ".join(f"{trial.label} ({trial.trial_id})" for trial in sweep.trials[:MAX_LISTED])
        more = ", ..." if len(sweep.trials) > MAX_LISTED else ""
        raise SpecError([f"{argument}: has {len(sweep.trials)} trials: {listed}{more}; give one of them, or --index"])
    return planned_trial(sweep, argument, index or 0)
