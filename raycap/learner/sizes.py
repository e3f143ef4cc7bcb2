"""Parameter counts from a formula, for the plan: no torch here. A test compares them with the built model."""

from raycap.results import ParameterCounts
from raycap.spec import HeadSize, ModelByParams, ModelByWidth


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
    """The model whose number of parameters comes nearest to the target, over the widths its heads allow."""
    step = model.heads.head_size if isinstance(model.heads, HeadSize) else 2 * model.heads.num_heads
    shape = model.model_dump(exclude={"num_params"})

    def at(multiple: int) -> ModelByWidth:
        return ModelByWidth(
            hidden_size=multiple * step, heads=model.heads, **{k: v for k, v in shape.items() if k != "heads"}
        )

    def distance(multiple: int) -> int:
        return abs(parameter_counts(at(multiple), vocab_size).total - model.num_params)

    multiple = 1
    while distance(multiple + 1) < distance(
        multiple
    ):  # the count grows with the width, so the distance has one minimum
        multiple += 1
    return at(multiple)
