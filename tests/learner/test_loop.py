"""Looped models: shared weights are counted, trained, saved and exported once. Stacks of other arms of the block."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from raycap.learner import model as llama
from raycap.learner import pretrained
from raycap.learner.checkpoints import Checkpoints
from raycap.learner.signals import PausedError, Signal
from raycap.learner.trial import TrainedTrial, run_trials
from raycap.plan.sizes import parameter_counts
from raycap.spec import (
    Activation,
    AdamW,
    Exposures,
    HeadSize,
    Loop,
    LoopSharing,
    Mlp,
    ModelByWidth,
    Muon,
    MuP,
    NamePools,
    OptimizerSpec,
    ProfilesByCount,
    QuestionsByShare,
    ScheduleFree,
    Standard,
    TrainingSpec,
    TrialSpec,
)
from raycap.storage import Storage

LOOPS = [Loop(times=3, shared=shared, own_norms=own) for shared in LoopSharing for own in (False, True)]
STANDARD = Standard()
OPTIMIZERS = [
    AdamW(lr=0.01, warmup_steps=20, weight_decay=0.1),
    ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=20),
    Muon(kind="muon", lr=0.01, warmup_steps=20),
]


def shape(loop: Loop | None, parametrization: Standard | MuP = STANDARD) -> ModelByWidth:
    return ModelByWidth(
        hidden_size=16, num_layers=2, heads=HeadSize(head_size=8), loop=loop, parametrization=parametrization
    )


def build(spec: ModelByWidth, seed: int = 0) -> llama.Llama:
    return llama.build_model(spec, 50, generators=(torch.Generator().manual_seed(seed),))


@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_shared_weights_are_counted_once(loop: Loop) -> None:
    counts, unlooped = build(shape(loop)).count_parameters(), parameter_counts(shape(None), 50)
    assert counts == parameter_counts(shape(loop), 50)
    assert (counts.attention == unlooped.attention) == (loop.shared is not LoopSharing.MLP)
    assert (counts.mlp == unlooped.mlp) == (loop.shared is not LoopSharing.ATTENTION)
    assert (counts.norms == unlooped.norms) == (not loop.own_norms)


@pytest.mark.parametrize("parametrization", [STANDARD, MuP(kind="mup", base_width=8)], ids=lambda each: each.kind)
@pytest.mark.parametrize("loop", LOOPS, ids=str)
def test_an_exported_loop_is_a_plain_llama_and_can_be_loaded_again(
    loop: Loop, parametrization: Standard | MuP, tmp_path: Path
) -> None:
    spec = shape(loop, parametrization)
    model = build(spec)
    pretrained.save_pretrained(model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert plain.config.num_hidden_layers == len(plain.model.layers) == 6
    tokens = torch.arange(1, 13)[None]
    again = pretrained.load_pretrained(spec, tmp_path)
    unlooped = pretrained.load_pretrained(spec.model_copy(update={"loop": None, "num_layers": 6}), tmp_path)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7)
    logits = plain(tokens).logits
    for mine in (again, unlooped):
        pretrained.save_pretrained(mine, tmp_path)
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(tmp_path)(tokens).logits, logits, atol=1e-5)


def test_a_model_whose_blocks_differ_is_no_loop(tmp_path: Path) -> None:
    pretrained.save_pretrained(build(shape(None).model_copy(update={"num_layers": 6})), tmp_path)
    with pytest.raises(ValueError, match=r"model\.loop"):
        pretrained.load_pretrained(shape(Loop(times=3)), tmp_path)


def trial(seed: int, optimizer: OptimizerSpec, model: ModelByWidth) -> TrialSpec:
    return TrialSpec(
        profiles=ProfilesByCount(num_profiles=30, num_relations=2, names=NamePools(first=8, middle=8, last=8)),
        questions=QuestionsByShare(hops=(1, 2), one_hop_share=0.5),
        model=model,
        training=TrainingSpec(
            length=Exposures(exposures=12), batch_size=32, num_evaluations=2, optimizer=optimizer, seed=seed
        ),
    )


def losses(outcomes: list[object]) -> list[float]:
    results = [outcome.result for outcome in outcomes if isinstance(outcome, TrainedTrial)]
    assert len(results) == len(outcomes)
    return [sum(row.sum_bits for row in result.final.losses.rows) for result in results]


RELU2 = Mlp(activation=Activation.RELU2, gated=False, ratio=3.0)
TRAINED = {
    "looped, AdamW": (OPTIMIZERS[0], shape(Loop(times=2))),
    "looped, schedule-free": (OPTIMIZERS[1], shape(Loop(times=2))),
    "looped, Muon": (OPTIMIZERS[2], shape(Loop(times=2))),
    "without gates, Muon": (OPTIMIZERS[2], shape(None).model_copy(update={"mlp": RELU2})),
    "parallel, AdamW": (OPTIMIZERS[0], shape(None).model_copy(update={"parallel": True})),
}
FIRST, *OTHERS = TRAINED


@pytest.mark.parametrize("case", [FIRST, *(pytest.param(case, marks=pytest.mark.slow) for case in OTHERS)])
def test_replicas_train_as_each_alone_and_resume_bit_equal(case: str, tmp_path: Path) -> None:
    optimizer, model = TRAINED[case]
    specs = tuple(trial(seed, optimizer, model) for seed in range(2))
    stacked = losses(run_trials(specs, source_commit="test"))
    alone = [losses(run_trials((spec,), source_commit="test"))[0] for spec in specs]
    assert stacked == pytest.approx(alone, rel=1e-3)
    checkpoints, signals = Checkpoints(Storage.at(str(tmp_path))), iter([Signal.CONTINUE] * 3)
    with pytest.raises(PausedError):
        run_trials(
            specs, source_commit="test", checkpoints=checkpoints, poll_signal=lambda: next(signals, Signal.PAUSE)
        )
    assert losses(run_trials(specs, source_commit="test", checkpoints=checkpoints)) == stacked


def test_a_loop_is_part_of_the_identity_of_a_trial_and_its_absence_is_not() -> None:
    plain = trial(0, OPTIMIZERS[0], shape(None))
    assert plain.trial_id == "cd4bc1aa52db"  # as before loops existed
    assert len({plain.trial_id, *(trial(0, OPTIMIZERS[0], shape(loop)).trial_id for loop in LOOPS)}) == 1 + len(LOOPS)
