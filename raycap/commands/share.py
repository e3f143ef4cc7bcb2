"""raycap export: a trained model, or a population, in a folder or on the Hugging Face hub."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from raycap import pipeline
from raycap.commands.arguments import Overrides, planned_trial
from raycap.export.hub import CARD_FILE, HubError, atomic_export, check_hub, check_target, push
from raycap.results import TrialResult
from raycap.spec import ProfilesSpec
from raycap.spec.file import SpecError
from raycap.storage import DamagedError, Storage, result_path
from raycap.storage.checksum import verify_checksum

SPEC_ENDINGS = (".yaml", ".yml")
MAX_LISTED = 5
"""Trials that are named where the beginning of an id is that of several."""


def export(
    what: Annotated[
        str, typer.Argument(metavar="TRIAL", help="Its id, the beginning of it, or its folder; or, for people, a spec.")
    ],
    overrides: Overrides = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="A folder, new or empty; people: or a .parquet file.")
    ] = None,
    repo: Annotated[str | None, typer.Option("--push", metavar="USER/NAME", help="On the Hugging Face hub.")] = None,
    people: Annotated[bool, typer.Option("--profiles", help="The population instead of the model.")] = False,
    storage: Annotated[str, typer.Option(help="Where trials lie: a folder or URI.")] = "runs",
    index: Annotated[int, typer.Option(help="With a spec: which trial of the plan, from 0.")] = 0,
    dataset: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Where the model's people are on the hub, for its card.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: for nobody else to see.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --to: replace an earlier export.")] = False,
) -> None:
    """Export a trained model as transformers loads it, or a population as a dataset, with a card: to a folder or the hub.

    Examples:

      raycap export 06dfea --to told

      raycap export runs/trials/06dfea0153e4 --push USER/NAME --private

      raycap export --profiles specs/grid.yaml --to people.parquet
    """
    is_spec = what.endswith(SPEC_ENDINGS)
    for rule, broken in {
        "say where to: --to DIR, --push USER/NAME, or both": to is None and repo is None,
        "--private is about a repository on the hub: add --push USER/NAME": private and repo is None,
        "--force is about a folder: add --to DIR": force and to is None,
        "--dataset is for the card of a model: leave it out with --profiles": people and dataset is not None,
        f"{what}: a spec has no model; give a trial of it, or --profiles for its people": is_spec and not people,
        f"{what}: a trial that has been trained cannot be changed; overrides and --index are for specs": (
            not is_spec and bool(overrides or index)
        ),
    }.items():
        if broken:
            raise SpecError([rule])
    with _error_as_message(f"--to {to}"):
        if to is not None:
            check_target(to, force=force)
    with _error_as_message(f"--push {repo}"):
        if repo is not None:
            check_hub(repo)
    if people:
        _export_people(_profiles(what, overrides, storage, index), what, to, repo, private=private, force=force)
        return
    _export_model(what, storage, to, repo, dataset=dataset, private=private, force=force)


@contextmanager
def _error_as_message(about: str) -> Iterator[None]:
    """Errors within are told in a line."""
    try:
        yield
    except SpecError:
        raise
    except (ValueError, OSError, HubError) as error:
        raise SpecError([f"{about}: {error}"]) from error


def _export_model(
    what: str, storage: str, to: Path | None, repo: str | None, *, dataset: str | None, private: bool, force: bool
) -> None:
    place, trial_id = _trial(what, storage)
    result = _result(place, trial_id)
    from raycap.export.model import export_model
    from raycap.export.model_card import model_card

    with ExitStack() as stack, _error_as_message(what):
        target = to or Path(stack.enter_context(TemporaryDirectory(prefix="raycap-"))) / "model"
        with atomic_export(target, force=force) as folder:
            folder.mkdir()
            exported = export_model(result, place, folder)
            card = model_card(
                result, exported, name=repo or ".", questions=_questions(place, trial_id), dataset=dataset
            )
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
            (folder / "result.json").write_bytes(place.read(result_path(trial_id)))
        told = f"{result.parameters.total:,} parameters, logits within {exported.max_difference:.1e} of raycap's own"
        if to:
            print(f"{trial_id}: {told}: {to}")
        if repo:
            url = push(target, repo, "model", private=private, message=f"Trial {trial_id} from raycap")
            print(f"{trial_id}: {told}: {url}")


def _export_people(
    spec: ProfilesSpec, what: str, to: Path | None, repo: str | None, *, private: bool, force: bool
) -> None:
    from raycap.export import dataset as people
    from raycap.facts.build import profiles_of

    description = spec.model_dump_json(indent=2)
    with _error_as_message(what):
        profiles = profiles_of(spec)
        told = f"{profiles.num_profiles:,} people with {len(profiles.schema.relations)} relations"
        if to:
            people.save(profiles, str(to), description=description, force=force)
            print(f"{told}: {to}")
        if repo:
            print(f"{told}: {people.push(profiles, repo, description=description, private=private)}")


def _profiles(what: str, overrides: list[str] | None, storage: str, index: int) -> ProfilesSpec:
    """The population of a trial that has been trained, or of one of a spec; under fill the first."""
    if what.endswith(SPEC_ENDINGS):
        sweep, _ = pipeline.prepare(what, tuple(overrides or ()))
        return planned_trial(sweep, what, index).spec.profiles
    return _result(*_trial(what, storage)).spec.profiles


def _trial(what: str, storage: str) -> tuple[Storage, str]:
    """The storage and the id of a trial, by its id, the beginning of its id, or its folder. Raises SpecError."""
    if "/" in what or os.path.isdir(what):
        path = what.rstrip("/") if "://" in what else Path(what).absolute().as_posix()
        root, _, last = path.rpartition("/trials/")
        if not root or not last or "/" in last:
            raise SpecError([f"{what}: the folder of a trial ends in trials/ID, as runs/trials/0123456789ab does"])
        storage, what = root, last
    with _error_as_message("--storage"):
        place = Storage.at(storage)
        found = sorted(name for name in place.names("trials") if name.startswith(what))
    if not found:
        raise SpecError([f"{what}: no trial in {place.path('trials')} begins so; give --storage if it lies elsewhere"])
    if len(found) > 1:
        told = ", ".join(found[:MAX_LISTED]) + (", ..." if len(found) > MAX_LISTED else "")
        raise SpecError([f"{what}: {len(found)} trials begin so: {told}; give more of the id"])
    return place, found[0]


def _result(storage: Storage, trial_id: str) -> TrialResult:
    """The result of a trial. Raises SpecError where it has none that can be read."""
    from raycap.analysis.stored import UnreadableResult, read_result

    where = storage.path(result_path(trial_id))
    try:
        result = read_result(verify_checksum(storage.read(result_path(trial_id))))
    except FileNotFoundError:
        raise SpecError([f"{trial_id}: it has not finished, there is no {where}; run its sweep"]) from None
    except (DamagedError, UnreadableResult) as error:
        raise SpecError([f"{where}: {error}; delete it, and a run of its sweep trains it again"]) from None
    if result.trial_id != trial_id:
        raise SpecError([f"{where}: it is the result of {result.trial_id}; put it back where it was"])
    return result


class _Trial(BaseModel):
    trial_id: str


class _Sweep(BaseModel):
    """What is needed of a sweep.json."""

    question: str
    trials: tuple[_Trial, ...]


def _questions(storage: Storage, trial_id: str) -> dict[str, str]:
    """What sweeps in the storage ask of a trial, by their names; a trial belongs to none, and several may share it."""
    questions = {}
    for name, files in sorted(storage.folders("").items()):
        if "sweep.json" not in files:
            continue
        content = storage.read(f"{name}/sweep.json")
        if trial_id.encode() not in content:
            continue
        try:
            sweep = _Sweep.model_validate_json(content)
        except ValidationError:  # the next run of that sweep writes it anew
            continue
        if any(trial.trial_id == trial_id for trial in sweep.trials):
            questions[name] = sweep.question
    return questions
