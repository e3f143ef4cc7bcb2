"""Pools: the union of the trials of several sweeps, which is analysed like one sweep and trains nothing."""

import json
from collections.abc import Iterable, Sequence
from typing import Any

from raycap.analysis.axes import axes_of
from raycap.analysis.checks import UnreadableResult
from raycap.analysis.stored import read_result
from raycap.plan.expand import dataset_bits
from raycap.plan.labels import TAGS, label, with_unique_labels
from raycap.results import PlannedTrial, SweepRecord
from raycap.spec import SweepSpec
from raycap.spec.document import SpecError, did_you_mean, format_value
from raycap.spec.locations import absolute_location
from raycap.storage import DamagedError, Storage, result_path
from raycap.storage.checksum import verify_checksum
from raycap.storage.files import split_folder
from raycap.storage.sweep_folder import InvalidRecordError, NotASweepError, SweepFolder

MISSING = object()
"""Value of a field that a trial does not have."""


def pooled_trials(spec: SweepSpec) -> list[PlannedTrial]:
    """Return the trials of a pool. Each counts once, and its coordinates are the fields that vary over the pool.

    Raises SpecError if a sweep cannot be read, or if no trial passes the filters.
    """
    assert spec.pool is not None
    sweeps = list(map(_read_sweep, spec.pool.sweeps))
    of_sweeps = [[trial for trial in sweep.trials if _passes(trial, spec.pool.where)] for sweep in sweeps]
    if not any(of_sweeps):
        raise SpecError([_why_empty(spec.pool.where, [trial for sweep in sweeps for trial in sweep.trials])])
    trials = {trial.trial_id: trial for members in of_sweeps for trial in members}
    coordinates = _coordinates([[trial.trial_id for trial in members] for members in of_sweeps], trials)
    return with_unique_labels(
        [
            trial.model_copy(
                update={
                    "coordinates": coordinates[trial_id],
                    "label": label(trial.spec, coordinates[trial_id], trial.populations[0].num_profiles),
                    "dataset_bits": dataset_bits(trial.populations, trial.spec.questions, spec.analysis),
                }
            )
            for trial_id, trial in trials.items()
        ]
    )


def check_roles(record: SweepRecord) -> None:
    """Raise SpecError if `analysis.nuisance` or `analysis.compare` names no axis of a pool."""
    axes = [axis.path for axis in axes_of(record)]
    problems = [
        f"analysis.{field}: must be an axis of the pool, got {format_value(path)}; the axes are: {', '.join(axes)}"
        for field in ("nuisance", "compare")
        for path in getattr(record.spec.analysis, field)
        if path not in axes
    ]
    if problems:
        raise SpecError(problems)


def write_pool(record: SweepRecord, storage: Storage) -> None:
    """Write the record of a pool, and copy the results of its trials from other storages to that of the pool.

    Raises SpecError if two storages have different results of one trial.
    """
    assert record.spec.pool is not None
    locations = [absolute_location(sweep, record.working_directory) for sweep in record.spec.pool.sweeps]
    others = dict.fromkeys(parent for parent, _ in map(split_folder, locations))
    for other in map(Storage.at, others):
        if other.location() == storage.location():
            continue
        for trial in record.trials:
            path = result_path(trial.trial_id)
            if not other.exists(path):
                continue
            if not storage.exists(path):
                storage.write(path, other.read(path))
            elif not _agree(storage.read(path), other.read(path)):
                places = " and ".join(place.location(path) for place in (storage, other))
                raise SpecError(
                    [f"{trial.trial_id} {trial.label}: its results differ: {places}; delete the one that is wrong"]
                )
    SweepFolder(storage, record.spec.name).write_sweep(record)


def _agree(one: bytes, other: bytes) -> bool:
    """Return whether two stored results have equal measurements; they may differ in times and provenance."""
    if one == other:
        return True
    try:
        first, second = (read_result(verify_checksum(data)) for data in (one, other))
    except (DamagedError, UnreadableResult):  # the report names it
        return True
    measured = [
        (r.num_steps, r.stop_reason, [e.model_copy(update={"train_seconds": 0.0}) for e in r.evaluations])
        for r in (first, second)
    ]
    return measured[0] == measured[1]


