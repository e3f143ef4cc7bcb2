"""Specs of the learner: tokenizer and model architecture."""

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from raycap.spec.base import Spec, Text, broken_rule, by_kind
from raycap.spec.locations import HubName, LocalLocation
from raycap.spec.transformers_models import PretrainedModel, TransformersByConfig, TransformersByParams


class WordTokenizer(Spec):
    """A word-level tokenizer: one token per name part, attribute value and subject, three per date (year, month, day).

    The vocabulary consists of all possible values, so it contains no information about the population. With the default
    name pools it has about 90,000 tokens, which dominates the parameter count of small models.
    """

    kind: Literal["word"] = "word"
    """Word-level tokenizer with a vocabulary that is fixed in advance."""


class BpeTokenizer(Spec):
    """A byte-level byte-pair encoding (BPE) that is trained on the questions, as in the reference implementation."""

    kind: Literal["bpe"]
    """Byte-level byte-pair encoding."""
    vocab_size: int = Field(default=3000, ge=300, le=262_144)
    """Size of the vocabulary, which is the number of rows of the embedding."""


class PretrainedTokenizer(Spec):
    """An existing tokenizer, such as that of a language model. It must have been saved as a tokenizer.json.

    The end token of raycap is added to its vocabulary as token 0. `plan` refuses a tokenizer that does not keep names and
    values apart from the text around them, or that does not decode texts unchanged: most byte-level BPE tokenizers are
    suitable, tokenizers that change the case of letters or remove spaces are not.
    """

    kind: Literal["pretrained"]
    """An existing tokenizer, by path or from the Hugging Face Hub."""
    path: LocalLocation | None = None
    """Path of a tokenizer.json, or of a folder that contains one. A path in the form file:///... states that every
    machine of the cluster has the file at that path."""
    hub: HubName | None = None
    """Name of a model on the Hugging Face Hub, in the form owner/name, instead of `path`."""
    revision: Text = "main"
    """Commit, tag or branch of the model on the Hub. Set a commit to make the tokenizer reproducible."""
    sha256: str | None = None
    """SHA-256 of the tokenizer.json. `plan` fills it in, so that a trial is identified by its tokenizer and not by its
    path. Set it to refuse another one."""

    @model_validator(mode="after")
    def _has_one_source(self) -> "PretrainedTokenizer":
        if (self.path is None) == (self.hub is None):
            raise broken_rule("give one of path and hub")
        return self


TokenizerSpec = Annotated[
    Annotated[WordTokenizer, Tag("<word>")]
    | Annotated[BpeTokenizer, Tag("<bpe>")]
    | Annotated[PretrainedTokenizer, Tag("<pretrained>")],
    by_kind("word"),
]


class HeadSize(Spec):
    """Attention heads of a fixed size. Their number is hidden_size / head_size."""

    head_size: int = Field(default=16, ge=2, le=4096, multiple_of=2)
    """Size of each attention head. It must be even (for rotary position embeddings) and divide hidden_size."""


class NumHeads(Spec):
    """A fixed number of attention heads. Their size is hidden_size / num_heads."""

    num_heads: int = Field(ge=1, le=4096)
    """Number of attention heads. hidden_size / num_heads must be an even integer."""


HeadsSpec = Annotated[
    Annotated[HeadSize, Tag("<size>")] | Annotated[NumHeads, Tag("<num>")],
    Discriminator(
        lambda v: "<num>" if isinstance(v, NumHeads) or (isinstance(v, dict) and "num_heads" in v) else "<size>"
    ),
]


class MuP(Spec):
    """Maximal update parametrization (muP, arXiv 2203.03466): the optimal learning rate does not depend on the width.

    With m = hidden_size / base_width: learning rates of hidden matrices are divided by m, embeddings are initialized as
    at the base width, logits are divided by m, and attention scores are divided by the head size instead of its square
    root. At the base width muP equals the standard parametrization. See docs/science.md#mup.
    """

    kind: Literal["mup"]
    """Learning rates and initial scales that depend on the width (muP)."""
    base_width: int = Field(default=64, ge=2, le=100_000)
    """Width at which muP equals the standard parametrization. Set it to the width for which the learning rate was
    tuned."""


