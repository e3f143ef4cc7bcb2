"""What leaves raycap: files and folders that come to their place whole or not at all, and the Hugging Face hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

CARD_FILE = "README.md"
CARD_TAG = "\n- raycap\n"
"""On every card that raycap writes: what is known by it may be replaced."""


class HubError(RuntimeError):
    """The hub cannot be reached, or refuses; the message says why and what to do."""


def check_place(place: Path, *, force: bool = False) -> None:
    """Raise FileExistsError where there is more than an empty folder; with `force`, more than an earlier export."""
    if not os.path.lexists(place) or (place.is_dir() and not any(place.iterdir())):
        return
    if not force:
        raise FileExistsError(f"there is something at {place} already; take another place, or --force to replace it")
    card = place / CARD_FILE
    is_table = place.is_file() and place.suffix == ".parquet"
    if not is_table and not (card.is_file() and CARD_TAG in card.read_text(encoding="utf-8", errors="replace")):
        raise FileExistsError(f"what is at {place} is no earlier export, so it is not replaced; take another place")


@contextmanager
def placed(place: Path, *, force: bool = False) -> Iterator[Path]:
    """A path beside a place, to write a file or folder to; it moves to the place if nothing was raised.

    Raises FileExistsError as `check_place` does, before anything is written.
    """
    place = place.resolve()
    check_place(place, force=force)
    place.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=place.parent, prefix=f".{place.name}.") as scratch:
        unfinished = Path(scratch) / place.name
        yield unfinished
        if place.is_dir() and any(place.iterdir()):
            place.rename(Path(scratch) / "before")  # a folder cannot be written over, only made way for
        unfinished.replace(place)


def check_hub(repo: str) -> None:
    """Raise HubError unless `owner/name` could be a repository, the hub may be asked, and there is a token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise HubError(f"{str(error).splitlines()[0]} Give it as USER/NAME") from None
    if "/" not in repo:
        raise HubError(f"must have the form USER/NAME, got {repo!r}")
    if constants.HF_HUB_OFFLINE:
        raise HubError("the hub must not be asked, since HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it")
    if not get_token():
        raise HubError("there is no token for the Hugging Face hub: log in with `hf auth login`, or set HF_TOKEN")


def push(
    folder: Path,
    repo: str,
    kind: Literal["model", "dataset"],
    *,
    private: bool = False,
    message: str,
    replaced: str | None = None,
) -> str:
    """Commit every file of a folder to the repository `owner/name` on the hub, made if it is not there; returns its URL.

    Files of the repository that match the pattern `replaced` go where the folder has none of their name. Raises HubError;
    a public repository takes nothing that should be `private`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError

    check_hub(repo)
    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo, repo_type=kind).private:
            raise HubError(f"{url} is public already, but --private was asked for; take another name")
        api.upload_folder(
            repo_id=repo, folder_path=folder, repo_type=kind, commit_message=message, delete_patterns=replaced
        )
    except (HTTPError, OSError, ValueError) as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise HubError(f"the hub at {api.endpoint} did not take {repo}: {told}") from error
    return str(url)
