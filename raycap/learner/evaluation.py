"""Losses of whole populations in bits. The only home of nats.

The loss of a question is the sum over its answer's tokens, end token included, of -log p(token | everything before).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from raycap.facts.questions import num_questions, unpack
from raycap.learner.model import Llama
from raycap.learner.tokens import Composer, Rows
from raycap.results import LossRow, LossTable
from raycap.spec import Precision

BITS_PER_NAT = 1 / math.log(2)
MAX_EVALUATION_ROWS = 4096
MAX_LOGITS = 2**25
"""Logits computed at once in an evaluation; 128 MiB in fp32."""


class DivergedError(ArithmeticError):
    """Losses are no longer finite numbers."""


@dataclass(frozen=True)
class Batch:
    """Rows as a model takes them. Letters as in model.py."""

    input_ids: Tensor  # (B, T), without the last token, which nothing follows
    positions: Tensor  # (A,), where in the flattened input an answer token is predicted
    targets: Tensor  # (A,), the answer tokens
    row_of: Tensor  # (A,), the row each answer token belongs to

    @classmethod
    def of(cls, rows: Rows, device: torch.device) -> Self:
        """Rows on a device, cut to the longest of them."""
        row, column = rows.answer_mask.nonzero()
        length = int(column.max())  # columns before the last target
        targets = rows.input_ids[row, column].astype(np.int64)
        arrays = (np.ascontiguousarray(rows.input_ids[:, :length]), row * length + column - 1, targets, row)
        return cls(*(torch.from_numpy(array).to(device, non_blocking=True) for array in arrays))


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """The context in which a precision computes."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision is Precision.BF16)


def answer_token_losses(model: Llama, batch: Batch) -> Tensor:
    """Loss of every answer token, (A,), in nats: `to_bits` makes it fit to report."""
    logits = model(batch.input_ids, batch.positions)
    return F.cross_entropy(logits.float(), batch.targets, reduction="none")


def to_bits(nats: float) -> float:
    """Nats as bits."""
    return nats * BITS_PER_NAT


@torch.no_grad()
def answer_losses(
    model: Llama,
    composer: Composer,
    hops: Iterable[int],
    *,
    sample: int,
    seed: int,
    precision: Precision,
    rank: int = 0,
    world_size: int = 1,
) -> LossTable:
    """Losses of the whole one-hop population and of every two-hop question, per subject.

    More than `sample` questions of two or more hops are evaluated on a sample of about that size, as many of each
    subject, drawn without replacement from `seed`. With several ranks each evaluates its share; the tables add up to
    the whole. Raises DivergedError if a loss is not finite.
    """
    profiles, device = composer.profiles, next(model.parameters()).device
    subjects = profiles.schema.subjects
    rows: list[LossRow] = []
    for k in hops:
        total = num_questions(profiles, k)
        ids = np.arange(total)
        if k > 1 and total > sample:
            rng, per_subject = np.random.default_rng([seed, k]), max(2, sample // len(subjects))
            chains = [rng.choice(total // len(subjects), per_subject, replace=False) for _ in subjects]
            ids = np.sort(np.concatenate([chain * len(subjects) + s for s, chain in enumerate(chains)]))
        ids = ids[rank::world_size]
        losses = np.concatenate([np.empty(0), *_question_losses(model, composer, k, ids, precision, device)])
        if not np.isfinite(losses).all():
            raise DivergedError(f"the losses of {(~np.isfinite(losses)).sum()} {k}-hop questions are not finite")
        subject = unpack(profiles, k, ids).subject
        sums, squares, counts = (
            np.bincount(subject, weights=weights, minlength=len(subjects)) for weights in (losses, losses**2, None)
        )
        rows += [
            LossRow(
                hops=k,
                subject=name,
                sum_bits=float(sums[s]),
                sum_squares_bits2=float(squares[s]),
                num_evaluated=int(counts[s]),
                num_questions=total // len(subjects),
            )
            for s, name in enumerate(subjects)
        ]
    return LossTable(rows=tuple(rows))


def _question_losses(
    model: Llama, composer: Composer, hops: int, ids: NDArray[np.int64], precision: Precision, device: torch.device
) -> Iterable[NDArray[np.float64]]:
    """Loss of each question in bits, batch by batch."""
    length = composer.row_length(hops)
    num_rows = min(MAX_EVALUATION_ROWS, max(1, int(MAX_LOGITS / model.vocab_size / composer.mean_tokens(hops)[1])))
    for begin in range(0, len(ids), num_rows):
        questions = unpack(composer.profiles, hops, ids[begin : begin + num_rows])
        batch = Batch.of(composer.compose(questions, length), device)
        with autocast(precision, device):
            nats = answer_token_losses(model, batch)
        per_question = torch.zeros(len(questions.person), dtype=torch.float64, device=device)
        per_question.index_add_(0, batch.row_of, nats.double())
        yield per_question.cpu().numpy() * BITS_PER_NAT
