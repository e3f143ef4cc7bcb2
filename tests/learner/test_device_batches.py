"""Batches built on the device, and graphed steps, train as those that `Batch.of` builds.

CUDA graphs exist only on CUDA; elsewhere a graphed step runs the same code eagerly.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.learner import model as llama
from raycap.learner.batches import Batch
from raycap.learner.checkpoints import Checkpoints
from raycap.learner.device_batches import SIGNIFICANT_BITS, SortedRows, build_batch, rounded_up
from raycap.learner.signals import PausedError, Signal
from raycap.learner.trial import TrainedTrial, run_trials
from raycap.spec import (
    AdamW,
    BpeTokenizer,
    Exposures,
    Kind,
    ModelByWidth,
    Muon,
    NamePools,
    NumHeads,
    OptimizerSpec,
    ProfilesByCount,
    QuestionsByShare,
    TrainingSpec,
    TrialSpec,
)
from raycap.storage import Storage
from raycap.tokens.composer import Composer, Rows
from raycap.tokens.tokenizers import build_tokenizer

CPU = torch.device("cpu")
VOCAB_SIZE = 400
PEOPLE = generate(census_schema(NamePools(first=8, middle=8, last=8), 3), 30, seed=0)
CORPORA = tuple(Questions(PEOPLE, hops) for hops in (1, 2))
TOKENIZER = build_tokenizer(BpeTokenizer(kind="bpe", vocab_size=VOCAB_SIZE), CORPORA)
COMPOSERS = tuple(Composer.build(corpus, TOKENIZER, index) for index, corpus in enumerate(CORPORA))
LENGTH = max(composer.row_length for composer in COMPOSERS)
STACK = llama.build_model(
    ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=2)),
    VOCAB_SIZE,
    generators=tuple(torch.Generator().manual_seed(seed) for seed in range(3)),
)
OPTIMIZERS = [AdamW(lr=0.01, warmup_steps=20, weight_decay=0.1), Muon(kind="muon", lr=0.01, warmup_steps=20)]


def some_rows(seed: int, num: int) -> Rows:
    """Rows about one and two hops in random order, some of them twice."""
    rng = np.random.default_rng(seed)
    parts = [composer.compose(rng.integers(composer.corpus.num_ids, size=num), LENGTH) for composer in COMPOSERS]
    rows = Rows.concatenate(parts)
    return rows[rng.permutation(len(rows))[:num]]


def on_device(rows: list[Rows]) -> Batch:
    ordered = SortedRows.of(rows)
    arrays = [torch.from_numpy(array) for array in ordered.arrays]
    return build_batch(*arrays, shape=ordered.shape, vocab_size=VOCAB_SIZE)


def gradients(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of the measured tokens and the gradients of their sum."""
    nats = STACK.token_losses(batch)
    grads = torch.autograd.grad((nats * batch.loss_mask).sum(), list(STACK.parameters()))
    return nats.detach(), torch.cat([grad.flatten() for grad in grads])


@given(st.integers(1, 10**9))
def test_sizes_are_rounded_up_by_at_most_a_sixteenth_to_few_values(number: int) -> None:
    rounded = rounded_up(number)
    assert number <= rounded <= number * (1 + 2 / 2**SIGNIFICANT_BITS)
    assert rounded_up(rounded) == rounded


@pytest.mark.parametrize("seed", range(3))
def test_a_batch_built_on_the_device_has_the_texts_losses_and_gradients_of_the_one_built_on_the_host(seed: int) -> None:
    shared = some_rows(seed, 40)
    rows = [shared, some_rows(seed + 100, 40), shared]
    host, device = Batch.of(rows, VOCAB_SIZE, CPU), on_device(rows)
    for replica in range(len(rows)):
        of_host, of_device = host.loss_mask[replica] > 0, device.loss_mask[replica] > 0
        for name in ("targets", "text_of", "labels", "corpus"):
            assert torch.equal(getattr(host, name)[replica][of_host], getattr(device, name)[replica][of_device])
    (host_nats, host_gradients), (device_nats, device_gradients) = gradients(host), gradients(device)
    assert torch.allclose(host_nats[host.loss_mask > 0], device_nats[device.loss_mask > 0], atol=1e-6)
    assert float((host_gradients - device_gradients).norm() / host_gradients.norm()) < 1e-6


def test_each_distinct_prefix_is_computed_once() -> None:
    rows = some_rows(7, 60)
    batch, ordered = on_device([rows]), SortedRows.of([rows])
    distinct = Batch.of([rows], VOCAB_SIZE, CPU).tokens.shape[1]
    used = int(batch.node_of_cell.max()) + 1
    assert used == distinct <= ordered.shape.num_nodes


def test_rows_that_replicas_share_are_copied_once() -> None:
    shared = some_rows(1, 20)
    assert len(SortedRows.of([shared, shared, some_rows(2, 20)]).cells) == 2


def spec(seed: int, optimizer: OptimizerSpec) -> TrialSpec:
    return TrialSpec(
        profiles=ProfilesByCount(num_profiles=40, num_relations=2, names=NamePools(first=8, middle=8, last=8)),
        questions=QuestionsByShare(hops=(1, 2), one_hop_share=0.5),
        model=ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=2), tie_embeddings=True),
        training=TrainingSpec(
            length=Exposures(exposures=10), batch_size=32, num_evaluations=4, optimizer=optimizer, seed=seed
        ),
    )


def final_losses(outcomes: list[object]) -> list[float]:
    results = [outcome.result for outcome in outcomes if isinstance(outcome, TrainedTrial)]
    assert len(results) == len(outcomes)
    return [
        result.final.losses.select(kind=kind).mean_bits for result in results for kind in (Kind.ONE_HOP, Kind.TWO_HOP)
    ]


@pytest.mark.parametrize(
    "optimizer",
    [OPTIMIZERS[0], *(pytest.param(each, marks=pytest.mark.slow) for each in OPTIMIZERS[1:])],
    ids=lambda optimizer: optimizer.kind,
)
def test_graphed_training_ends_at_the_losses_of_eager_training(optimizer: OptimizerSpec) -> None:
    specs = (spec(0, optimizer), spec(1, optimizer.model_copy(update={"lr": 0.02})))
    eager = final_losses(run_trials(specs, source_commit="test"))
    assert final_losses(run_trials(specs, source_commit="test", graphed=True)) == pytest.approx(eager, rel=1e-4)


@pytest.mark.parametrize("first_graphed", [True, False])
def test_graphed_training_resumes_from_checkpoints_of_either_kind(first_graphed: bool, tmp_path: Path) -> None:
    one = (spec(0, OPTIMIZERS[0]),)
    whole = final_losses(run_trials(one, source_commit="test", graphed=True))
    checkpoints, signals = Checkpoints(Storage.at(str(tmp_path))), iter([Signal.CONTINUE] * 3)
    with pytest.raises(PausedError):
        run_trials(
            one,
            source_commit="test",
            graphed=first_graphed,
            checkpoints=checkpoints,
            poll_signal=lambda: next(signals, Signal.PAUSE),
        )
    resumed = final_losses(run_trials(one, source_commit="test", graphed=True, checkpoints=checkpoints))
    assert resumed == (whole if first_graphed else pytest.approx(whole, rel=1e-4))
