"""The analysis `probe` of a stored model: what can be read from its residuals about questions, and what it uses of it."""

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from raycap.facts.corpus import SPLITS, Ids
from raycap.facts.probing import ABSENT, ProbeTask, TargetPart, draw_questions, fold_of, probe_task
from raycap.facts.questions import Questions
from raycap.learner.interchange import interchanges
from raycap.learner.kept_models import LoadedModel
from raycap.learner.model import Llama, build_model
from raycap.learner.probed_questions import ProbedQuestions, own_rows, probed_residuals
from raycap.learner.probes import Bits, clustered_error, code_length_bits, read_bits
from raycap.results.probes import InterchangeRow, ProbeReadings, ProbeRow
from raycap.spec.probes import ProbeSite, ProbesSpec
from raycap.tokens.training_data import TrainingData

MAX_HOPS = 2
"""Largest number of hops of questions that are probed."""


def probe(loaded: LoadedModel, options: dict[str, Any], folder: Path) -> ProbeReadings:
    """Return the readings of a stored model; `options` are the fields of a ProbesSpec. Writes nothing into the folder.

    Raises ValueError for a model of transformers, whose residuals are not read.
    """
    return probe_model(loaded.llama(), loaded.data, ProbesSpec.model_validate(options, strict=False))


def probe_model(model: Llama, data: TrainingData, spec: ProbesSpec) -> ProbeReadings:
    """Probe a single model on questions of one and two hops about the last population that it was trained on."""
    generator = torch.Generator().manual_seed(data.spec.training.seed)
    untrained = build_model(model.spec, model.vocab_size, generators=(generator,), device=model.device)
    rows: list[ProbeRow] = []
    moved: list[InterchangeRow] = []
    for composer, population in zip(data.composers, data.population_of, strict=True):
        corpus = composer.corpus
        if population != data.population_of[-1] or not isinstance(corpus, Questions) or corpus.hops > MAX_HOPS:
            continue
        rng = np.random.default_rng([spec.seed, corpus.hops])
        ids, codes = draw_questions(corpus, spec.splits, spec.num_texts, rng)
        if not len(ids):
            continue
        questions = ProbedQuestions.of(model, composer, ids, spec.sites)
        before = ProbedQuestions.of(untrained, composer, ids, spec.sites)
        for target in spec.targets:
            task = probe_task(corpus, ids, target, rng)
            if task is not None:
                reader = TaskReader.of(task, data.tokenizer, spec, rng)
                rows += read_task(questions, before, codes, reader)
        if spec.num_pairs:
            moved += interchanges(questions, data.tokenizer, spec, rng)
    return ProbeReadings(probes=tuple(rows), interchanges=tuple(moved))


def read_task(
    questions: ProbedQuestions, untrained: ProbedQuestions, codes: NDArray[np.uint8], reader: "TaskReader"
) -> list[ProbeRow]:
    """Return a row for each residual, site and split."""
    rows = []
    for residual, site in product(probed_residuals(questions.model, reader.spec.layers), questions.sites):
        usable = reader.read(questions, residual, site)
        control = reader.read(questions, residual, site, is_control=True)
        before = reader.read(untrained, residual, site)
        for split in np.unique(codes):
            of_split = codes == split
            mean, error = usable.mean_and_error(of_split)
            control_mean, control_error = control.mean_and_error(of_split)
            before_mean, before_error = before.mean_and_error(of_split)
            row = ProbeRow(
                kind=questions.composer.corpus.kind,
                split=SPLITS[split],
                target=reader.task.target,
                site=site,
                layer=residual / 2,
                num_texts=int(of_split.sum()),
                entropy_bits=float(usable.entropy[:, of_split].sum(axis=0).mean()),
                usable_bits=mean,
                usable_error_bits=error,
                control_bits=control_mean,
                control_error_bits=control_error,
                untrained_bits=before_mean,
                untrained_error_bits=before_error,
                code_length_bits=reader.code_length_bits(questions, residual, site, of_split),
                parts_bits={
                    part.name: float(bits[of_split].mean())
                    for part, bits in zip(reader.parts, usable.usable, strict=True)
                },
            )
            rows.append(row)
    return rows


@dataclass(frozen=True)
class _Read:
    """Bits of the parts of a target without and with a residual, each (parts, n) and 0 for absent parts."""

    entropy: Bits
    usable: Bits
    types: Ids

    def mean_and_error(self, of_split: NDArray[np.bool_]) -> tuple[float, float]:
        """Return the mean usable information over the questions of a split, summed over parts, and its error."""
        values = self.usable[:, of_split].sum(axis=0)
        return float(values.mean()), clustered_error(values, self.types[of_split])


@dataclass(frozen=True)
class TaskReader:
    """Reads one target of some questions from residuals."""

    task: ProbeTask
    parts: tuple[TargetPart, ...]
    """Parts that can be read: they have several classes, and are present in every fold."""
    folds: Ids
    order: Bits
    """Position of each question in the prequential code, from 0 to 1; questions of one group are encoded together."""
    tokenizer: Tokenizer
    spec: ProbesSpec

    @classmethod
    def of(cls, task: ProbeTask, tokenizer: Tokenizer, spec: ProbesSpec, rng: np.random.Generator) -> "TaskReader":
        num_groups = len(np.unique(task.groups))
        folds, order = fold_of(task.groups, spec.num_folds, rng), fold_of(task.groups, num_groups, rng) / num_groups
        parts = tuple(
            part
            for part in task.parts
            if len(part.words) > 1 and len(np.unique(folds[part.labels != ABSENT])) == spec.num_folds
        )
        return cls(task, parts, folds, order, tokenizer, spec)

    def read(self, questions: ProbedQuestions, residual: int, site: ProbeSite, *, is_control: bool = False) -> _Read:
        """Read the target, or the labels of the control task, on folds that are left out."""
        x = questions.inputs(residual, site)
        entropy, usable = np.zeros((2, len(self.parts), len(x)))
        for index, part in enumerate(self.parts):
            labels = part.control if is_control else part.labels
            present = np.flatnonzero(labels != ABSENT)
            at, y, folds = (torch.from_numpy(a).to(x.device) for a in (present, labels[present], self.folds[present]))
            own = own_rows(questions.model, self.tokenizer, part)
            null, loss = read_bits(x[at], y, folds, own, self.spec.family)
            entropy[index, present], usable[index, present] = null, null - loss
        return _Read(entropy, usable, self.task.types)

    def code_length_bits(
        self, questions: ProbedQuestions, residual: int, site: ProbeSite, of_split: NDArray[np.bool_]
    ) -> float:
        """Return the prequential code length of the target per question of a split."""
        x, total = questions.inputs(residual, site), 0.0
        for part in self.parts:
            present = np.flatnonzero(of_split & (part.labels != ABSENT))
            arrays = present, part.labels[present], self.order[present]
            at, y, order = (torch.from_numpy(a).to(x.device) for a in arrays)
            own = own_rows(questions.model, self.tokenizer, part)
            total += code_length_bits(x[at], y, order, own, self.spec.family)
        return total / int(of_split.sum())