class Standard(Spec):
    """The standard parametrization: one learning rate for all parameters and all widths."""

    kind: Literal["standard"] = "standard"
    """The standard parametrization."""


ParametrizationSpec = Annotated[
    Annotated[Standard, Tag("<standard>")] | Annotated[MuP, Tag("<mup>")], by_kind("standard")
]


class Activation(StrEnum):
    """Nonlinearities of an MLP."""

    SILU = "silu"
    """x sigmoid(x)."""
    GELU = "gelu"
    """x Phi(x), where Phi is the distribution function of the standard normal distribution (arXiv 1606.08415)."""
    RELU2 = "relu2"
    """max(x, 0)^2 (arXiv 2109.08668)."""


class Mlp(Spec):
    """The MLP of a block. The default is SwiGLU, 4 times as wide as hidden_size."""

    activation: Activation = Activation.SILU
    """Nonlinearity: silu, gelu or relu2."""
    gated: bool = True
    """Whether the activation is multiplied by a second projection of the input (gated linear unit, arXiv 2002.05202). A
    gated MLP has three matrices, an MLP without a gate two, so both have the same number of parameters if the second
    is 1.5 times as wide."""
    ratio: float = Field(default=4.0, gt=0, le=64)
    """Inner width in units of hidden_size. The width is rounded to the nearest integer, and is at least 1."""


class LoopSharing(StrEnum):
    """Weights that the passes of a looped model share."""

    BLOCK = "block"
    """Attention and MLP."""
    ATTENTION = "attention"
    """Attention only; every pass has its own MLPs."""
    MLP = "mlp"
    """MLP only; every pass has its own attention."""


class Loop(Spec):
    """Repetition of the stack of blocks with the same weights (looped transformer, arXiv 1807.03819)."""

    times: int = Field(ge=2, le=100)
    """Number of passes through the stack. Shared weights count as parameters once."""
    shared: LoopSharing = LoopSharing.BLOCK
    """Weights that the passes share: block, attention or mlp."""
    own_norms: bool = False
    """Whether every pass has its own gains of the norms."""


class _Llama(Spec):
    kind: Literal["llama"] = "llama"
    """The Llama of raycap."""
    num_layers: int = Field(default=4, ge=1, le=1000)
    """L, the number of transformer blocks. A block consists of attention and an MLP."""
    mlp: Mlp | None = Mlp()
    """The MLP of a block; null for blocks of attention only."""
    parallel: bool = False
    """Whether attention and MLP of a block both read its normed input, and their outputs are added at once; the block then
    has one norm instead of two. transformers has no such Llama, so these models cannot be exported."""
    loop: Loop | None = None
    """Repetition of the blocks with shared weights; null for none. A model with `loop: {times: 3}` computes 3 L blocks."""
    tie_embeddings: bool = False
    """Whether the output layer shares the weights of the embedding."""
    heads: HeadsSpec = HeadSize()
    """Number or size of the attention heads."""
    parametrization: ParametrizationSpec = Standard()
    """Dependence of initial scales and learning rates on the width. Use mup when a grid varies hidden_size with one
    learning rate."""

    @field_validator("parallel")
    @classmethod
    def _parallel_to_an_mlp(cls, parallel: bool, info: Any) -> bool:
        if parallel and info.data.get("mlp", True) is None:
            raise broken_rule("blocks without an MLP have nothing parallel to attention; remove parallel, or set mlp")
        return parallel

    @field_validator("loop")
    @classmethod
    def _shares_what_exists(cls, loop: Loop | None, info: Any) -> Loop | None:
        if loop and loop.shared is not LoopSharing.BLOCK and info.data.get("mlp", True) is None:
            raise broken_rule(
                "shared must be block for blocks without an MLP, got {got}; remove shared, or set mlp", got=loop.shared
            )
        return loop

    @property
    def depth(self) -> int:
        """Number of blocks that a token passes through: num_layers times the number of passes."""
        return self.num_layers * (self.loop.times if self.loop else 1)

    def num_copies(self, part: LoopSharing) -> int:
        """Return how many blocks have their own weights of a part, ATTENTION or MLP."""
        shared = self.loop is not None and self.loop.shared in (part, LoopSharing.BLOCK)
        return self.num_layers if shared else self.depth

    @property
    def num_norms(self) -> int:
        """Number of norms with their own gains, without the one before the output layer."""
        blocks = self.depth if self.loop is not None and self.loop.own_norms else self.num_layers
        return blocks * (1 if self.mlp is None or self.parallel else 2)

    def head_size_at(self, hidden_size: int) -> int:
        """Return the size of an attention head at a width. Raises PydanticCustomError if heads do not divide it."""
        if isinstance(self.heads, HeadSize):
            if hidden_size % self.heads.head_size:
                raise broken_rule(
                    "heads of size {size} do not divide hidden_size {h}; use a multiple of {size}, or set num_heads "
                    "instead of head_size under model.heads",
                    size=self.heads.head_size,
                    h=hidden_size,
                )
            return self.heads.head_size
        if hidden_size % (2 * self.heads.num_heads):
            raise broken_rule(
                "{k} heads do not divide hidden_size {h} into even sizes; use a multiple of {m}",
                k=self.heads.num_heads,
                h=hidden_size,
                m=2 * self.heads.num_heads,
            )
        return hidden_size // self.heads.num_heads


