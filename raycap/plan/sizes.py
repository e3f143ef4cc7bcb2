"""Parameter counts from a formula, for the plan: no torch here. A test compares them with the built model."""

from raycap.results import ParameterCounts
from raycap.spec import HeadSize, ModelByParams, ModelByWidth

MAX_RELATIVE_ERROR = 0.15
"""How far a solved model may be from the size that was asked for."""


def parameter_counts(model: ModelByWidth, vocab_size: int) -> ParameterCounts:
    """Parameters of a Llama with an MLP of width 4h: 2Vh (Vh if tied) + 16 L h^2 + (2L + 1) h (SCIENCE, Model)."""
    h, num_layers = model.hidden_size, model.num_layers
    return ParameterCounts(
        embedding=vocab_size * h,
        attention=4 * num_layers * h * h,
        mlp=12 * num_layers * h * h,
        norms=(2 * num_layers + 1) * h,
        unembedding=0 if model.tie_embeddings else vocab_size * h,
    )


def width_for_params(model: ModelByParams, vocab_size: int) -> ModelByWidth:
    """The model whose number of parameters comes nearest to the target, over the widths its heads allow.

    Raises ValueError if even that is off by more than 15 %, with the nearest sizes there are.
    """
    step = model.heads.head_size if isinstance(model.heads, HeadSize) else 2 * model.heads.num_heads
    shape = {name: getattr(model, name) for name in type(model).model_fields if name != "num_params"}

    def at(multiple: int) -> ModelByWidth:
        return ModelByWidth(hidden_size=multiple * step, **shape)

    def total(multiple: int) -> int:
        return parameter_counts(at(multiple), vocab_size).total

    above = 1
    while total(above) < model.num_params:
        above += 1
    around = [multiple for multiple in (above - 1, above) if multiple > 0]
    nearest = min(around, key=lambda multiple: abs(total(multiple) - model.num_params))
    if abs(total(nearest) - model.num_params) > MAX_RELATIVE_ERROR * model.num_params:
        possible = " or ".join(f"{total(m):,} (hidden_size {m * step})" for m in around)
        raise ValueError(
            f"model.num_params: no width gives {model.num_params:,} parameters with {model.num_layers} layers and a "
            f"vocabulary of {vocab_size}; the nearest are {possible}"
        )
    return at(nearest)
