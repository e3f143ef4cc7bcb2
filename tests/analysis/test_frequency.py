"""Learned bits by frequency class: exact parts of the whole, planted thresholds and laws, and results of older versions."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from raycap.analysis.analyse import analyse
from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.class_laws import class_laws
from raycap.analysis.figures.frequencies import frequencies
from raycap.analysis.frames import Results
from raycap.analysis.frequency import class_bits, class_frame, thresholds
from raycap.analysis.frequency_section import frequency_section
from raycap.analysis.measurements import Losses, Measured
from raycap.analysis.planted import Truth, plant
from raycap.analysis.readings import headline
from raycap.analysis.stored import read_result
from raycap.facts.build import corpora_of, profiles_of
from raycap.learner.evaluation import Sample, losses
from raycap.learner.model import CPU, build_model
from raycap.plan.expand import expand
from raycap.results import Evaluation, LossTable, Part
from raycap.spec import (
    AnalysisSpec,
    Biographies,
    ModelByWidth,
    NamesOnly,
    NumHeads,
    Precision,
    QuestionsByShare,
    SelectionScheme,
    Split,
    TrialSpec,
    WordTokenizer,
)
from raycap.spec.build_points import GridPoint
from raycap.spec.file import LoadedSweep
from raycap.tokens.composer import Composer
from raycap.tokens.tokenizers import build_tokenizer
from tests.facts.test_frequencies import JUNK, PEOPLE
from tests.support.planted import RUN, results, sweep

QUESTIONS = {
    "one_hop": QuestionsByShare(),
    "two_hop": QuestionsByShare(hops=(1, 2)),
    "biographies": Biographies(kind="biographies", permute=True),
    "names": NamesOnly(kind="names"),
}


def losses_of(questions: str, with_classes: bool, sample: int = 100_000) -> tuple[TrialSpec, LossTable]:
    """Return the losses of a model that is not trained."""
    people = PEOPLE.model_copy(update={"frequencies": JUNK if with_classes else None})
    model = ModelByWidth(hidden_size=16, num_layers=1, heads=NumHeads(num_heads=1))
    spec = TrialSpec(profiles=people, questions=QUESTIONS[questions], model=model)
    corpora = corpora_of(profiles_of(spec.profiles), spec.questions)
    tokenizer = build_tokenizer(WordTokenizer(), corpora)
    random = build_model(model, tokenizer.get_vocab_size(), generators=(torch.Generator().manual_seed(0),), device=CPU)
    table = LossTable(rows=())
    for index, corpus in enumerate(corpora):
        sampled = Sample.of(Composer.build(corpus, tokenizer, index), 0, size=sample, seed=0)
        table += losses(random, sampled, precision=Precision.FP32)
    return spec, table


@pytest.mark.parametrize("questions", QUESTIONS)
def test_the_classes_are_exact_parts_of_the_whole(questions: str) -> None:
    spec, parts = losses_of(questions, with_classes=True)
    _, whole = losses_of(questions, with_classes=False)
    assert {row.frequency_class for row in whole.rows} == {0}
    summed: dict[tuple, list[float]] = {}
    for row in parts.rows:
        totals = summed.setdefault(row.key[:5], [0.0, 0.0, 0, 0])
        for index, value in enumerate((row.sum_bits, row.sum_squares_bits2, row.num_evaluated, row.num_texts)):
            totals[index] += value
    assert summed.keys() == {row.key[:5] for row in whole.rows}
    for row in whole.rows:
        expected = [row.sum_bits, row.sum_squares_bits2, row.num_evaluated, row.num_texts]
        assert summed[row.key[:5]] == pytest.approx(expected, rel=1e-5)
    if questions == "two_hop":
        return  # the inversion of two hops is not linear, so bits are not divided
    facts = (profiles_of(spec.profiles).facts,)
    numbers = dict.fromkeys(("exposures", "learning_rate", "train_loss_bits", "train_seconds", "parameter_norm"), 1.0)
    of_trial = Losses.of(spec, facts, [Evaluation(step=1, tokens=1, losses=parts, **numbers)])
    for per_subject in (True, False):
        analysis = AnalysisSpec(per_subject=per_subject)
        total = {c.reading.selection: c for c in capacities(of_trial, analysis) if c.subject == TOTAL}
        for selection in SelectionScheme:
            classes = [bits for bits in class_bits(of_trial, analysis) if bits.selection is selection]
            assert [bits.people.name for bits in classes] == ["useful", "junk"]
            assert sum(bits.learned_bits for bits in classes) == pytest.approx(total[selection].learned_bits)
            assert sum(bits.dataset_bits for bits in classes) == pytest.approx(total[selection].dataset_bits)


def test_a_sample_of_longer_questions_has_every_class() -> None:
    _, table = losses_of("two_hop", with_classes=True, sample=100)
    rows = [row for row in table.rows if row.kind.hops == 2]
    assert {row.frequency_class for row in rows} == {0, 1}
    assert all(2 <= row.num_evaluated < row.num_texts for row in rows)
    assert sum(row.num_texts for row in rows if row.split is Split.TRAIN and row.part is Part.ANSWER) == 40 * 2 * 6


def planted_classes(num_params: list[int], half: list[float]) -> pd.DataFrame:
    """Return a table of three classes whose learned share is a line in the logarithm of the exposures, 0.5 at `half`."""
    rows = [
        {
            "trial": trial, "step": 1, "exposures": 10.0, "final": True, "kind": "one_hop", "selection": "enumerate",
            "population": 0, "frequency_class": number, "name": name, "class_exposures": seen,
            "dataset_bits": 4.0 * size, "learned_bits": 4.0 * size * share, "learned_share": share,
        }
        for trial, (size, crossing) in enumerate(zip(num_params, half, strict=True))
        for number, (name, seen) in enumerate((("often", 100.0), ("at times", 10.0), ("rarely", 1.0)))
        for share in [0.5 + 0.2 * np.log10(seen / crossing)]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_planted_thresholds_and_laws_of_classes_are_recovered() -> None:
    sizes, half = [1000, 2000, 4000, 8000], [80.0, 40.0, 20.0, 200.0]
    table = planted_classes(sizes, half)
    found = thresholds(table, SelectionScheme.ENUMERATE)
    assert found[:3].to_list() == pytest.approx(half[:3])
    assert np.isnan(found[3])  # no class has half of its bits
    same = planted_classes(sizes, [30.0] * 4)
    trials = pd.DataFrame({"trial_id": list("abcd"), "cell": range(4), "num_params": sizes})
    laws = class_laws(trials, {3}, same, SelectionScheme.ENUMERATE, {"": range(4)}, seed=0)
    assert [(law.name, law.num_trials) for law in laws] == [("often", 3), ("at times", 3), ("rarely", 3)]
    shares = 0.5 + 0.2 * np.log10(np.array([100, 10, 1]) / 30.0)
    assert [law.alpha.estimate for law in laws] == pytest.approx(4 * shares)
    assert class_frame([], AnalysisSpec()).empty


def test_classes_are_in_laws_frames_figure_and_report() -> None:
    """All answers lose the same share, so the law of each class is that of the whole times the share of its people."""
    plain = sweep([10, 14, 20, 28])
    profiles = plain.trials[0].spec.profiles.model_copy(update={"frequencies": JUNK})
    points = [
        GridPoint(trial.coordinates, trial.spec.model_copy(update={"profiles": profiles}), "planted")
        for trial in plain.trials
    ]
    trials = tuple(expand(LoadedSweep(plain.spec, points, "", "")))
    assert all(trial.populations[0].frequencies for trial in trials)
    truth = Truth(headline(AnalysisSpec()), 1.5, noise=0.0)
    planted = plant(trials, truth, AnalysisSpec(), np.arange(4), rng=np.random.default_rng(0))
    assert [read_result(result.model_dump_json()) for result in planted] == planted
    measured = {result.trial_id: Measured.of(result) for result in planted}
    analysis = analyse(plain.model_copy(update={"trials": trials}), RUN, measured, {})
    assert [law.name for law in analysis.class_laws] == ["useful", "junk"]
    expected = [share * analysis.law.alpha.estimate for share in (0.25, 0.75)]
    assert [law.alpha.estimate for law in analysis.class_laws] == pytest.approx(expected, rel=1e-2)
    frame = Results(analysis).frequencies
    assert len(frame) == 4 * 8 * 2 * 3  # trials, evaluations, classes, selections
    useful = frame[frame["name"] == "useful"]
    assert (useful["class_exposures"] / useful["exposures"]).to_numpy() == pytest.approx(10 / 3.25)
    figure = frequencies(analysis)
    assert figure is not None
    assert "useful" in frequency_section(analysis)
    without = analyse(plain, RUN, {}, {})
    assert frequencies(without) is None
    assert frequency_section(without) == ""


def test_results_of_version_3_are_read() -> None:
    (result,) = results(sweep([12]), 1.5).values()
    raw = json.loads(result.model_dump_json()) | {"schema_version": 3}
    for population in raw["populations"]:
        del population["frequencies"]
    for evaluation in raw["evaluations"]:
        for row in evaluation["losses"]["rows"]:
            del row["frequency_class"]
    read = read_result(json.dumps(raw))
    assert read.evaluations == result.evaluations
    assert read.schema_version == 3
