"""Test of the accounting on the reference's eight capacity-limited one-hop cells (docs/science.md#reference-mistakes)."""

import math

import numpy as np
import pytest

from raycap.analysis.analyse import analyse
from raycap.analysis.measurements import Measured, question_set
from raycap.analysis.planted import planted_keys
from raycap.analysis.readings import Reading
from raycap.plan.expand import expand
from raycap.results import Evaluation, LossRow, LossTable, Provenance, StopReason, SweepRecord, TrialResult
from raycap.spec import (
    AnalysisSpec,
    EncodingScheme,
    ModelByWidth,
    ProfilesByCount,
    SelectionScheme,
    SweepSpec,
    TrialSpec,
)
from raycap.spec.build_points import GridPoint
from raycap.spec.file import LoadedSweep
from tests.support.planted import RUN

CELLS = [  # people, parameters, loss in nats per question
    (25_000, 1_166_688, 4.26),
    (25_000, 1_475_824, 0.81),
    (30_000, 890_320, 6.17),
    (30_000, 1_166_688, 5.80),
    (30_000, 1_475_824, 2.30),
    (50_000, 890_320, 9.16),
    (50_000, 1_166_688, 7.95),
    (50_000, 1_475_824, 7.28),
]
WIDTHS = {890_320: 80, 1_166_688: 96, 1_475_824: 112}
SET, ENUMERATE, INDEPENDENT = (Reading(EncodingScheme.OPTIMAL, selection) for selection in SelectionScheme)


@pytest.fixture(scope="module")
def record() -> SweepRecord:
    """A sweep of models with the reference's parameter counts: untied, four layers, 3,000 tokens."""
    spec = SweepSpec(name="reference", analysis=AnalysisSpec(per_subject=False))
    points = [
        GridPoint(
            {"profiles.num_profiles": people, "model.hidden_size": WIDTHS[params]},
            TrialSpec(
                profiles=ProfilesByCount(num_profiles=people, num_relations=4),
                model=ModelByWidth(hidden_size=WIDTHS[params], num_layers=4, tie_embeddings=False),
            ),
            "reference",
        )
        for people, params, _ in CELLS
    ]
    trials = expand(LoadedSweep(spec, points, "", ""))
    counted = [
        trial.model_copy(update={"parameters": trial.parameters.model_copy(update=embeddings(trial.spec))})
        for trial in trials
    ]
    return SweepRecord(spec=spec, question="", spec_yaml="", trials=tuple(counted))


def embeddings(spec: TrialSpec) -> dict[str, int]:
    return dict.fromkeys(("embedding", "unembedding"), 3000 * spec.model.hidden_size)


def results(record: SweepRecord) -> dict[str, TrialResult]:
    """Results in which every subject has the published mean loss; losses by subject are not published."""
    found = {}
    for trial, (_, params, nats) in zip(record.trials, CELLS, strict=True):
        assert trial.parameters.total == params
        questions = question_set(trial.spec, trial.populations, *planted_keys(trial.spec, trial.populations))
        bits = nats / math.log(2)
        rows = tuple(
            LossRow(
                kind=kind,
                subject=subject,
                sum_bits=bits * count,
                sum_squares_bits2=bits**2 * count,
                num_evaluated=count,
                num_texts=count,
            )
            for (kind, subject, *_), count in zip(questions.keys, questions.num_texts, strict=True)
        )
        numbers = dict.fromkeys(
            ("exposures", "learning_rate", "train_loss_bits", "train_seconds", "parameter_norm"), 1.0
        )
        found[trial.trial_id] = TrialResult(
            trial_id=trial.trial_id,
            spec=trial.spec,
            populations=trial.populations,
            parameters=trial.parameters,
            vocab_size=3000,
            num_steps=1,
            stop_reason=StopReason.LENGTH,
            num_workers=1,
            evaluations=(Evaluation(step=1, tokens=1, losses=LossTable(rows=rows), **numbers),),
            provenance=Provenance(git_commit="reference", versions={}, host="", device=""),
        )
    return found


def test_published_losses_give_the_expected_bits_per_parameter(record: SweepRecord) -> None:
    measured = {trial_id: Measured.of(result) for trial_id, result in results(record).items()}
    analysis = analyse(record, RUN, measured, {})
    per_param = {reading: analysis.totals(reading, final=True)["bits_per_param"] for reading in analysis.laws}
    spread = {reading: bits.std() / bits.mean() for reading, bits in per_param.items()}
    print({str(r): (round(b.mean(), 3), round(spread[r], 3)) for r, b in per_param.items()})
    assert per_param[SET].mean() == pytest.approx(1.59, abs=0.015)
    assert per_param[ENUMERATE].mean() == pytest.approx(2.02, abs=0.015)
    assert per_param[INDEPENDENT].mean() == pytest.approx(3.98, abs=0.06)
    assert spread[ENUMERATE] == pytest.approx(0.08, abs=0.01)
    assert spread[SET] == pytest.approx(0.18, abs=0.015)
    assert per_param[SET].tolist() == pytest.approx([1.58, 1.92, 1.77, 1.46, 1.98, 1.14, 1.47, 1.42], rel=0.02)
    comparison = analysis.comparison
    print(comparison.best, comparison.scores_bits, comparison.weights)
    for pair in comparison.pairs:
        print(pair)
    for trend in comparison.trends:
        print(trend)
    assert comparison.ahead == ENUMERATE  # not decided: the evidence of eight cells with one seed is weak
    assert np.isfinite(analysis.laws[ENUMERATE].alpha.low)
