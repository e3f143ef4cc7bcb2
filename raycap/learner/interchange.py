"""Interchange interventions: a residual of a base question is replaced by that of a source question.

Both questions ask for the same subject of different people, so that their answers differ. If the model computes the answer
from what the residual contains, it then prefers the answer of the source. See docs/probes.md#interchange.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from raycap.facts.probing import ABSENT, Pairs, draw_pairs, probe_task, site_slots
from raycap.facts.questions import Questions
from raycap.learner.probed_questions import ProbedQuestions, own_rows, probed_residuals
from raycap.learner.probes import Bits, clustered_error, fit_probe, random_subspace, subspace
from raycap.learner.residuals import Patch, text_losses
from raycap.results.probes import InterchangeRow, Space
from raycap.spec.probes import ProbeSite, ProbesSpec, ProbeTarget
from raycap.tokens.composer import Composer, Rows

SUBSPACE_SHARE = 4
"""Subspaces have at most the hidden size divided by this as their number of dimensions."""


def interchanges(
    questions: ProbedQuestions, tokenizer: Tokenizer, spec: ProbesSpec, rng: np.random.Generator
) -> Iterator[InterchangeRow]:
    """Yield a row for each residual, site and space, over pairs of the questions."""
    model, composer = questions.model, questions.composer
    corpus = composer.corpus
    assert isinstance(corpus, Questions)
    pairs = draw_pairs(corpus, questions.ids, spec.num_pairs, rng)
    if not len(pairs.base):
        return
    base, source = (np.searchsorted(questions.ids, ids) for ids in pairs)
    generator = torch.Generator().manual_seed(spec.seed)
    at_random = random_subspace(model.spec.hidden_size, generator)
    fitted = _ProbeDirections(questions, tokenizer, spec, rng)
    for site in questions.sites:
        texts = _texts(composer, pairs, site)
        before = _losses(questions, texts)
        preferred = before.base < before.source
        for residual in probed_residuals(model, spec.layers):
            values = questions.residuals[residual, source, list(questions.sites).index(site)]
            directions = fitted.basis(residual, site)
            bases = {Space.WHOLE: None, Space.PROBE: directions, Space.RANDOM: at_random[:, : directions.shape[1]]}
            for space, basis in bases.items():
                after = _losses(questions, texts, Patch(residual, questions.sites[site][base], values, basis))
                gained, moved = before.source - after.source, (after.source < after.base)[preferred].astype(float)
                yield InterchangeRow(
                    kind=corpus.kind,
                    site=site,
                    layer=residual / 2,
                    space=space,
                    num_dimensions=model.spec.hidden_size if basis is None else basis.shape[1],
                    num_pairs=len(gained),
                    gained_bits=float(gained.mean()),
                    gained_error_bits=clustered_error(gained, source),
                    moved_share=float(moved.mean()) if len(moved) else 0.0,
                    moved_error=clustered_error(moved, source[preferred]) if len(moved) else 0.0,
                )


class _Texts(NamedTuple):
    """Texts of pairs: the prompt of the base with its own answer, and with the answer of the source."""

    base: Rows
    source: Rows


class _Losses(NamedTuple):
    """Losses of these texts in bits, each (n,)."""

    base: Bits
    source: Bits


def _losses(questions: ProbedQuestions, texts: _Texts, patch: Patch | None = None) -> _Losses:
    return _Losses(*(text_losses(questions.model, rows, patch) for rows in texts))


def _texts(composer: Composer, pairs: Pairs, site: ProbeSite) -> _Texts:
    """Return the texts of pairs. In chains of thought, the chain up to the site is that of the base."""
    corpus = composer.corpus
    assert isinstance(corpus, Questions)
    slots = site_slots(corpus, pairs.base)
    last = max(slots[site], slots[ProbeSite.ANSWER])
    ends = [composer.last_columns(ids)[:, last] for ids in pairs]
    own, other = (composer.compose(ids, composer.row_length) for ids in pairs)
    return _Texts(own, spliced(own, other, *ends))


def spliced(first: Rows, second: Rows, first_end: NDArray[np.int32], second_end: NDArray[np.int32]) -> Rows:
    """Return the cells of `first` up to column `first_end`, followed by those of `second` after column `second_end`."""
    length = first.cells.shape[1]
    columns = np.arange(length + max(0, int((first_end - second_end).max())))
    from_second = columns - first_end[:, None] + second_end[:, None]
    cells = np.zeros(from_second.shape, first.cells.dtype)
    begins, continues = columns <= first_end[:, None], (columns > first_end[:, None]) & (from_second < length)
    row, column = np.nonzero(begins)
    cells[row, column] = first.cells[row, column]
    row, column = np.nonzero(continues)
    cells[row, column] = second.cells[row, from_second[row, column]]
    return Rows(cells, first.corpus)


class _ProbeDirections:
    """Directions in which probes of the bridge, or of the person of one-hop questions, read most."""

    def __init__(
        self, questions: ProbedQuestions, tokenizer: Tokenizer, spec: ProbesSpec, rng: np.random.Generator
    ) -> None:
        corpus = questions.composer.corpus
        assert isinstance(corpus, Questions)
        target = ProbeTarget.PERSON if corpus.hops == 1 else ProbeTarget.BRIDGE
        task = probe_task(corpus, questions.ids, target, rng)
        assert task is not None
        self._questions, self._tokenizer, self._spec, self._task = questions, tokenizer, spec, task
        self._validation: NDArray[np.bool_] = rng.random(int(task.groups.max()) + 1)[task.groups] < 1 / spec.num_folds

    def basis(self, residual: int, site: ProbeSite) -> Tensor:
        """Return orthonormal columns (H, k) of the directions, for residuals before the norm."""
        questions = self._questions
        x, weights = questions.inputs(residual, site), []
        for part in self._task.parts:
            present = np.flatnonzero(part.labels != ABSENT)
            arrays = present, part.labels[present], self._validation[present]
            at, labels, validation = (torch.from_numpy(a).to(x.device) for a in arrays)
            own = own_rows(questions.model, self._tokenizer, part)
            fitted = fit_probe(x[at], labels, validation, own, self._spec.family).weights
            weights.append(fitted - fitted.mean(dim=0))  # the mean does not change what is read
        gain = questions.model.norm.weight[0].detach()
        return subspace(torch.cat(weights) * gain, questions.model.spec.hidden_size // SUBSPACE_SHARE).cpu()
