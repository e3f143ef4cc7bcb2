"""Training and evaluation without Ray: losses in bits, seeds, precisions, divergence, plateaus."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycap.facts.build import profiles_of
from raycap.facts.corpus import Corpus
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.learner import model as llama
from raycap.learner.batches import Batch
from raycap.learner.checkpoints import Checkpoints
from raycap.learner.evaluation import DivergedError, Sample, losses
from raycap.learner.trial import TrainedTrial, run_trials
from raycap.results import HISTOGRAM_EDGES_BITS, LossTable, Part, StopReason
from raycap.spec import (
    AdamW,
    BpeTokenizer,
    EvaluationPlaces,
    Exposures,
    HeldOut,
    Kind,
    ModelByWidth,
    Muon,
    NamePools,
    OptimizerSpec,
    Plateau,
    Precision,
    ProfilesFromDisk,
    QuestionsByShare,
    Schedule,
    ScheduleFree,
    Split,
    Steps,
    TrainingSpec,
    TrialSpec,
    WordTokenizer,
)
from raycap.storage import Storage
from raycap.tokens.composer import Composer, Rows
from raycap.tokens.rows import RowSource, rows_of
from raycap.tokens.tokenizers import build_tokenizer
from tests.support.tiny import TINY, trained, trained_tiny, weights


@pytest.mark.parametrize(
    ("places", "expected"),
    [("doublings", {250, 500, 1000}), ("linear", {333, 667, 1000}), ([0.0001, 0.3], {1, 300, 1000})],
)
def test_evaluation_steps_follow_their_places_up_to_the_last_step(places: Any, expected: set[int]) -> None:
    training = TrainingSpec.model_validate_json(json.dumps({"num_evaluations": 3, "evaluate_at": places}))
    assert training.evaluation_steps(1000) == expected
    assert training.evaluation_steps(1) == {1}


def test_a_run_evaluates_at_the_places_of_its_spec() -> None:
    update = {"length": Steps(steps=8), "evaluate_at": (0.25, 0.75)}
    spec = TINY.model_copy(update={"training": TINY.training.model_copy(update=update)})
    doublings = spec.model_copy(
        update={"training": spec.training.model_copy(update={"evaluate_at": EvaluationPlaces.DOUBLINGS})}
    )
    assert [evaluation.step for evaluation in trained(spec).result.evaluations] == [2, 6, 8]
    assert trained(doublings).result.final.losses == trained(spec).result.final.losses
    assert spec.trial_id != doublings.trial_id


def measure(model: llama.Llama, composers: list[Composer], size: int = 10_000, **ranks: int) -> LossTable:
    table = LossTable(rows=())
    for composer in composers:
        table += losses(model, Sample.of(composer, 0, size=size, seed=3), precision=Precision.FP32, **ranks)
    return table


def composers_of(*corpora: Corpus) -> list[Composer]:
    tokenizer = build_tokenizer(WordTokenizer(), corpora)
    return [Composer.build(corpus, tokenizer, index) for index, corpus in enumerate(corpora)]


def test_a_model_with_zero_weights_loses_log2_of_the_vocabulary_per_token() -> None:
    profiles = generate(census_schema(NamePools(first=8, middle=8, last=8), 2), 30, seed=0)
    corpora = (Questions(profiles, 1), Questions(profiles, 2, chain_of_thought=True))
    vocab_size = build_tokenizer(WordTokenizer(), corpora).get_vocab_size()
    model = llama.build_model(TINY.model, vocab_size, generators=(torch.Generator().manual_seed(0),))
    for weight in model.storage.values():
        weight.zero_()
    table = measure(model, composers_of(*corpora))
    tokens = {"birth_date": 4, "birth_city": 2, "university": 2, "employer": 2, "parent": 4, "child": 4}
    for kind in (Kind.ONE_HOP, Kind.TWO_HOP):
        for row in table.select(kind).rows:
            assert row.mean_bits == pytest.approx(tokens[row.subject] * math.log2(vocab_size), rel=1e-6)
            assert row.num_evaluated == row.num_texts == 30 * 2 ** (kind.hops - 1)
        assert table.select(kind).standard_error_bits == 0
    for row in table.select(Kind.TWO_HOP, part=Part.CHAIN).rows:  # three names and the separator
        assert row.mean_bits == pytest.approx(4 * math.log2(vocab_size), rel=1e-6)


HELD_OUT = HeldOut(tuples=0.25, first_people=0.1)


@cache
def trained_with_held_out_questions() -> TrainedTrial:
    questions = QuestionsByShare(hops=(1, 2), one_hop_share=0.5, held_out=HELD_OUT)
    return trained(TINY.model_copy(update={"questions": questions}))


def test_tables_of_ranks_add_up_and_samples_agree_within_their_standard_error() -> None:
    trial, held_out = trained_with_held_out_questions(), HELD_OUT
    profiles = generate(census_schema(TINY.profiles.names, 2), 40, seed=0)
    composers = composers_of(Questions(profiles, 1, held_out=held_out), Questions(profiles, 2, held_out=held_out))
    whole = measure(trial.model, composers)
    parts = [measure(trial.model, composers, rank=rank, world_size=3) for rank in range(3)]
    for a, b in zip(whole.rows, (parts[0] + parts[1] + parts[2]).rows, strict=True):
        assert (a.key, a.num_evaluated) == (b.key, b.num_evaluated)
        assert a.sum_bits == pytest.approx(b.sum_bits)
    assert sum(row.num_texts for row in whole.rows) == 40 * 6 + 40 * 2 * 6
    sampled = measure(trial.model, composers, size=60)
    for split in (Split.TRAIN, Split.TUPLES):
        some, every = (table.select(Kind.TWO_HOP, split=split) for table in (sampled, whole))
        error = some.standard_error_bits
        # Equally many texts of each subject; fewer if a subject has fewer.
        assert 50 < sum(row.num_evaluated for row in some.rows) <= 60
        assert some.num_texts == every.num_texts
        assert 0 < error < every.mean_bits
        assert abs(some.mean_bits - every.mean_bits) < 4 * error
    assert sampled.select(Kind.ONE_HOP).standard_error_bits == 0  # one-hop questions are not sampled


def test_only_the_last_evaluation_keeps_histograms_of_losses() -> None:
    """Each evaluated text counts once, in the bin of its loss; the bounds of the bins bound the sum of losses."""
    result = trained_with_held_out_questions().result
    bounds = np.array([0.0, *HISTOGRAM_EDGES_BITS, np.inf])
    for row in result.final.losses.rows:
        counts = np.array(row.histogram)
        assert counts.sum() == row.num_evaluated
        filled = np.flatnonzero(counts)
        lower = (counts[filled] * bounds[filled]).sum()
        assert lower <= row.sum_bits * (1 + 1e-9)
        if filled[-1] < len(HISTOGRAM_EDGES_BITS):
            assert row.sum_bits <= (counts[filled] * bounds[filled + 1]).sum()
    assert all(row.histogram == () for e in result.evaluations[:-1] for row in e.losses.rows)


def test_the_parameter_norm_is_that_of_the_evaluated_weights() -> None:
    trial = trained_tiny()
    norm = math.sqrt(sum(float(w.double().square().sum()) for w in weights(trial)))
    assert trial.result.final.parameter_norm == pytest.approx(norm)
    first, *_, last = trial.result.evaluations
    assert first.parameter_norm != last.parameter_norm


@pytest.mark.slow  # tests/learner/test_arms_of_data.py::test_adamw_with_a_linear_schedule_learns is the one in CI
def test_a_small_model_learns_the_facts() -> None:
    optimizer = AdamW(lr=0.02, betas=(0.8, 0.99), weight_decay=0.0, warmup_steps=60, grad_clip=0.3)
    training = TINY.training.model_copy(update={"length": Exposures(exposures=120), "optimizer": optimizer})
    result = trained(TINY.model_copy(update={"training": training})).result
    means = [evaluation.losses.select(Kind.ONE_HOP).mean_bits for evaluation in result.evaluations]
    assert means[0] > 3 * means[-1]
    assert means[-1] < 1.0, means


def test_a_result_counts_its_exposures_people_and_tokens() -> None:
    result = trained_tiny().result
    length = TINY.training.length
    assert isinstance(length, Exposures)
    assert length.exposures <= result.final.exposures < length.exposures + 1
    assert result.populations[0].num_profiles == 40
    assert (result.stop_reason, result.final.phase) == (StopReason.LENGTH, 0)
    # A question has 6 tokens, its answer 2 on average over 6 subjects, and 1 end token.
    assert result.final.tokens == pytest.approx(result.num_steps * 32 * 9, rel=1e-9)


def test_a_repeated_trial_is_bit_equal_and_another_seed_is_not() -> None:
    first, again = trained_tiny(), trained(TINY)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))
    other = trained(TINY.model_copy(update={"training": TINY.training.model_copy(update={"seed": 1})}))
    assert not torch.equal(weights(first)[0], weights(other)[0])


def test_a_diverging_trial_raises_an_error_with_the_step() -> None:
    training = TINY.training.model_copy(update={"optimizer": AdamW(lr=1e30, warmup_steps=0, grad_clip=1e30)})
    with pytest.raises(DivergedError, match=r"step \d+.*optimizer\.lr"):
        trained(TINY.model_copy(update={"training": training}))


@pytest.mark.slow
def test_bf16_learns_what_fp32_learns() -> None:
    bf16 = TINY.model_copy(update={"training": TINY.training.model_copy(update={"precision": Precision.BF16})})
    finals = [trained_tiny().result.final, trained(bf16).result.final]
    means = [final.losses.select(Kind.ONE_HOP).mean_bits for final in finals]
    assert means[1] == pytest.approx(means[0], rel=0.1)
    assert means[1] != means[0]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the compiler issues warnings
def test_a_compiled_model_has_the_same_losses() -> None:
    eager, compiled = (trained(TINY, compiled=compiled).result for compiled in (False, True))
    for a, b in zip(eager.evaluations, compiled.evaluations, strict=True):
        assert b.train_loss_bits == pytest.approx(a.train_loss_bits, rel=1e-4)
        assert b.losses.mean_bits == pytest.approx(a.losses.mean_bits, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("precision", "optimizer", "tolerance"),
    [
        (Precision.FP32, AdamW(), 1e-5),
        (Precision.FP32, Muon(kind="muon"), 1e-5),
        (Precision.FP32, ScheduleFree(kind="schedule_free"), 1e-5),
        (Precision.BF16, AdamW(), 1e-2),
    ],
    ids=str,
)
def test_a_compiled_stack_has_the_same_losses(precision: Precision, optimizer: OptimizerSpec, tolerance: float) -> None:
    """Rows of learned pieces differ in length from step to step."""
    update = {"precision": precision, "optimizer": optimizer, "length": Steps(steps=8), "num_evaluations": 1}
    training = TINY.training.model_copy(update=update)
    tokenizer = BpeTokenizer(kind="bpe", vocab_size=600)
    specs = tuple(
        TINY.model_copy(update={"tokenizer": tokenizer, "training": training.model_copy(update={"seed": seed})})
        for seed in range(2)
    )
    eager, compiled = (run_trials(specs, source_commit="test", compiled=compiled) for compiled in (False, True))
    for a, b in zip(eager, compiled, strict=True):
        assert isinstance(a, TrainedTrial)
        assert isinstance(b, TrainedTrial)
        assert b.result.final.train_loss_bits == pytest.approx(a.result.final.train_loss_bits, rel=tolerance)
        assert b.result.final.losses.mean_bits == pytest.approx(a.result.final.losses.mean_bits, rel=tolerance)


def test_fp16_scales_its_loss_and_learns() -> None:
    """fp16 is slow on a CPU but uses the same loss scaling, clipping of unscaled gradients and scaler state as on a GPU."""
    short = TINY.training.model_copy(update={"length": Exposures(exposures=8), "num_evaluations": 1})
    means = [
        trained(TINY.model_copy(update={"training": short.model_copy(update={"precision": precision})})).result
        for precision in (Precision.FP32, Precision.FP16)
    ]
    fp32, fp16 = (result.final.losses.select(Kind.ONE_HOP).mean_bits for result in means)
    assert fp16 == pytest.approx(fp32, rel=0.05)
    assert fp16 != fp32


def test_each_seed_changes_only_its_own_part() -> None:
    """training.seed determines the weights; training.order_seed, by default the same number, determines the order."""

    def untrained(**seeds: int) -> tuple[torch.Tensor, np.ndarray]:
        """Return the initial weights, which a learning rate of 1e-30 leaves unchanged, and the first rows."""
        tree = TINY.training.model_dump(exclude={"seed", "order_seed"}) | seeds
        tree |= {"length": {"steps": 1}, "num_evaluations": 1}
        tree["optimizer"] = tree["optimizer"] | {"lr": 1e-30}
        spec = TINY.model_copy(update={"training": TrainingSpec.model_validate(tree)})
        seen = []

        def keep(sources: tuple[RowSource, ...], step: int) -> Iterator[list[Rows]]:
            for rows in rows_of(sources, step):
                seen.append(rows[0].input_ids)
                yield rows

        return weights(trained(spec, open_rows=keep))[0], seen[0]

    base, reordered, reweighted = untrained(seed=1), untrained(seed=1, order_seed=7), untrained(seed=2, order_seed=1)
    assert torch.equal(base[0], reordered[0])
    assert not np.array_equal(base[1], reordered[1])
    assert not torch.equal(base[0], reweighted[0])
    assert np.array_equal(base[1], reweighted[1])


@pytest.mark.slow
def test_profiles_of_the_reference_implementation_can_be_learned(shared_profiles: Path) -> None:
    spec = TrialSpec(
        profiles=ProfilesFromDisk(source="disk", path=str(shared_profiles)),
        tokenizer=BpeTokenizer(kind="bpe"),
        model=ModelByWidth(hidden_size=32, num_layers=2, tie_embeddings=True),
        training=TrainingSpec(
            length=Exposures(exposures=0.6),
            batch_size=64,
            num_evaluations=2,
            optimizer=AdamW(lr=0.01, warmup_steps=20),
        ),
    )
    trial = trained(spec)
    profiles = profiles_of(spec.profiles)
    counts = Composer.build(Questions(profiles, 1), trial.tokenizer).token_counts
    untrained_bits = counts.mean_measured * math.log2(trial.result.vocab_size)
    half_way, end = (evaluation.losses.select(Kind.ONE_HOP).mean_bits for evaluation in trial.result.evaluations)
    assert end < half_way < untrained_bits
    assert end < 0.7 * untrained_bits
    assert {row.subject for row in trial.result.final.losses.rows} == set(profiles.schema.subjects)


def test_the_gradient_of_a_batch_is_the_sum_of_those_of_its_parts() -> None:
    """Workers therefore obtain the gradient of the whole batch by summing their gradients."""
    trial = trained_tiny()
    profiles = generate(census_schema(TINY.profiles.names, 2), 40, seed=0)
    composer = Composer.build(Questions(profiles, 1), trial.tokenizer)
    rows = composer.compose(np.arange(50), composer.row_length)

    def gradient(part: slice) -> torch.Tensor:
        batch = Batch.of([rows[part]], trial.result.vocab_size, llama.CPU)
        return torch.autograd.grad(
            trial.model.token_losses(batch).sum(), trial.model.layers[0].mlp.gate_up_proj.weight
        )[0]

    whole = gradient(slice(0, 50))
    assert torch.allclose(whole, gradient(slice(0, 50, 2)) + gradient(slice(1, 50, 2)), atol=1e-4)


@pytest.mark.slow
def test_a_plateau_stops_training_with_its_reason(tmp_path: Path) -> None:
    """The facts are learned before the last step; the last evaluation is that of the step at which training stopped."""
    constant = AdamW(lr=0.01, warmup_steps=20, schedule=Schedule.CONSTANT)
    training = {"length": Exposures(exposures=400), "optimizer": constant}
    stop = Plateau(window_exposures=20, min_improvement=0.2)

    checkpoints = Checkpoints(Storage.at(str(tmp_path)))
    spec = TINY.model_copy(update={"training": TINY.training.model_copy(update={**training, "stop": stop})})
    result = trained(spec, checkpoints=checkpoints).result
    assert result.stop_reason is StopReason.PLATEAU
    assert result.num_steps == result.final.step < 400 * 240 / 32
    assert result.num_steps % 150 == 0  # 20 exposures of 240 facts in steps of 32
    assert trained(spec, checkpoints=checkpoints).result == result  # a finished trial is not trained further
