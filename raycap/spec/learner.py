"""What learns: the specs of tokenizer and model."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from raycap.spec.base import Spec, broken_rule, by_kind


class WordTokenizer(Spec):
    """One token per name part, attribute value and subject (dates: year, month, day); vocabulary = the pools."""

    kind: Literal["word"] = "word"
    """Whole words, known in advance, so that the vocabulary tells nothing about the people."""


class BpeTokenizer(Spec):
    """Byte-level BPE trained on the questions, as the reference does."""

    kind: Literal["bpe"]
    """Byte-level byte-pair encoding."""
    vocab_size: int = Field(default=3000, ge=300, le=262_144)
    """Number of tokens, and rows of the embedding."""


TokenizerSpec = Annotated[
    Annotated[WordTokenizer, Tag("<word>")] | Annotated[BpeTokenizer, Tag("<bpe>")], by_kind("word")
]


class HeadSize(Spec):
    """Attention heads of a fixed size; their number follows the width."""

    head_size: int = Field(default=16, ge=2, le=4096, multiple_of=2)
    """Size of a head; even, for rotary positions; must divide hidden_size."""


class NumHeads(Spec):
    """A fixed number of attention heads; their size follows the width."""

    num_heads: int = Field(ge=1, le=4096)
    """Number of heads; must divide hidden_size into even sizes."""


HeadsSpec = Annotated[
    Annotated[HeadSize, Tag("<size>")] | Annotated[NumHeads, Tag("<num>")],
    Discriminator(
        lambda v: "<num>" if isinstance(v, NumHeads) or (isinstance(v, dict) and "num_heads" in v) else "<size>"
    ),
]


class MuP(Spec):
    """Maximal update parametrisation: the best learning rate at `base_width` is the best at every width.

    At the base width it is the standard parametrisation. Elsewhere, with m = hidden_size / base_width: learning rates of
    hidden matrices are divided by m, embeddings start as at the base width, logits are divided by m, and attention
    scores by head size instead of its root.
    """

    kind: Literal["mup"]
    """Learning rates and scales that follow the width."""
    base_width: int = Field(default=64, ge=2, le=100_000)
    """The width at which nothing changes, for which learning rates are given."""


class Standard(Spec):
    """The same learning rate everywhere."""

    kind: Literal["standard"] = "standard"
    """Learning rates and scales as everybody sets them."""


ParametrizationSpec = Annotated[
    Annotated[Standard, Tag("<standard>")] | Annotated[MuP, Tag("<mup>")], by_kind("standard")
]


class _Llama(Spec):
    num_layers: int = Field(default=4, ge=1, le=1000)
    """L: number of transformer blocks; the MLP is 4 times as wide as the model."""
    tie_embeddings: bool = False
    """Use the embedding as the output layer too."""
    heads: HeadsSpec = HeadSize()
    """How the width is cut into attention heads."""
    parametrization: ParametrizationSpec = Standard()
    """How initial scales and learning rates depend on the width."""

    def head_size_at(self, hidden_size: int) -> int:
        """Size of an attention head at a width; raises where heads do not divide it evenly."""
        if isinstance(self.heads, HeadSize):
            if hidden_size % self.heads.head_size:
                raise broken_rule(
                    "heads of size {size} do not divide hidden_size {h}; choose a multiple of {size}, or give num_heads "
                    "instead of head_size under model.heads",
                    size=self.heads.head_size,
                    h=hidden_size,
                )
            return self.heads.head_size
        if hidden_size % (2 * self.heads.num_heads):
            raise broken_rule(
                "{k} heads do not divide hidden_size {h} into even sizes; choose a multiple of {m}",
                k=self.heads.num_heads,
                h=hidden_size,
                m=2 * self.heads.num_heads,
            )
        return hidden_size // self.heads.num_heads


class ModelByWidth(_Llama):
    """A Llama of a given width."""

    hidden_size: int = Field(default=64, ge=2, le=100_000)
    """h: width of the residual stream."""

    @field_validator("hidden_size")
    @classmethod
    def _heads_divide(cls, hidden_size: int, info: Any) -> int:
        if "heads" in info.data:
            _Llama(heads=info.data["heads"]).head_size_at(hidden_size)
        return hidden_size

    @property
    def head_size(self) -> int:
        """Size of an attention head."""
        return self.head_size_at(self.hidden_size)

    @property
    def width_multiplier(self) -> float:
        """m = hidden_size / base width under muP, 1 under the standard parametrisation."""
        return self.hidden_size / self.parametrization.base_width if isinstance(self.parametrization, MuP) else 1.0

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied by: d^-1/2, or under muP d0^1/2 / d with d0 the head size at the base."""
        if isinstance(self.parametrization, Standard):
            return self.head_size**-0.5
        heads = self.heads
        base = heads.head_size if isinstance(heads, HeadSize) else self.parametrization.base_width / heads.num_heads
        return base**0.5 / self.head_size


class ModelByParams(_Llama):
    """A Llama of about a given size; the plan solves for the width and reports the real count."""

    num_params: int = Field(gt=0, le=100_000_000_000)
    """Target number of parameters, embeddings included; the nearest possible width is taken, and refused if it is off by
    more than 15 %."""


ModelSpec = Annotated[
    Annotated[ModelByWidth, Tag("<width>")] | Annotated[ModelByParams, Tag("<params>")],
    Discriminator(
        lambda v: (
            "<params>" if isinstance(v, ModelByParams) or (isinstance(v, dict) and "num_params" in v) else "<width>"
        )
    ),
]
