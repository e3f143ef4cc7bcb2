"""Warnings about planned trials: data that are too small, few exposures, cut warm-ups, and models of embeddings."""

from collections.abc import Iterator

from raycap.facts.order import Rates
from raycap.facts.profiles import Profiles
from raycap.plan.sizes import MAX_EMBEDDING_SHARE
from raycap.spec import PretrainedTokenizer, TrialSpec
from raycap.tokens.training_data import TrainingData

SATURATION_BITS_PER_PARAM = 2.0
"""Capacity that models reach for one-hop facts after enough exposures (Allen-Zhu & Li, arXiv:2404.05405, section 4).

A dataset with fewer bits per parameter is too small to fill the model.
"""
TRIVIAL_BITS_PER_PARAM = 0.2
"""A tenth of the saturation. With fewer bits per parameter, a trial measures the dataset and not the model."""


def trial_warnings(spec: TrialSpec, steps: int, demanded: float, rates: Rates, embeddings: float) -> Iterator[str]:
    """Yield the warnings about one trial.

    Args:
        spec: Resolved trial.
        steps: Number of its steps.
        demanded: Code length of its data in bits per parameter.
        rates: Rates of the mix of `questions`.
        embeddings: Share of embeddings among its parameters.
    """
    if embeddings > MAX_EMBEDDING_SHARE:
        yield f"{100 * embeddings:.1f} % of the parameters are embeddings"
    if demanded < TRIVIAL_BITS_PER_PARAM:
        yield f"trivially small, {demanded:.2f} bits/param"
    elif demanded < SATURATION_BITS_PER_PARAM:
        yield f"cannot saturate, below {SATURATION_BITS_PER_PARAM:g} bits/param"
    if (exposures := steps * spec.training.batch_size * rates.exposures) < 1:
        yield f"sees each fact only {exposures:.2f} times"
    if spec.training.optimizer.warmup_steps > steps // 2:
        yield f"warm-up cut to half of all steps, {steps // 2}"


def tokenizer_cost(spec: TrialSpec, data: TrainingData) -> Iterator[str]:
    """Yield the size of a pretrained tokenizer and the tokens of a text, which no field of the spec states."""
    if isinstance(spec.tokenizer, PretrainedTokenizer):
        mean = data.rates(data.shares()).tokens
        yield f"pretrained tokenizer with {data.vocab_size:,} tokens, {mean:.1f} per text"


def describe_unused(profiles: Profiles) -> str:
    """Return the columns of loaded people that are not trained on."""
    return f"not trained on: columns {', '.join(map(repr, profiles.untrained_columns))}"
