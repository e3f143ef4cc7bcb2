"""Command `raycap export`: writes a trained model or a population to a folder or to the Hugging Face hub."""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from pydantic import BaseModel, ValidationError

from raycap import pipeline
from raycap.commands.arguments import DEFAULT_STORAGE, Overrides, StorageOption, planned_trial
from raycap.commands.named import find_trial, is_spec
from raycap.export.hub import CARD_FILE, HubError, atomic_export, check_hub, check_target, push_folder
from raycap.results import TrialResult
from raycap.spec import ProfilesFromTable, ProfilesSpec
from raycap.spec.document import SpecError
from raycap.storage import RESULT_FILE, DamagedError, Storage, result_path
from raycap.storage.checksum import verify_checksum
from raycap.storage.saved_model import open_regular
from raycap.storage.sweep_folder import SweepFolder

MAX_RECORD_BYTES = 2**30
"""Largest accepted size of a result.json and a sweep.json."""


def export(
    argument: Annotated[
        str,
        typer.Argument(
            metavar="TRIAL",
            help="Id, label, prefix of one, or folder of a trial; or a sweep: its file, folder or name, with --index.",
        ),
    ],
    overrides: Overrides = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="DIR", help="New or empty folder; for a population also a .parquet file."),
    ] = None,
    repo: Annotated[
        str | None, typer.Option("--push", metavar="USER/NAME", help="Repository on the Hugging Face hub.")
    ] = None,
    people: Annotated[bool, typer.Option("--profiles", help="Export the population, not the model.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
    index: Annotated[
        int | None, typer.Option(help="With a sweep: index of the trial in the plan, from 0.", show_default=False)
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Dataset on the hub that the model card links to.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="With --push: create a private repository.")] = False,
    force: Annotated[bool, typer.Option("--force", help="With --to: replace an earlier export.")] = False,
) -> None:
    """Export a trained model for transformers, or a population as a dataset, with a card, to a folder or to the hub.

    Examples:

      raycap export 06dfea --to model

      raycap export runs/trials/06dfea0153e4 --push USER/NAME --private

      raycap export --profiles specs/grid.yaml --to people.parquet
    """
    for rule, broken in {
        "a target is missing: give --to DIR, --push USER/NAME, or both": to is None and repo is None,
        "--private applies to a repository on the hub: add --push USER/NAME": private and repo is None,
        "--force applies to a folder: add --to DIR": force and to is None,
        "--dataset applies to the card of a model: remove it, or remove --profiles": people and dataset is not None,
        f"{argument}: overrides apply to sweep files only; remove them": not is_spec(argument) and bool(overrides),
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
        _export_people(_profiles(argument, overrides, storage, index), argument, to, repo, private=private, force=force)
        return
    root, trial_id = find_trial(argument, tuple(overrides or ()), storage, index)
    _export_model(argument, root, trial_id, to, repo, dataset=dataset, private=private, force=force)


@contextmanager
def _error_as_message(about: str) -> Iterator[None]:
    """Convert errors of export and the hub to SpecError with one line that begins with `about`."""
    try:
        yield
    except SpecError:
        raise
    except (ValueError, OSError, HubError) as error:
        reason = str(error)
        if isinstance(error, OSError) and error.strerror:
            reason = f"{error.strerror}: {error.filename}; choose another path, or make this one usable"
        raise SpecError([f"{about}: {reason}"]) from error


def _export_model(
    argument: str,
    root: Storage,
    trial_id: str,
    to: Path | None,
    repo: str | None,
    *,
    dataset: str | None,
    private: bool,
    force: bool,
) -> None:
    result, content = _result(root, trial_id)
    from raycap.export.model import export_model
    from raycap.export.model_card import model_card

    with ExitStack() as stack, _error_as_message(argument):
        target = to or Path(stack.enter_context(TemporaryDirectory(prefix="raycap-"))) / "model"
        with atomic_export(target, force=force) as folder:
            folder.mkdir()
            exported = export_model(result, root, folder)
            card = model_card(result, exported, name=repo or ".", questions=_questions(root, trial_id), dataset=dataset)
            (folder / CARD_FILE).write_text(card, encoding="utf-8")
            (folder / RESULT_FILE).write_bytes(content)
            files = sorted(path.name for path in folder.iterdir())
        parity = f"logits within {exported.max_difference:.1e} of raycap's own"
        description = f"{trial_id}: {result.parameters.total:,} parameters, {parity}"
        if to:
            print(f"{description}: {to}")
        if repo:
            url = push_folder(
                target, repo, "model", private=private, message=f"Trial {trial_id} from raycap", files=files
            )
            print(f"{description}: {url}")


def _export_people(
    spec: ProfilesSpec, argument: str, to: Path | None, repo: str | None, *, private: bool, force: bool
) -> None:
    from raycap.export import dataset as people
    from raycap.facts.build import profiles_of

    description = spec.model_dump_json(indent=2)
    with _error_as_message(argument):
        profiles = profiles_of(spec)
        if profiles.unused_columns:
            print(f"{argument}: not exported: columns {', '.join(map(repr, profiles.unused_columns))}", file=sys.stderr)
        table = spec if isinstance(spec, ProfilesFromTable) else None
        size = f"{profiles.num_profiles:,} people with {len(profiles.schema.relations)} relations"
        if to:
            people.save_dataset(profiles, str(to), description=description, force=force, table=table)
            print(f"{size}: {to}")
        if repo:
            url = people.push_dataset(profiles, repo, description=description, private=private, table=table)
            print(f"{size}: {url}")


def _profiles(argument: str, overrides: list[str] | None, storage: str, index: int | None) -> ProfilesSpec:
    """Return the population of a trained trial, or of a trial of a sweep file; with `fill`, the first one."""
    if is_spec(argument):
        sweep, _ = pipeline.prepare(argument, tuple(overrides or ()))
        return planned_trial(sweep, argument, index or 0).spec.profiles
    result, _ = _result(*find_trial(argument, (), storage, index))
    return result.spec.profiles


def _result(storage: Storage, trial_id: str) -> tuple[TrialResult, bytes]:
    """Return the result of a trial and the content of its file. Raises SpecError if it does not exist or cannot be read."""
    from raycap.analysis.checks import UnreadableResult
    from raycap.analysis.stored import read_result

    path = storage.location(result_path(trial_id))
    try:
        with open_regular(storage, result_path(trial_id), MAX_RECORD_BYTES) as file:
            content = file.read()
        result = read_result(verify_checksum(content))
    except FileNotFoundError:
        raise SpecError([f"{trial_id}: the trial is not finished, {path} does not exist; run its sweep"]) from None
    except (DamagedError, UnreadableResult) as error:
        raise SpecError([f"{path}: {error}; delete the file and run the sweep to train the trial again"]) from None
    except (ValueError, OSError) as error:  # a symbolic link, a folder, or no permission
        raise SpecError([f"{trial_id}: {error}"]) from None
    if result.trial_id != trial_id:
        raise SpecError([f"{path}: is the result of trial {result.trial_id}; move it to the folder of that trial"])
    return result, content


class _Trial(BaseModel):
    trial_id: str


class _Sweep(BaseModel):
    """The fields of a sweep.json that are needed."""

    question: str
    trials: tuple[_Trial, ...]


def _questions(storage: Storage, trial_id: str) -> dict[str, str]:
    """Return the questions of all sweeps in a storage that contain a trial, by the names of the sweeps."""
    questions = {}
    for name, files in sorted(storage.folders("").items()):
        if SweepFolder.SWEEP not in files:
            continue
        try:
            with open_regular(storage, f"{name}/{SweepFolder.SWEEP}", MAX_RECORD_BYTES) as file:
                content = file.read()
        except (ValueError, OSError):  # a symbolic link, a folder, or no permission
            continue
        if trial_id.encode() not in content:  # much faster than parsing the file
            continue
        try:
            sweep = _Sweep.model_validate_json(content)
        except ValidationError:  # damaged, or of another version; the next run of that sweep writes it again
            continue
        if any(trial.trial_id == trial_id for trial in sweep.trials):
            questions[name] = sweep.question
    return questions
