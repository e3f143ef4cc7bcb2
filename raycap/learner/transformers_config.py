"""Configurations of transformers' models: checks of the fields that a spec gives, and the content of config.json."""

import dataclasses
import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from raycap.storage.saved_model import differing_settings
from raycap.tokens.tokenizers import END_ID

SET_BY_RAYCAP: dict[str, Any] = {"bos_token_id": None, "eos_token_id": END_ID, "pad_token_id": None}
"""Without a padding token, transformers trains the embedding of the end token like the others."""
RESERVED = {
    *(field.name for field in dataclasses.fields(PreTrainedConfig)),
    *SET_BY_RAYCAP,
    "vocab_size",
    "use_cache",
} - {"chunk_size_feed_forward"}
"""Fields that do not belong to an architecture, or that raycap sets."""


def build_config(given: Mapping[str, Any], vocab_size: int) -> PreTrainedConfig:
    """Return the configuration with the given fields, which include model_type, and a size of the vocabulary.

    Raises ValueError if there is no such architecture, if it has no causal language model, or if a field does not exist, is
    set by raycap or has an invalid value.
    """
    config_class = _config_class(str(given["model_type"]))
    fields = {name: value for name, value in given.items() if name != "model_type"}
    own_names = config_class.attribute_map
    known = {field.name for field in dataclasses.fields(config_class)} | own_names.keys()
    own: dict[str, Any] = {}
    for name, value in fields.items():
        if name in RESERVED:
            raise ValueError(f"model.config.{name}: is set by raycap; remove it")
        if name not in known:
            similar = _did_you_mean(name, known - RESERVED)
            raise ValueError(
                f"model.config.{name}: {given['model_type']} has no such field{similar}; correct or remove it"
            )
        if "drop" in name and value:
            raise ValueError(f"model.config.{name}: raycap trains without dropout, got {value}; remove it")
        if own_names.get(name, name) in own:
            raise ValueError(f"model.config.{name}: {own_names[name]} is the same field; remove one of them")
        own[own_names.get(name, name)] = value
    try:
        config: PreTrainedConfig = config_class(**own, **SET_BY_RAYCAP, vocab_size=vocab_size)
    except Exception as error:  # transformers raises errors of many types
        reason = " ".join(str(error).split())
        raise ValueError(f"model.config: {given['model_type']} refuses these values: {reason}; correct them") from error
    for name in ("hidden_size", "num_hidden_layers"):
        if not isinstance(getattr(config, name, None), int):
            raise ValueError(
                f"model.config.model_type: the configuration of {given['model_type']} has no {name}, as those of models of "
                "several modalities; use another architecture, such as that of its text model"
            )
    return config


def architecture_fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a saved configuration that determine the architecture, as `build_config` takes them.

    They have common names (see `common_names`). Fields with their default values and dropout, which raycap does not use, are
    left out.

    Args:
        settings: Content of a config.json.

    Raises:
        ValueError: transformers has no such architecture, or it has no causal language model.
    """
    config_class = _config_class(str(settings.get("model_type")))
    try:
        config = config_class.from_dict(dict(settings))
    except Exception as error:  # transformers raises errors of many types
        raise ValueError(f"transformers refuses its configuration: {' '.join(str(error).split())}") from error
    stored, defaults = (json.loads(each.to_json_string(use_diff=False)) for each in (config, config_class()))
    known = {field.name for field in dataclasses.fields(config_class)} - RESERVED
    own = {
        name: value
        for name, value in stored.items()
        if name in known and "drop" not in name and value != defaults.get(name)
    }
    fields = {"model_type": config.model_type, **own}
    return common_names(fields, build_config(fields, config.vocab_size))


def common_names(given: Mapping[str, Any], config: PreTrainedConfig) -> dict[str, Any]:
    """Return the given fields under the names that all architectures share, with hidden_size and num_hidden_layers.

    Two specs of one model are then equal, whichever names they use and whether they state its size or rely on the default.
    """
    common = {own: name for name, own in reversed(config.attribute_map.items())}
    fields = {common.get(name, name): value for name, value in given.items()}
    return fields | {"hidden_size": config.hidden_size, "num_hidden_layers": config.num_hidden_layers}


def as_json(config: PreTrainedConfig) -> dict[str, Any]:
    """Return the content of config.json for a configuration, without the version of transformers."""
    tree: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
    fixed = {"architectures": [architecture], "dtype": "float32"}
    return {name: value for name, value in tree.items() if name != "transformers_version"} | fixed


def differing_fields(file: Path, config: PreTrainedConfig) -> list[str]:
    """Return the fields in which a config.json differs from a configuration.

    Fields that the file lacks have their defaults, so files of other versions of transformers can be compared.
    """
    try:
        found = as_json(type(config).from_json_file(file))
    except Exception as error:  # transformers raises errors of many types
        raise ValueError(f"{file.name} of the model cannot be used: {' '.join(str(error).split())}") from error
    return differing_settings(found, as_json(config))


def _config_class(model_type: str) -> Any:
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return CONFIG_MAPPING[model_type]
    if model_type in CONFIG_MAPPING:
        raise ValueError(
            f"model.config.model_type: {model_type} has no causal language model in transformers; use an architecture that "
            "has one, such as gpt2"
        )
    similar = _did_you_mean(model_type, set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES))
    raise ValueError(
        f"model.config.model_type: transformers has no architecture {model_type!r}{similar}; use for example gpt2, mistral, "
        "mixtral or mamba2"
    )


def _did_you_mean(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""
