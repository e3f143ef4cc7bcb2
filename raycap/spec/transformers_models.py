"""Specs of causal language models that transformers computes: with fresh weights, or with those of a saved model."""

from typing import Any, Literal

from pydantic import Field, JsonValue, field_validator

from raycap.spec.base import Spec, Text, broken_rule
from raycap.spec.locations import Location


class ModelOfTransformers(Spec):
    """A causal language model that the library transformers computes.

    In a resolved trial, fields that the architecture calls by a name of its own have their common name, such as hidden_size
    for n_embd of GPT-2, and hidden_size and num_hidden_layers are set.
    """

    kind: str
    config: dict[str, JsonValue]

    @property
    def model_type(self) -> str:
        """Name of the architecture in transformers."""
        return str(self.config["model_type"])

    @property
    def is_resolved(self) -> bool:
        """Whether the width and the number of layers are set."""
        return all(isinstance(self.config.get(name), int) for name in ("hidden_size", "num_hidden_layers"))

    @property
    def hidden_size(self) -> int:
        """Width of the residual stream of a resolved model."""
        return self._number("hidden_size")

    @property
    def num_layers(self) -> int:
        """Number of blocks of a resolved model."""
        return self._number("num_hidden_layers")

    @property
    def depth(self) -> int:
        """Number of blocks that a token passes through."""
        return self.num_layers

    @property
    def num_attention_heads(self) -> int:
        """Number of attention heads, as far as the configuration states it; 1 otherwise."""
        heads = self.config.get("num_attention_heads")
        return heads if isinstance(heads, int) else 1

    @property
    def width_multiplier(self) -> float:
        """1, since models of transformers have the standard parametrization."""
        return 1.0

    def _number(self, name: str) -> int:
        number = self.config.get(name)
        assert isinstance(number, int), f"model.config.{name} of an unresolved model; use plan.expand"
        return number


class _WithFreshWeights(ModelOfTransformers):
    kind: Literal["transformers"]
    """A causal language model of the library transformers, with fresh weights."""
    config: dict[str, JsonValue]
    """Fields of the model's configuration, with `model_type`, such as {model_type: gpt2, n_embd: 64, n_layer: 4, n_head: 4}.
    Other fields have their defaults in transformers. raycap sets the size of the vocabulary and the special tokens. Models
    are trained in fp32 without dropout and without auxiliary losses."""

    @field_validator("config")
    @classmethod
    def _names_an_architecture(cls, config: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if not isinstance(config.get("model_type"), str):
            raise broken_rule("must have the name of an architecture, such as model_type: gpt2")
        return config


class TransformersByConfig(_WithFreshWeights):
    """A causal language model of transformers with a given configuration, which `plan` checks with transformers."""


class TransformersByParams(_WithFreshWeights):
    """A causal language model of transformers with approximately a given number of parameters.

    `plan` solves for one field of the configuration and reports the exact number.
    """

    num_params: int = Field(gt=0, le=100_000_000_000)
    """Target number of parameters, including embeddings. The value of `solve` whose parameter count is nearest is used. It
    is an error if that count differs from the target by more than 15 %."""
    solve: Text = "hidden_size"
    """Field of the configuration that is solved for, usually the width. It must not be in `config`."""
    multiple_of: int = Field(default=16, ge=1, le=4096)
    """The solved value is a multiple of this number. Set it so that attention heads divide the width."""
    proportional: dict[str, int] = {}
    """Other fields of the configuration that are multiples of the solved one, such as {intermediate_size: 4}."""

    @field_validator("proportional")
    @classmethod
    def _positive(cls, proportional: dict[str, int]) -> dict[str, int]:
        if min(proportional.values(), default=1) < 1:
            raise broken_rule("factors must be at least 1, got {got}", got=str(proportional))
        return proportional

    def at(self, value: int) -> dict[str, Any]:
        """Return the configuration with a value of the solved field."""
        factors = {self.solve: 1, **self.proportional}
        return {**self.config, **{name: factor * value for name, factor in factors.items()}}


class PretrainedModel(ModelOfTransformers):
    """A causal language model that training starts from, with the weights of a saved model.

    `plan` refuses a model whose tokens are not those of the trial's tokenizer. A model of raycap is computed by
    transformers.
    """

    kind: Literal["pretrained"]
    """A saved causal language model, whose training continues."""
    path: Location
    """Folder or URI that contains config.json, model.safetensors and tokenizer.json, such as the folder `model` of a
    finished trial or one that `raycap export` wrote."""
    sha256: str | None = None
    """SHA-256 of the concatenation of config.json, model.safetensors and tokenizer.json. `plan` fills it in, so that a
    trial is identified by the weights and not by their path. Set it to refuse a model with different content."""
    config: dict[str, JsonValue] = {}
    """Fields of the model's configuration. `plan` fills them in from config.json."""
