"""Planted losses of ablated and compressed models come back in frames, a figure, sections and metrics."""

from dataclasses import replace

import numpy as np
import pytest

from raycap.analysis.capacity import uniform_bits
from raycap.analysis.figures.localisation import localisation
from raycap.analysis.frames import Results
from raycap.analysis.inspected import Inspected
from raycap.analysis.localisation import localisation_rows, part_sums
from raycap.analysis.localisation_section import localisation_section
from raycap.analysis.model_section import model_section
from raycap.analysis.planted import Truth, plant
from raycap.analysis.readings import headline
from raycap.results import InspectionRecord, LossTable, ModelLosses, PlannedTrial, Record, TrialResult
from raycap.results.localisation import AblatedLosses, Localisation, ModelPart
from raycap.spec import Ablation, Kind, LocaliseSpec, ModelAnalysis
from raycap.storage import Storage
from raycap.storage.inspections import write_inspection
from raycap.terminal.localisation_table import localisation_table
from tests.support.inspection_records import inspection_record
from tests.support.synthetic import analysed, planned

OVERRIDES = ("trial.questions.hops=[1,2]", "grid.model.hidden_size=[20]", "grid.training.seed=[0,1]")
NOTHING, EVERYTHING = (ModelPart.MLP, 1), (ModelPart.MLP, 2)
"""A part without which the model loses no bits, and one without which it loses all of them."""
PARTS = [
    (ModelPart.EMBEDDING, 0), *((part, layer) for part in (ModelPart.ATTENTION, ModelPart.MLP, ModelPart.BLOCK)
    for layer in (1, 2, None)), (ModelPart.MODEL, None),
]  # fmt: skip


def uniform(table: LossTable, trial: PlannedTrial) -> LossTable:
    """The losses of a model that knows only the possible answers."""
    means = uniform_bits(trial.populations[0])
    rows = [
        row.model_copy(update={"sum_bits": means[row.subject] * row.num_evaluated, "sum_squares_bits2": 0.0})
        for row in table.rows
    ]
    return LossTable(rows=tuple(rows))


def record_of(trial: PlannedTrial, result: TrialResult, step: int) -> InspectionRecord[Record]:
    intact = result.final.losses
    nothing_left = uniform(intact, trial)
    ablated = [
        AblatedLosses(
            part=part,
            layer=layer,
            ablation=Ablation.MEAN,
            losses=nothing_left if (part, layer) in (EVERYTHING, (ModelPart.MODEL, None)) else intact,
        )
        for part, layer in PARTS
    ]
    options = LocaliseSpec(ablations=(Ablation.MEAN,), quantise=()).model_dump(mode="json")
    body = Localisation(intact=intact, ablated=tuple(ablated))
    return inspection_record(trial.trial_id, step, ModelAnalysis.LOCALISE, body, options)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    storage = Storage.at(str(tmp_path_factory.mktemp("storage")))
    record = planned(OVERRIDES)
    spec = record.spec.analysis
    truth = Truth(reading=headline(spec), bits_per_param=2.0)
    rng = np.random.default_rng(0)
    for trial, result in zip(
        record.trials, plant(record.trials, truth, spec, np.zeros(len(record.trials), int), rng=rng), strict=True
    ):
        intact = result.final.losses
        bodies = (
            ({}, intact),
            ({"quantise": "int8"}, intact),
            ({"prune": 0.5}, uniform(intact, trial)),
        )
        for step in (10, 20):
            write_inspection(storage, record_of(trial, result, step))
            for options, losses in bodies:
                body = ModelLosses(losses=losses)
                write_inspection(
                    storage, inspection_record(trial.trial_id, step, ModelAnalysis.EVALUATE, body, options)
                )
    return Results(replace(analysed(OVERRIDES, lambda _: truth), inspected=Inspected.read(record.trials, storage)))


