"""Atomic writes of exported files and folders, and uploads to the Hugging Face hub."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

CARD_FILE = "README.md"
CARD_TAG = "\n- raycap\n"
"""Part of every card that raycap writes. Only folders with such a card may be replaced."""


class HubError(RuntimeError):
    """The hub cannot be reached or refuses a request. The message gives the reason and what to do."""


def check_target(target: Path, *, force: bool = False) -> None:
    """Raise FileExistsError if there is something other than an empty folder at `target`.

    With `force`, an earlier export is accepted too: a Parquet file, or a folder with a card that raycap wrote.
    """
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return
    if not force:
        raise FileExistsError(f"{target} exists already; choose another path, or add --force to replace it")
    card = target / CARD_FILE
    is_table = target.is_file() and target.suffix == ".parquet"
    if not is_table and not (card.is_file() and CARD_TAG in card.read_text(encoding="utf-8", errors="replace")):
        raise FileExistsError(f"{target} is not an earlier export, so --force does not replace it; choose another path")


@contextmanager
def atomic_export(target: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file or folder, which is moved to `target` on exit unless an exception was raised.

    Raises FileExistsError under the conditions of `check_target`, before anything is written.
    """
    target = target.resolve()
    check_target(target, force=force)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary folder is in the target's parent, so that the move is a rename within one file system.
    with TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as scratch:
        unfinished = Path(scratch) / target.name
        yield unfinished
        if target.is_dir() and any(target.iterdir()):
            target.rename(Path(scratch) / "before")  # a rename cannot replace a folder that is not empty
        unfinished.replace(target)


def check_hub(repo: str) -> None:
    """Raise HubError unless `repo` has the form owner/name, the hub is not switched off, and a token is configured."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo)
    except ValueError as error:
        raise HubError(f"{str(error).splitlines()[0].rstrip('.')}; give it as USER/NAME") from None
    if "/" not in repo:
        raise HubError(f"must have the form USER/NAME, got {repo!r}; add the name of your account before it")
    if constants.HF_HUB_OFFLINE:
        raise HubError("the hub cannot be used: HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set; unset it")
    if not get_token():
        raise HubError("no token for the Hugging Face hub was found: log in with `hf auth login`, or set HF_TOKEN")


def push_folder(
    folder: Path,
    repo: str,
    kind: Literal["model", "dataset"],
    *,
    private: bool = False,
    message: str,
    files: Sequence[str],
    replaced: str | None = None,
) -> str:
    """Commit some files of a folder to the repository `owner/name` on the hub and return its URL.

    Only the paths in `files` are uploaded, even if others have been written to the folder since. The repository is created
    if it does not exist. Existing files that match the pattern `replaced` are deleted unless the folder has a file of the
    same name.

    Raises HubError if the hub refuses the upload, or if `private` is set and the repository exists and is public.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or its fork, by version

    check_hub(repo)
    api = HfApi()
    try:
        url = api.create_repo(repo, repo_type=kind, private=private or None, exist_ok=True)
        if private and not api.repo_info(repo, repo_type=kind).private:
            raise HubError(
                f"{url} exists and is public, but --private was given; choose another name, or remove --private"
            )
        api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            repo_type=kind,
            commit_message=message,
            allow_patterns=list(files),
            delete_patterns=replaced,
        )
    except (HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise HubError(
            f"the upload of {repo} to the hub at {api.endpoint} failed: {reason}; check the token (`hf auth whoami`) "
            "and the network, and run the command again, or write to a folder with --to"
        ) from error
    return str(url)
