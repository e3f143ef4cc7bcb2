"""Stored readings of probes come back as frames, metrics and a figure."""

from dataclasses import replace

import numpy as np
import pytest

from raycap.analysis.figures.probes import probes
from raycap.analysis.frames import Results
from raycap.analysis.inspected import Inspected
from raycap.analysis.planted import Truth
from raycap.analysis.probes import probe_metrics
from raycap.analysis.readings import headline
from raycap.results.probes import Space
from raycap.spec.probes import ProbeSite
from raycap.storage import Storage
from raycap.storage.inspections import write_inspection
from raycap.terminal.probe_table import probe_table
from tests.support.probe_readings import LAYERS, SITES, probe_record, readings, usable
from tests.support.synthetic import analysed, planned

OVERRIDES = ("trial.questions.hops=[1,2]", "grid.model.hidden_size=[20]", "grid.training.seed=[0,1]")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    storage = Storage.at(str(tmp_path_factory.mktemp("storage")))
    record = planned(OVERRIDES)
    for seed, trial in enumerate(record.trials):
        for step in (10, 20):
            write_inspection(storage, probe_record(trial.trial_id, step, seed))
    analysis = analysed(OVERRIDES, lambda _: Truth(reading=headline(record.spec.analysis), bits_per_param=2.0))
    return Results(replace(analysis, inspected=Inspected.read(record.trials, storage)))


def test_frames_have_a_row_per_model_and_place(results: Results) -> None:
    frame = results.probes
    assert len(frame) == 2 * 2 * 2 * len(LAYERS) * len(SITES)
    places = zip(frame["layer"], frame["site"], frame["training.seed"], strict=True)
    expected = [usable(layer, ProbeSite(site), seed) for layer, site, seed in places]
    assert np.allclose(frame["usable_bits"], expected)
    assert np.allclose(frame["selectivity_bits"], frame["usable_bits"] - 0.05)
    assert set(frame["step"]) == {10, 20}
    assert len(results.interchanges) == 2 * 2 * 3 * len(LAYERS) * len(SITES)
    assert set(results.interchanges["space"]) == set(map(str, Space))


def test_the_figure_shows_means_over_seeds(results: Results) -> None:
    figure = probes(results.analysis)
    assert figure is not None
    bridge, gained = (axes.images[0].get_array() for axes in figure.axes)
    expected = np.array([[usable(layer, site, 0) + 0.25 for site in SITES] for layer in LAYERS])
    assert np.allclose(bridge, expected)
    assert np.allclose(gained, 3 * expected)
    assert probes(replace(results.analysis, inspected=Inspected())) is None


def test_metrics_are_named_by_target_token_and_layer() -> None:
    metrics = probe_metrics(readings(0))
    assert metrics["probe/bridge/answer/L2_usable_bits"] == pytest.approx(2.2)
    assert metrics["probe/interchange/relation/L1_gained_bits"] == pytest.approx(3.3)
    assert len(metrics) == 2 * len(LAYERS) * len(SITES)


def test_the_table_has_the_place_with_most_bits(results: Results) -> None:
    table = probe_table([("label", records) for records in results.analysis.inspected.probes.values()])
    assert table.row_count == 4
    (place,) = {*table.columns[3].cells}
    assert place.startswith("answer")