def test_planted_losses_are_lost_bits(results: Results) -> None:
    frame = results.localisation
    assert len(frame) == 2 * 2 * len(PARTS)
    assert set(frame["step"]) == {10, 20}
    keys = list(zip(frame["part"], frame["layer"].astype(object).where(frame["layer"].notna(), None), strict=True))
    shares = dict(zip(keys, frame["lost_share"], strict=True))
    assert {key for key in shares if key[1] is None} == {key for key in PARTS if key[1] is None}
    assert shares[EVERYTHING] == pytest.approx(1)
    assert shares[ModelPart.MODEL, None] == pytest.approx(1)
    assert [share for key, share in shares.items() if key not in (EVERYTHING, (ModelPart.MODEL, None))] == [0] * 9
    lost = frame[frame["lost_share"] > 0.5]
    names = lost["learned_bits"]  # the bits of the names, which no ablation can lose
    assert (names > 0).all()
    assert names.nunique() == 1
    for kind in (Kind.ONE_HOP, Kind.TWO_HOP):
        assert (lost[f"{kind}_lost_bits"] > 0).all()
        assert (lost[f"{kind}_loss_bits"] > 1).all()


def test_sums_over_layers_stand_beside_all_layers_together(results: Results) -> None:
    analysis = results.analysis
    trials, spec = analysis.sweep.trials, analysis.sweep.spec.analysis
    rows = localisation_rows(trials, analysis.inspected.localisations, spec)
    sums = part_sums(rows[rows["step"] == 20])
    assert len(sums) == 2 * len(ModelPart)
    mlp = sums[sums["part"] == ModelPart.MLP].iloc[0]
    assert (mlp["lost_bits"], mlp["most_layer"]) == (0, 2)
    assert mlp["sum_bits"] == rows["lost_bits"].max()
    model = sums[sums["part"] == ModelPart.MODEL].iloc[0]
    assert (model["sum_bits"], model["lost_share"]) == (0, pytest.approx(1))
    assert localisation_table([trial.label for trial in trials], rows).row_count == 4 * len(ModelPart)
    section = localisation_section(analysis)
    assert section.count("<tr>") == 1 + 2 * len(ModelPart)
    assert localisation_section(replace(analysis, inspected=Inspected())) == ""


def test_the_figure_shows_means_over_seeds_and_metrics_name_part_and_layer(results: Results) -> None:
    figure = localisation(results.analysis)
    assert figure is not None
    (panel,) = figure.axes
    shares = np.ma.filled(panel.images[0].get_array(), np.nan)  # layers 0, 1, 2 and together, by part
    expected = np.full((4, 5), np.nan)
    expected[0, 0], expected[1:, 1:4], expected[2, 2], expected[3, 4] = 0, 0, 1, 1
    assert np.allclose(shares, expected, equal_nan=True)
    assert localisation(replace(results.analysis, inspected=Inspected())) is None
    metrics = results.analysis.inspected.metrics(results.analysis.sweep)
    assert metrics.keys() == {trial.trial_id for trial in results.analysis.sweep.trials}
    of_trial = next(iter(metrics.values()))
    names = [(step, name) for step, of_model in of_trial for name in of_model]
    assert len(names) == len(set(names)) == 2 * (len(PARTS) + 3 * 3 + 2)
    last = {name: value for step, of_model in of_trial if step == 20 for name, value in of_model.items()}
    assert last["localise/mean/mlp/L2_lost_bits"] == last["localise/mean/model/all_lost_bits"] > 0
    assert last["evaluate/quantise_int8/kept_share"] == 1
    assert last["evaluate/prune_0.5/learned_bits"] < last["evaluate/learned_bits"]


def test_compressed_models_keep_a_share_of_the_learned_bits(results: Results) -> None:
    frame = results.model_evaluations
    assert len(frame) == 2 * 2 * 3
    bits = frame.set_index(["training.seed", "step", "weights"])["learned_bits"]
    for _, model in bits.groupby(level=[0, 1]):
        whole, rounded, pruned = model.droplevel([0, 1])[["as stored", "quantise int8", "prune 0.5"]]
        assert whole == rounded > pruned > 0
    assert (frame["kept_share"] < 1).sum() == 4
    assert model_section(results.analysis).count("<tr>") == 1 + 2 * 3
    assert model_section(replace(results.analysis, inspected=Inspected())) == ""
