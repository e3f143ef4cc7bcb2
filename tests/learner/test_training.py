"""Training and measuring without Ray: schedules, losses in bits, resuming, diverging."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from raycap.facts.hosted import profiles_of
from raycap.facts.profiles import census_schema, generate
from raycap.learner import model as llama
from raycap.learner.evaluation import DivergedError, answer_losses
from raycap.learner.optim import learning_rate
from raycap.learner.tokens import Composer, build_tokenizer
from raycap.learner.training import pause_steps
from raycap.learner.trial import TrainedTrial, run_trial
from raycap.results import Evaluation, LossTable
from raycap.spec import (
    AdamWSpec,
    BpeTokenizer,
    Exposures,
    ModelByWidth,
    NamePools,
    NumHeads,
    Precision,
    ProfilesByCount,
    ProfilesFromDisk,
    QuestionsSpec,
    Schedule,
    TrainingSpec,
    TrialSpec,
    WordTokenizer,
)

TINY = TrialSpec(
    profiles=ProfilesByCount(num_profiles=40, num_relations=2, names=NamePools(first=8, middle=8, last=8)),
    model=ModelByWidth(hidden_size=16, num_layers=2, heads=NumHeads(num_heads=1), tie_embeddings=True),
    training=TrainingSpec(
        length=Exposures(exposures=40),
        batch_size=32,
        num_evaluations=4,
        optimizer=AdamWSpec(lr=0.01, warmup_steps=20, weight_decay=0.0),
    ),
)


def trained(spec: TrialSpec, **options: object) -> TrainedTrial:
    return run_trial(spec, source_commit="test", **options)


def weights(trial: TrainedTrial) -> list[torch.Tensor]:
    return [p.detach() for p in trial.model.parameters()]


@pytest.mark.parametrize("schedule", Schedule)
def test_learning_rates_rise_then_follow_their_schedule(schedule: Schedule) -> None:
    spec = AdamWSpec(lr=0.5, warmup_steps=10, schedule=schedule)
    rates = [learning_rate(spec, step, 110) for step in range(110)]
    assert rates[:10] == pytest.approx([0.05 * i for i in range(1, 11)])
    assert max(rates) == pytest.approx(0.5)
    after = rates[10:]
    expected = {
        Schedule.LINEAR: [0.5 * (1 - i / 100) for i in range(100)],
        Schedule.COSINE: [0.25 * (1 + math.cos(math.pi * i / 100)) for i in range(100)],
        Schedule.CONSTANT: [0.5] * 100,
    }
    assert after == pytest.approx(expected[schedule])


def test_evaluations_double_up_to_the_last_step() -> None:
    evaluations, pauses = pause_steps(1000, 3, 400)
    assert evaluations == [250, 500, 1000]
    assert pauses == [250, 400, 500, 800, 1000]
    assert pause_steps(1, 8, 400) == ([1], [1])


def test_a_model_that_knows_nothing_loses_log2_of_the_vocabulary_per_token() -> None:
    profiles = generate(census_schema(NamePools(first=8, middle=8, last=8), 2), 30, seed=0)
    tokenizer = build_tokenizer(WordTokenizer(), profiles)
    vocab_size = tokenizer.get_vocab_size()
    composer = Composer.build(profiles, tokenizer)
    model = llama.build(TINY.model, vocab_size, generator=torch.Generator().manual_seed(0))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    options = {"sample": 10_000, "seed": 0, "precision": Precision.FP32}
    losses = answer_losses(model, composer, [1, 2], **options)
    tokens = {"birth_date": 4, "birth_city": 2, "university": 2, "employer": 2, "parent": 4, "child": 4}
    for hops in (1, 2):
        for row in losses.of_hops(hops):
            assert row.mean_bits == pytest.approx(tokens[row.subject] * math.log2(vocab_size), rel=1e-6)
            assert row.num_evaluated == row.num_questions == 30 * 2 ** (hops - 1)
            assert row.standard_error_bits == 0


def test_ranks_add_up_and_samples_stay_within_their_standard_error() -> None:
    trial = trained(TINY.model_copy(update={"questions": QuestionsSpec(hops=(1, 2), one_hop_share=0.5)}))
    profiles = generate(census_schema(TINY.profiles.names, 2), 40, seed=0)
    composer = Composer.build(profiles, trial.tokenizer)

    def measure(hops: list[int], sample: int = 10_000, **ranks: int) -> LossTable:
        return answer_losses(trial.model, composer, hops, sample=sample, seed=3, precision=Precision.FP32, **ranks)

    whole = measure([1, 2])
    parts = (
        measure([1, 2], rank=0, world_size=3)
        + measure([1, 2], rank=1, world_size=3)
        + measure([1, 2], rank=2, world_size=3)
    )
    for a, b in zip(whole.rows, parts.rows, strict=True):
        assert (a.subject, a.num_evaluated) == (b.subject, b.num_evaluated)
        assert a.sum_bits == pytest.approx(b.sum_bits)
    sampled = measure([2], sample=240)
    error = sampled.total_standard_error_bits(2)
    assert sum(row.num_evaluated for row in sampled.rows) == 240
    assert 0 < error < whole.total_bits(2)
    assert abs(sampled.total_bits(2) - whole.total_bits(2)) < 4 * error
    assert measure([1], sample=100).total_standard_error_bits(1) == 0  # one hop is always whole


def test_a_small_model_learns_its_facts() -> None:
    result = trained(
        TINY.model_copy(update={"training": TINY.training.model_copy(update={"length": Exposures(exposures=400)})})
    ).result
    losses = [evaluation.losses.mean_bits(1) for evaluation in result.evaluations]
    assert losses[0] > 3 * losses[-1]
    assert losses[-1] < 1.0, losses
    assert result.final.exposures >= 400
    assert result.population.num_profiles == 40
    # 6 tokens of question, 12 in the answers to 6 subjects, and an end.
    assert result.final.tokens == pytest.approx(result.num_steps * 32 * 9, rel=1e-9)


def test_a_trial_can_be_repeated_bit_by_bit_and_a_seed_changes_it() -> None:
    first, again = trained(TINY), trained(TINY)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))
    other = trained(TINY.model_copy(update={"training": TINY.training.model_copy(update={"seed": 1})}))
    assert not torch.equal(weights(first)[0], weights(other)[0])


def test_a_trial_resumed_from_a_checkpoint_ends_bit_equal(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    reports = 0

    def die_at_the_third(evaluation: Evaluation | None, checkpoint: Path | None) -> None:
        nonlocal reports
        reports += 1
        (checkpoint / "state.pt").rename(tmp_path / "state.pt")
        if reports == 3:
            raise Killed

    whole = trained(TINY, checkpoint_every=100)
    with pytest.raises(Killed):
        trained(TINY, checkpoint_every=100, report=die_at_the_third)
    resumed = trained(TINY, checkpoint_every=100, resume_from=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(resumed), strict=True))
    timeless = [
        [e.model_copy(update={"train_seconds": 0.0}) for e in trial.result.evaluations] for trial in (whole, resumed)
    ]
    assert timeless[0] == timeless[1]


def test_a_trial_resumed_after_its_last_step_has_its_result(tmp_path: Path) -> None:
    def keep(evaluation: Evaluation | None, checkpoint: Path | None) -> None:
        (checkpoint / "state.pt").replace(tmp_path / "state.pt")

    whole = trained(TINY, report=keep)
    assert trained(TINY, resume_from=tmp_path).result == whole.result


def test_a_diverging_trial_fails_with_its_step() -> None:
    training = TINY.training.model_copy(update={"optimizer": AdamWSpec(lr=1e30, warmup_steps=0, grad_clip=1e30)})
    with pytest.raises(DivergedError, match=r"not finite (at|after) step \d+.*lower optimizer.lr"):
        trained(TINY.model_copy(update={"training": training}))


def test_bf16_learns_what_fp32_learns() -> None:
    half = TINY.model_copy(update={"training": TINY.training.model_copy(update={"precision": Precision.BF16})})
    losses = [trained(spec).result.final.losses.mean_bits(1) for spec in (TINY, half)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)
    assert losses[1] != losses[0]


def test_the_references_own_profiles_train(shared_profiles: Path) -> None:
    spec = TrialSpec(
        profiles=ProfilesFromDisk(source="disk", path=str(shared_profiles)),
        tokenizer=BpeTokenizer(kind="bpe"),
        model=ModelByWidth(hidden_size=32, num_layers=2, tie_embeddings=True),
        training=TrainingSpec(
            length=Exposures(exposures=0.6),
            batch_size=64,
            num_evaluations=2,
            optimizer=AdamWSpec(lr=0.01, warmup_steps=20),
        ),
    )
    trial = trained(spec)
    profiles = profiles_of(spec.profiles)
    _, answer_tokens = Composer.build(profiles, trial.tokenizer).mean_tokens(1)
    untrained_bits = answer_tokens * math.log2(trial.result.vocab_size)
    half_way, end = (evaluation.losses.mean_bits(1) for evaluation in trial.result.evaluations)
    assert end < half_way < untrained_bits
    assert end < 0.7 * untrained_bits
    assert {row.subject for row in trial.result.final.losses.rows} == set(profiles.schema.subjects)


def test_the_batch_is_the_sum_of_its_parts() -> None:
    """Rows split over two workers give the gradient of the whole batch: what _sum_over_workers relies on."""
    from raycap.facts.questions import unpack
    from raycap.learner.evaluation import Batch, answer_token_losses

    trial = trained(TINY)
    profiles = generate(census_schema(TINY.profiles.names, 2), 40, seed=0)
    composer = Composer.build(profiles, trial.tokenizer)
    rows = composer.compose(unpack(profiles, 1, np.arange(50)), composer.row_length(1))

    def gradient(part: slice) -> torch.Tensor:
        trial.model.zero_grad()
        batch = Batch.of(rows[part], torch.device("cpu"))
        answer_token_losses(trial.model, batch).sum().backward()
        return trial.model.layers[0].mlp.gate_up_proj.weight.grad.clone()

    whole = gradient(slice(0, 50))
    assert torch.allclose(whole, gradient(slice(0, 50, 2)) + gradient(slice(1, 50, 2)), atol=1e-4)
