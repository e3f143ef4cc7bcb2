"""Parameter counts of models, and models with a given number of parameters.

Those of the Llama of raycap follow formulas. Models of transformers are built without memory for their weights, which
loads torch and transformers; no other plan does.
"""

import math

from tokenizers import Tokenizer

from raycap.results import ParameterCounts, PlannedTrial
from raycap.spec import (
    NUM_CENSUS_FIRST_NAMES,
    NUM_CENSUS_LAST_NAMES,
    HeadSize,
    LoopSharing,
    LoraAdapter,
    ModelByParams,
    ModelByWidth,
    ModelOfTransformers,
    ModelSpec,
    NamePools,
    PretrainedModel,
    ResolvedModel,
    TransformersByParams,
)

MAX_EMBEDDING_SHARE = 0.9
"""Share of embeddings among the parameters above which the plan warns."""
MIN_NAMES_PER_PERSON = 16
"""Least number of possible names per person in the name pools that the plan suggests."""
MAX_RELATIVE_ERROR = 0.15
"""Largest relative difference between the size of a solved model and `num_params`."""


def resolve_model(model: ModelSpec, vocab_size: int, tokenizer: Tokenizer | None = None) -> ResolvedModel:
    """Return a model whose width is solved from `num_params`, after the checks of a model of transformers.

    Args:
        model: The model.
        vocab_size: Number of rows of the embedding.
        tokenizer: Tokenizer of the trial, whose tokens a pretrained model must have; other models do not need it.

    Raises:
        ValueError: No width gives about that number of parameters, or transformers cannot build or load the model.
    """
    if isinstance(model, ModelByWidth):
        return model
    if isinstance(model, ModelByParams):
        return width_for_params(model, vocab_size)
    from raycap.learner import transformers_pretrained, transformers_sizes

    if isinstance(model, PretrainedModel):
        assert tokenizer, "a pretrained model is compared with the tokenizer of the trial"
        return transformers_pretrained.resolve(model, tokenizer)
    if isinstance(model, TransformersByParams):
        model = transformers_sizes.with_num_params(model, vocab_size, MAX_RELATIVE_ERROR)
    return transformers_sizes.resolve(model, vocab_size)


def max_length(model: ResolvedModel, vocab_size: int) -> int | None:
    """Return the largest number of tokens that a row may have, None if the model has no limit."""
    if isinstance(model, ModelByWidth):
        return None
    from raycap.learner import transformers_sizes

    return transformers_sizes.max_length(model, vocab_size)


def parameter_counts(model: ResolvedModel, vocab_size: int, adapter: LoraAdapter | None = None) -> ParameterCounts:
    """Return the parameter counts of a model. Raises ValueError if an adapter does not fit it.

    Weights that the passes of a loop share count once. With the default MLP the total of a Llama is 2Vh (Vh if embeddings
    are tied) + 16 L h^2 + (2L + 1) h; see docs/science.md#model.
    """
    if isinstance(model, ModelOfTransformers):
        from raycap.learner import transformers_sizes

        return transformers_sizes.parameter_counts(model, vocab_size, adapter)
    h = model.hidden_size
    return ParameterCounts(
        embedding=vocab_size * h,
        attention=model.num_copies(LoopSharing.ATTENTION) * 4 * h * h,
        mlp=model.num_copies(LoopSharing.MLP) * _num_mlp_matrices(model) * h * model.mlp_width,
        norms=(model.num_norms + 1) * h,
        unembedding=0 if model.tie_embeddings else vocab_size * h,
    )


def _num_mlp_matrices(model: ModelByWidth) -> int:
    return 0 if model.mlp is None else 3 if model.mlp.gated else 2


def embedding_share(counts: ParameterCounts) -> float:
    """Return the share of input and output embeddings among the parameters."""
    return 1 - counts.non_embedding / counts.total


def suggested_names(num_profiles: int) -> NamePools:
    """Return name pools in the proportions 1 : 1 : 2 that have enough names for a population and a small vocabulary."""
    first = math.ceil((MIN_NAMES_PER_PERSON * num_profiles / 2) ** (1 / 3) - 1e-9)
    return NamePools(
        first=min(first, NUM_CENSUS_FIRST_NAMES),
        middle=min(first, NUM_CENSUS_FIRST_NAMES),
        last=min(2 * first, NUM_CENSUS_LAST_NAMES),
    )


def block_weights(model: ModelByWidth) -> int:
    """Return the number of weights of matrices that a token meets in the blocks; those of a loop count at each pass."""
    h = model.hidden_size
    return model.depth * (4 * h * h + _num_mlp_matrices(model) * h * model.mlp_width)


def block_activations(model: ResolvedModel) -> float:
    """Return how many numbers the blocks store per token for the backward pass: norms, q, k, v and the MLP.

    Attention scores are not included. Models of transformers count as Llamas of their width with the default MLP.
    """
    if isinstance(model, ModelOfTransformers):
        return 24.0 * model.depth * model.hidden_size
    per_width = 0 if model.mlp is None else 4 if model.mlp.gated else 2
    return model.depth * (8.0 * model.hidden_size + per_width * model.mlp_width)


def computed_parameters(trial: PlannedTrial) -> int:
    """Return the number of parameters that a token meets: those that a loop uses several times count each time, and those of
    experts that it is not routed to do not count.

    The computation for a token is about proportional to it.
    """
    model, counts = trial.spec.model, trial.parameters
    assert isinstance(model, ResolvedModel), "trials are resolved"
    if isinstance(model, ModelOfTransformers):
        return counts.active + (counts.base.active if counts.base else 0)
    return counts.total - counts.attention - counts.mlp + block_weights(model)


def training_flops(trial: PlannedTrial) -> float:
    """Return the FLOPs of a training: 6 per token and weight of the blocks, 2 of them forward and 4 backward.

    Frozen weights need 4, because they have no gradients of their own. Embeddings, output layer, attention scores and
    evaluations are not included.
    """
    model, counts = trial.spec.model, trial.parameters
    assert isinstance(model, ResolvedModel), "trials are resolved"
    in_blocks = (
        counts.non_embedding - counts.inactive if isinstance(model, ModelOfTransformers) else block_weights(model)
    )
    frozen = counts.base.non_embedding - counts.base.inactive if counts.base else 0
    return (6.0 * in_blocks + 4.0 * frozen) * trial.tokens


def width_for_params(model: ModelByParams, vocab_size: int) -> ModelByWidth:
    """Return the model whose number of parameters is nearest to `num_params`, among the widths that its heads allow.

    Raises ValueError with the nearest possible sizes if the difference is more than 15 %.
    """
    step = model.heads.head_size if isinstance(model.heads, HeadSize) else 2 * model.heads.num_heads
    shape = {name: getattr(model, name) for name in type(model).model_fields if name != "num_params"}

    def at(multiple: int) -> ModelByWidth:
        return ModelByWidth(hidden_size=multiple * step, **shape)

    def total(multiple: int) -> int:
        return parameter_counts(at(multiple), vocab_size).total

    # The total grows with the width, so the nearest size is the first one that reaches the target, or the one before.
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