def _read_sweep(location: str) -> SweepRecord:
    try:
        return SweepFolder.at(location).read_sweep()
    except (NotASweepError, InvalidRecordError) as error:
        raise SpecError([f"pool.sweeps: {error}"]) from None
    except (ValueError, OSError) as error:
        raise SpecError([f"pool.sweeps: {location}: {error}"]) from error


def _passes(trial: PlannedTrial, where: dict[str, list[Any]]) -> bool:
    return all(any(_key(_value(trial, path)) == _key(value) for value in values) for path, values in where.items())


def _why_empty(where: dict[str, list[Any]], trials: Sequence[PlannedTrial]) -> str:
    """Return the error that no trial passes: a filter names an unknown field, or no trial has its values."""
    known = dict.fromkeys(path for trial in trials for path in (*trial.coordinates, *_leaves(_tree(trial))))
    for path in where:
        if all(_value(trial, path) is MISSING for trial in trials):
            return f"pool.where.{path}: no trial has this field{did_you_mean(path, known)}"
    return f"pool.where: none of {len(trials)} trials has these values: {format_value(where)}"


def _coordinates(of_sweeps: Sequence[Sequence[str]], trials: dict[str, PlannedTrial]) -> dict[str, dict[str, Any]]:
    """Return the coordinates of each trial of a union, by trial_id.

    Axes that all trials have are kept. Other fields that vary over the union become axes if the axes before them do not
    determine their values, or if they differ only from sweep to sweep. A field that an axis determines, such as a
    population that was solved from target_bits, is no axis.

    Args:
        of_sweeps: ids of the trials of each sweep.
        trials: all trials by id.
    """
    first, *others = trials.values()
    shared = [path for path in first.coordinates if all(path in trial.coordinates for trial in others)]
    found = {trial_id: {path: trial.coordinates[path] for path in shared} for trial_id, trial in trials.items()}
    trees = {trial_id: _tree(trial) for trial_id, trial in trials.items()}
    for path in _varied(list(trees.values())):
        if any(path == axis or path.startswith(f"{axis}.") for axis in shared):
            continue
        values = {trial_id: _at(tree, path) for trial_id, tree in trees.items()}
        keys = {trial_id: _key(value) for trial_id, value in values.items()}
        is_everywhere = MISSING not in values.values()
        differs_by_sweep = is_everywhere and all(len({keys[i] for i in members}) <= 1 for members in of_sweeps)
        known: dict[str, str] = {}
        is_determined = all(known.setdefault(_key(found[i]), key) == key for i, key in keys.items())
        if differs_by_sweep or not is_determined:
            for trial_id, value in values.items():
                found[trial_id][path] = None if value is MISSING else value
    return found


def _varied(trees: Sequence[Any], path: str = "") -> list[str]:
    """Return the dotted paths of the fields in which trees differ, tags of sections before their other fields."""
    if len(set(map(_key, trees))) == 1:
        return []
    if not all(isinstance(tree, dict) for tree in trees):
        return [path]
    names = dict.fromkeys(sorted((name for tree in trees for name in tree), key=lambda name: name not in TAGS))
    prefix = f"{path}." if path else ""
    return [
        varied for name in names for varied in _varied([tree.get(name, MISSING) for tree in trees], f"{prefix}{name}")
    ]


def _leaves(tree: Any, path: str = "") -> Iterable[str]:
    if not isinstance(tree, dict):
        return [path]
    return [leaf for name in tree for leaf in _leaves(tree[name], f"{path}.{name}".removeprefix("."))]


def _tree(trial: PlannedTrial) -> dict[str, Any]:
    return trial.spec.model_dump(mode="json")


def _value(trial: PlannedTrial, path: str) -> Any:
    """Return the coordinate of a trial at a dotted path, or else the field of its resolved spec, or MISSING."""
    return trial.coordinates[path] if path in trial.coordinates else _at(_tree(trial), path)


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        tree = tree.get(part, MISSING) if isinstance(tree, dict) else MISSING
    return tree


def _key(value: Any) -> str:
    """Return a hashable key of a value that equal values share."""
    return "" if value is MISSING else json.dumps(value, sort_keys=True)
