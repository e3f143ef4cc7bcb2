"""Saved causal language models that training starts from: their configuration, their vocabulary and their weights."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from tokenizers import Tokenizer

from raycap.learner.language_model import CPU
from raycap.learner.transformers_config import architecture_fields, build_config
from raycap.learner.transformers_model import TransformersModel, load_network
from raycap.learner.transformers_sizes import MAX_CHECKED, parameter_counts
from raycap.spec import LoraAdapter, PretrainedModel
from raycap.storage.saved_model import CONFIG, copy_identified, identity, read_settings
from raycap.tokens.tokenizers import load_tokenizer


def resolve(spec: PretrainedModel, tokenizer: Tokenizer) -> PretrainedModel:
    """Return a pretrained model with its digest and its configuration.

    Raises ValueError if it cannot be used with the trial's tokenizer, is no causal language model, or is not the model that
    the spec describes.
    """
    with _local_copy(spec) as folder:
        settings = read_settings(folder / CONFIG)
        _check_vocabulary(settings, load_tokenizer(folder), tokenizer)
        config = architecture_fields(settings)
        if spec.config not in ({}, config):
            raise ValueError("its config.json differs from model.config, which plan fills in; remove model.config")
        resolved = spec.model_copy(update={"sha256": identity(folder), "config": config})
        vocab_size = tokenizer.get_vocab_size()
        if parameter_counts(resolved, vocab_size).total <= MAX_CHECKED:
            TransformersModel(resolved, load_network(build_config(config, vocab_size), folder)).check_causal()
    return resolved


def load_model(
    spec: PretrainedModel, vocab_size: int, *, adapter: LoraAdapter | None, seed: int, device: torch.device = CPU
) -> TransformersModel:
    """Return the model of a resolved spec with its saved weights, which are frozen if there is an adapter.

    Args:
        spec: The resolved spec.
        vocab_size: Size of the vocabulary.
        adapter: Adapter to train.
        seed: Seed of the adapter's weights.
        device: Device of the model.

    Raises:
        ValueError: The files have changed since the spec was resolved, or the adapter does not fit the model.
    """
    with _local_copy(spec) as folder:
        network = load_network(build_config(spec.config, vocab_size), folder)
    if adapter:
        from raycap.learner import adapters  # imports peft, which takes seconds

        adapters.attach(network, adapter, seed=seed)
    return TransformersModel(spec, network, device)


@contextmanager
def _local_copy(spec: PretrainedModel) -> Iterator[Path]:
    """Yield a temporary local copy of the files of a model. Errors begin with `model.path`."""
    with TemporaryDirectory(prefix="raycap-") as name:
        folder = Path(name)
        try:
            copy_identified(spec.path, spec.sha256, folder)
            yield folder
        except (ValueError, OSError) as error:
            raise ValueError(f"model.path: the model at {spec.path} cannot be used: {error}") from error


def _check_vocabulary(settings: dict[str, Any], stored: Tokenizer, tokenizer: Tokenizer) -> None:
    """Raise ValueError unless a model has the tokens of a trial's tokenizer with the same ids."""
    ids, own_ids = stored.get_vocab(), tokenizer.get_vocab()
    if ids != own_ids:
        token = min(ids.items() ^ own_ids.items(), key=lambda item: (item[1], item[0]))[0]
        was, now = (f"token {each[token]}" if token in each else "no token" for each in (ids, own_ids))
        raise ValueError(
            f"its tokenizer has {len(ids):,} tokens and that of the trial {len(own_ids):,}; {json.dumps(token)} is {was} "
            f"there and {now} in the trial; set tokenizer: {{kind: pretrained, path: ...}} to its tokenizer.json if raycap "
            "trained it, or give the trial the names, relations and kinds of text that the model was trained on"
        )
    if settings.get("vocab_size") != len(ids):
        raise ValueError(
            f"its {CONFIG} has vocab_size {settings.get('vocab_size')}, but its tokenizer has {len(ids):,} tokens; use a "
            "model with one embedding for each token"
        )
