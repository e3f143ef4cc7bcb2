"""Records of the losses of a model with single parts ablated or quantised."""

from enum import StrEnum

from raycap.results.losses import Count, LossTable, Record
from raycap.spec import Ablation, WeightFormat


class ModelPart(StrEnum):
    """Part of a model that is ablated."""

    EMBEDDING = "embedding"
    """Embeddings of the tokens."""
    ATTENTION = "attention"
    """Attention of a block."""
    MLP = "mlp"
    """MLP of a block."""
    BLOCK = "block"
    """Attention and MLP of a block."""
    MODEL = "model"
    """Embeddings and all blocks."""


class AblatedLosses(Record):
    """Losses of a model of which one part is ablated or quantised."""

    part: ModelPart
    layer: Count | None
    """0 for the embeddings, l for a part of block l, None for this part of all blocks together."""
    ablation: Ablation | WeightFormat
    losses: LossTable


class Localisation(Record):
    """Result of the analysis `localise` of one model."""

    intact: LossTable
    """Losses of the model as it is stored."""
    ablated: tuple[AblatedLosses, ...]
