"""Building, loading and saving of models of both kinds: raycap's Llama and models of transformers."""

from pathlib import Path

import torch

from raycap.learner import model as llama
from raycap.learner import pretrained
from raycap.learner.language_model import CPU, LanguageModel
from raycap.spec import LoraAdapter, ModelByWidth, PretrainedModel, ResolvedModel
from raycap.storage.saved_model import differing_settings, read_settings


def build_model(
    spec: ResolvedModel,
    vocab_size: int,
    adapter: LoraAdapter | None = None,
    *,
    seeds: tuple[int, ...],
    device: torch.device = CPU,
) -> LanguageModel:
    """Return a stack with one freshly initialised replica per seed.

    Models of transformers have one replica. A pretrained model has the weights of its path, and may have an adapter, which
    is initialised instead.
    """
    if isinstance(spec, ModelByWidth):
        generators = tuple(torch.Generator().manual_seed(seed) for seed in seeds)
        return llama.build_model(spec, vocab_size, generators=generators, device=device)
    from raycap.learner import transformers_model, transformers_pretrained  # import transformers, which takes seconds

    (seed,) = seeds
    if isinstance(spec, PretrainedModel):
        return transformers_pretrained.load_model(spec, vocab_size, adapter=adapter, seed=seed, device=device)
    return transformers_model.build_model(spec, vocab_size, seed=seed, device=device)


def load_model(spec: ResolvedModel, folder: Path, *, min_vocab_size: int = 1) -> LanguageModel:
    """Return the single model of a folder that `save_model` wrote, on the CPU.

    Raises ValueError if it is not that of the spec, or its vocabulary is smaller than `min_vocab_size`.
    """
    if isinstance(spec, ModelByWidth):
        return pretrained.load_pretrained(spec, folder, min_vocab_size=min_vocab_size)
    from raycap.learner import transformers_model

    return transformers_model.load_model(spec, folder, min_vocab_size=min_vocab_size)


def save_model(model: LanguageModel, folder: Path) -> None:
    """Write a single model as config.json and model.safetensors for AutoModelForCausalLM.from_pretrained."""
    if isinstance(model, llama.Llama):
        pretrained.save_pretrained(model, folder)
        return
    from raycap.learner import transformers_model

    assert isinstance(model, transformers_model.TransformersModel)
    transformers_model.save_model(model, folder)


def changed_settings(model: LanguageModel, file: Path) -> list[str]:
    """Return the fields in which a config.json differs from the one that `save_model` writes."""
    if isinstance(model, llama.Llama):
        return differing_settings(read_settings(file), pretrained.config(model.spec, model.vocab_size))
    from raycap.learner.transformers_config import build_config, differing_fields
    from raycap.learner.transformers_model import TransformersModel

    assert isinstance(model, TransformersModel)
    return differing_fields(file, build_config(model.spec.config, model.vocab_size))