class ModelByWidth(_Llama):
    """A Llama model with a given width."""

    hidden_size: int = Field(default=64, ge=2, le=100_000)
    """h, the width of the residual stream. It must be divisible into attention heads (see heads)."""

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
    def mlp_width(self) -> int:
        """Inner width of an MLP; 0 without MLPs."""
        return max(1, round(self.mlp.ratio * self.hidden_size)) if self.mlp else 0

    @property
    def num_attention_heads(self) -> int:
        """Number of attention heads."""
        return self.hidden_size // self.head_size

    @property
    def width_multiplier(self) -> float:
        """m = hidden_size / base width under muP, 1 under the standard parametrization."""
        return self.hidden_size / self.parametrization.base_width if isinstance(self.parametrization, MuP) else 1.0

    @property
    def attention_scale(self) -> float:
        """Factor of the attention scores: d^(-1/2) for head size d; under muP d0^(1/2) / d, where d0 is d at
        base_width."""
        if isinstance(self.parametrization, Standard):
            return float(self.head_size**-0.5)
        heads = self.heads
        base = heads.head_size if isinstance(heads, HeadSize) else self.parametrization.base_width / heads.num_heads
        return float(base**0.5 / self.head_size)


class ModelByParams(_Llama):
    """A Llama model with approximately a given number of parameters.

    `plan` solves for hidden_size and reports the exact number.
    """

    num_params: int = Field(gt=0, le=100_000_000_000)
    """Target number of parameters, including embeddings. The width whose parameter count is nearest is used. It is an
    error if that count differs from the target by more than 15 %."""


ResolvedModel = ModelByWidth | TransformersByConfig | PretrainedModel
"""The models of resolved trials."""


def _model_tag(value: Any) -> str:
    if isinstance(value, dict):
        kind, by_params = value.get("kind", "llama"), "num_params" in value
    else:
        kind, by_params = getattr(value, "kind", "llama"), hasattr(value, "num_params")
    return f"<{kind}/params>" if by_params else f"<{kind}>"


ModelSpec = Annotated[
    Annotated[ModelByWidth, Tag("<llama>")]
    | Annotated[ModelByParams, Tag("<llama/params>")]
    | Annotated[TransformersByConfig, Tag("<transformers>")]
    | Annotated[TransformersByParams, Tag("<transformers/params>")]
    | Annotated[PretrainedModel, Tag("<pretrained>")],
    Discriminator(_model_tag),
]
