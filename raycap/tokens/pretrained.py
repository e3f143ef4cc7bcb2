"""Existing tokenizers, from files and from the Hugging Face Hub, with the end token of raycap added."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from raycap.facts.corpus import END
from raycap.facts.hosted import download_file
from raycap.spec import PretrainedTokenizer
from raycap.spec.locations import local_path

FILE = "tokenizer.json"


def tokenizer_sha256(spec: PretrainedTokenizer) -> str:
    """Return the SHA-256 of the file of a tokenizer. Raises ValueError or FileNotFoundError."""
    return hashlib.sha256(_read(spec)).hexdigest()


def load_pretrained_tokenizer(spec: PretrainedTokenizer) -> Tokenizer:
    """Load a tokenizer, add the end token as token 0, and increase all other ids by one.

    A tokenizer of a model that raycap saved has the end token as token 0 already, and keeps its ids.

    Raises:
        FileNotFoundError: The path does not exist.
        ValueError: The file is no tokenizer, has another SHA-256 than the spec, or has a vocabulary that cannot be extended.
    """
    content = _read(spec)
    found = hashlib.sha256(content).hexdigest()
    if spec.sha256 not in (None, found):
        raise ValueError(
            f"{_name(spec)}: the SHA-256 is {found}, but the spec requires {spec.sha256}: the file has changed; restore it, "
            "or remove tokenizer.sha256"
        )
    try:
        return Tokenizer.from_str(json.dumps(_with_end_token(json.loads(content))))
    except Exception as error:  # the library raises no more specific type
        raise ValueError(f"{_name(spec)}: cannot be used as a tokenizer: {error}; give another one") from error


def _with_end_token(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON of a tokenizer with the end token as token 0, which it may have already. Raises ValueError.

    Templates, truncation and padding are removed: raycap composes whole texts itself.
    """
    tree = tree | {"post_processor": None, "truncation": None, "padding": None}
    model, added = tree["model"], tree.get("added_tokens", [])
    vocabulary = model["vocab"]
    # Unigram has pairs of token and score, whose ids are their indices.
    own = vocabulary if isinstance(vocabulary, dict) else {pair[0]: index for index, pair in enumerate(vocabulary)}
    ids = own | {token["content"]: token["id"] for token in added}
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(f"its {len(ids):,} tokens do not have the ids from 0 to {len(ids) - 1:,}")
    if END in ids:
        if ids[END] != 0:
            raise ValueError(f"its vocabulary has the end token {END} of raycap as token {ids[END]} instead of 0")
        return tree
    if isinstance(vocabulary, dict):
        model["vocab"] = {END: 0} | {token: index + 1 for token, index in vocabulary.items()}
    else:
        model["vocab"] = [[END, 0.0], *vocabulary]
        if model.get("unk_id") is not None:
            model["unk_id"] += 1
    end = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    moved = [token | {"id": token["id"] + 1} for token in added]
    return tree | {"added_tokens": [{"id": 0, "content": END} | end, *moved]}


def _read(spec: PretrainedTokenizer) -> bytes:
    if spec.hub is not None:
        try:
            return download_file(spec.hub, FILE, spec.revision)
        except ValueError as error:
            raise ValueError(f"{_name(spec)}: {error}; check tokenizer.hub and tokenizer.revision") from error
    path = Path(local_path(spec.path or "") or "")
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"tokenizer.path: no such file: {file}")
    return file.read_bytes()


def _name(spec: PretrainedTokenizer) -> str:
    return f"tokenizer {spec.hub} at revision {spec.revision}" if spec.hub else f"tokenizer.path {spec.path}"
