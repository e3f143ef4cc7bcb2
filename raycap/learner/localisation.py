"""The analysis `localise` of a stored model: its losses when what one part adds to the residual stream is replaced.

A part adds the difference of two residuals, which are numbered as in residuals.py: the MLP of block l adds residual 2 l
less residual 2 l - 1. The embeddings are residual 0. See docs/probes.md#localise.
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from raycap.facts.corpus import Ids
from raycap.learner.batches import Batch
from raycap.learner.compression import rounded
from raycap.learner.evaluation import (
    Sample,
    TextBatch,
    autocast,
    bits_by_measure,
    losses,
    rows_per_batch,
    samples_of,
    tabulate,
)
from raycap.learner.fused_ops import cross_entropy
from raycap.learner.kept_models import LoadedModel
from raycap.learner.language_model import ParameterGroup
from raycap.learner.model import Llama
from raycap.learner.residuals import num_residuals, whole_rows
from raycap.results import LossTable
from raycap.results.localisation import AblatedLosses, Localisation, ModelPart
from raycap.spec import Ablation, LocaliseSpec, Precision, WeightFormat
from raycap.tokens.composer import Composer
from raycap.tokens.training_data import TrainingData

MAX_RESIDUALS = 2**26
"""Largest number of elements of all residuals of a batch; 256 MiB in fp32."""
BLOCK_PARTS = (ModelPart.ATTENTION, ModelPart.MLP, ModelPart.BLOCK)


def localise(loaded: LoadedModel, options: dict[str, Any], folder: Path) -> Localisation:
    """Return the losses of an ablated model; `options` are the fields of a LocaliseSpec. Writes nothing into the folder.

    Raises ValueError for a model of transformers, whose residuals are not read.
    """
    return localise_model(loaded.llama(), loaded.data, LocaliseSpec.model_validate(options, strict=False))


def localise_model(model: Llama, data: TrainingData, spec: LocaliseSpec) -> Localisation:
    """Return the losses of a single model with each part ablated, on the texts that evaluations in training use."""
    samples, precision = samples_of(data), data.spec.training.precision
    return Localisation(
        intact=_losses(model, samples, precision),
        ablated=(
            *(each for ablation in spec.ablations for each in _ablated(model, samples, precision, ablation, spec.seed)),
            *(
                AblatedLosses(
                    part=part,
                    layer=layer,
                    ablation=weights,
                    losses=_losses(quantised(model, part, layer, weights), samples, precision),
                )
                for weights in spec.quantise
                for part, layer in parts_of(model)
            ),
        ),
    )


def parts_of(model: Llama) -> list[tuple[ModelPart, int | None]]:
    """Return the parts of a model with their layers, as in `AblatedLosses`. Blocks without MLP have only attention."""
    has_mlp = model.spec.mlp is not None
    layers = [*range(1, 1 + len(model.layers)), None]
    of_blocks = [(part, layer) for part in BLOCK_PARTS if has_mlp or part is ModelPart.ATTENTION for layer in layers]
    return [(ModelPart.EMBEDDING, 0), *of_blocks, (ModelPart.MODEL, None)]


def _losses(model: Llama, samples: list[Sample], precision: Precision) -> LossTable:
    table = LossTable(rows=())
    for sample in samples:
        table += losses(model, sample, precision=precision)
    return table.without_histograms()


def _ablated(
    model: Llama, samples: list[Sample], precision: Precision, ablation: Ablation, seed: int
) -> Iterator[AblatedLosses]:
    """Yield the losses with each part ablated."""
    sources = [_source(model, sample, precision, ablation, seed) for sample in samples]
    for part, layer in parts_of(model):
        table = LossTable(rows=())
        for sample, source in zip(samples, sources, strict=True):
            batches = ablated_losses(
                model, sample.composer, sample.ids, writes_of(model, part, layer), source, precision
            )
            table += tabulate(sample, sample.groups, batches)
        yield AblatedLosses(part=part, layer=layer, ablation=ablation, losses=table.without_histograms())


class Write(NamedTuple):
    """The residuals before and after a part adds to the stream; `before` is None for the embeddings."""

    before: int | None
    after: int


def writes_of(model: Llama, part: ModelPart, layer: int | None) -> list[Write]:
    """Return what a part of a layer, or of all layers, adds to the residual stream."""
    layers = range(1, 1 + len(model.layers)) if layer is None else [layer]
    match part:
        case ModelPart.EMBEDDING:
            return [Write(None, 0)]
        case ModelPart.ATTENTION:
            return [Write(2 * each - 2, 2 * each - 1) for each in layers]
        case ModelPart.MLP:
            return [Write(2 * each - 1, 2 * each) for each in layers]
        case ModelPart.BLOCK:
            return [Write(2 * each - 2, 2 * each) for each in layers]
        case ModelPart.MODEL:
            return [Write(None, 0), *writes_of(model, ModelPart.BLOCK, None)]


Source = Callable[[slice, Batch], Tensor]
"""Returns the residuals (residuals, N, H) from which the nodes of a batch of some texts get what ablated parts add."""


def _source(model: Llama, sample: Sample, precision: Precision, ablation: Ablation, seed: int) -> Source:
    if ablation is Ablation.MEAN:
        return partial(from_means, mean_residuals(model, sample.composer, sample.ids, precision))
    others = other_texts(sample.ids, np.random.default_rng([seed, sample.composer.corpus_index]))
    return partial(from_texts, model, sample.composer, others, precision)


def other_texts(ids: Ids, rng: np.random.Generator) -> Ids:
    """Return another text for each text, drawn so that every text is drawn once."""
    order = rng.permutation(len(ids))
    others = np.empty_like(ids)
    others[order] = ids[np.roll(order, 1)]
    return others


@torch.no_grad()
def mean_residuals(model: Llama, composer: Composer, ids: Ids, precision: Precision) -> Tensor:
    """Return the means of all residuals of some texts at each position, (residuals, positions, H)."""
    length = composer.row_length - 1
    sums = torch.zeros(num_residuals(model), length, model.spec.hidden_size, dtype=torch.float64, device=model.device)
    counts = torch.zeros(length, device=model.device)
    for part in _batches(model, composer, len(ids)):
        residuals, lengths = _residuals(model, composer, ids[part], precision)
        num_positions = residuals.shape[2]
        is_text = torch.arange(num_positions, device=model.device) < lengths[:, None]
        sums[:, :num_positions] += torch.einsum("rnth,nt->rth", residuals.double(), is_text.double())
        counts[:num_positions] += is_text.sum(dim=0)
    return (sums / counts.clamp(min=1)[:, None]).float()


def from_means(means: Tensor, part: slice, batch: Batch) -> Tensor:
    return means[:, batch.position_ids[0]]


def from_texts(
    model: Llama, composer: Composer, others: Ids, precision: Precision, part: slice, batch: Batch
) -> Tensor:
    """Return the residuals of other texts at the same positions, or at their last position where they are shorter."""
    residuals, lengths = _residuals(model, composer, others[part], precision)
    text, position = batch.text_of[0], batch.position_ids[0]
    return residuals[:, text, position.minimum(lengths[text] - 1)]


def _residuals(model: Llama, composer: Composer, ids: Ids, precision: Precision) -> tuple[Tensor, Tensor]:
    """Return the residuals of some texts, (residuals, n, T, H), and the numbers of their input tokens, (n,)."""
    rows = composer.compose(ids, composer.row_length)
    batch = whole_rows(rows, model)
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x[0].view(*batch.shape, -1))
        return x

    with autocast(precision, model.device):
        model(batch, keep)
    return torch.stack(seen), torch.from_numpy(rows.lengths - 1).to(model.device)


@torch.no_grad()
def ablated_losses(
    model: Llama, composer: Composer, ids: Ids, writes: list[Write], source: Source, precision: Precision
) -> Iterator[TextBatch]:
    """Yield the losses of a single model on texts, where some parts add what they add in the source."""
    num_measures = len(composer.corpus.measures)
    for part in _batches(model, composer, len(ids)):
        batch = whole_rows(composer.compose(ids[part], composer.row_length), model)
        measured = batch.loss_mask[0].nonzero()[:, 0]
        with autocast(precision, model.device):
            hidden = model(batch, _Replace(writes, source(part, batch)))[:, measured]
            (nats,) = cross_entropy(hidden, model.unembedding, batch.targets[:, measured])
        entry = batch.text_of[0, measured] * num_measures + batch.labels[0, measured] - 1
        bits, contains = bits_by_measure(nats, entry, (batch.num_texts[0], num_measures))
        yield TextBatch(part, bits, contains, None)


class _Replace:
    """A tap that replaces what some parts add to the residual stream by what they add in other residuals."""

    def __init__(self, writes: list[Write], source: Tensor) -> None:
        self._writes, self._source = {write.after: write for write in writes}, source
        self._seen: list[Tensor] = []

    def __call__(self, x: Tensor) -> Tensor:
        write = self._writes.get(len(self._seen))
        if write is not None:
            after = self._source[write.after]
            x = after[None]
            if write.before is not None:
                x = self._seen[write.before] + (after - self._source[write.before])
        self._seen.append(x)
        return x


def _batches(model: Llama, composer: Composer, num_texts: int) -> Iterator[slice]:
    """Yield slices of texts whose residuals and logits fit into memory."""
    by_residuals = MAX_RESIDUALS // (num_residuals(model) * composer.row_length * model.spec.hidden_size)
    num_rows = min(rows_per_batch(model, composer), max(1, by_residuals))
    for begin in range(0, num_texts, num_rows):
        yield slice(begin, begin + num_rows)


def quantised(model: Llama, part: ModelPart, layer: int | None, weights: WeightFormat) -> Llama:
    """Return a copy of a model with the rounded weights of a part. Gains of norms are unchanged.

    The embeddings include the output layer. What a looped model shares is rounded in all passes.
    """
    changed = model.copy()
    blocks = [*changed.layers] if layer is None else [changed.layers[layer - 1]]
    modules: list[nn.Module]
    match part:
        case ModelPart.MODEL:
            modules = [changed]
        case ModelPart.EMBEDDING:
            modules = [changed.embed_tokens, *([] if changed.spec.tie_embeddings else [changed.lm_head])]
        case ModelPart.ATTENTION:
            modules = [block.get_submodule("self_attn") for block in blocks]
        case ModelPart.MLP:
            modules = [block.get_submodule("mlp") for block in blocks]
        case ModelPart.BLOCK:
            modules = blocks
    parameters = {
        parameter: None
        for module in modules
        for name, parameter in module.named_parameters()
        if ParameterGroup.of(name) is not ParameterGroup.GAIN
    }
    for parameter in parameters:
        parameter.detach()[0].copy_(rounded(parameter.detach()[0], weights.num_bits))
    return changed
