"""Models that are stored in training are those that were evaluated, and analyses of them are stored once."""

from pathlib import Path

import pytest

from raycap.learner.checkpoints import Checkpoints
from raycap.learner.inspections import Inspection, evaluate, inspect_models
from raycap.learner.kept_models import ModelKeeper, load_model
from raycap.learner.signals import PausedError, Signal
from raycap.learner.trial import TrainedTrial
from raycap.results import LossTable, ModelLosses, Moment
from raycap.spec import Exposures, KeepModels, KeptModels, ScheduleFree
from raycap.storage import Storage, inspections_folder, kept_models_folder, model_folder
from raycap.storage.inspections import is_inspected, read_inspections
from raycap.storage.kept_models import stored_moments
from tests.support.tiny import TINY, trained

SPEC = TINY.model_copy(
    update={
        "training": TINY.training.model_copy(
            update={
                "length": Exposures(exposures=8),
                # The model that is evaluated is an average, not the one that is trained.
                "optimizer": ScheduleFree(kind="schedule_free", lr=0.01, warmup_steps=5),
            }
        )
    }
)


def train(storage: Storage, models: KeepModels, **options: object) -> TrainedTrial:
    """Train SPEC, store models as asked, and store the final one."""
    trial = trained(SPEC, keeper=ModelKeeper(storage, models), **options)
    trial.save_model(storage, model_folder(SPEC.trial_id))
    return trial


def losses_of(table: LossTable) -> list[float]:
    return [row.sum_bits for row in table.rows]


def test_models_of_evaluations_lose_what_was_measured_in_training(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    result = train(storage, KeptModels.EVALUATIONS).result
    moments = stored_moments(storage, result)
    assert moments == tuple(Moment(step=each.step, exposures=each.exposures) for each in result.evaluations)
    analysis = Inspection("evaluate", evaluate)
    due = [(moment, analysis) for moment in moments]
    inspect_models(result, storage, due, source_commit="test", device="cpu", num_threads=1)
    records = read_inspections(storage, result.trial_id, "evaluate", ModelLosses)
    assert [record.moment for record in records] == list(moments)
    for record, evaluation in zip(records, result.evaluations, strict=True):
        assert losses_of(record.body.losses) == pytest.approx(losses_of(evaluation.losses), rel=1e-6)

    def missing() -> list[int]:
        return [m.step for m in moments if not is_inspected(storage, result, m, "evaluate", {})]

    assert missing() == []
    # A record that is damaged, or of a model that was stored again with other weights, does not count.
    damaged, retrained = moments[0].step, moments[1].step
    record_file = tmp_path / inspections_folder(result.trial_id) / f"evaluate/{damaged:012d}/record.json"
    record_file.write_bytes(record_file.read_bytes()[:-5])
    digests = tmp_path / kept_models_folder(result.trial_id) / f"{retrained:012d}/sha256"
    digests.write_text(digests.read_text().replace("a", "b"))
    assert missing() == [damaged, retrained]
    with pytest.raises(ValueError, match="damaged"):
        load_model(result, storage, moments[1])


def test_models_are_stored_once_exposures_are_reached_and_also_after_an_interruption(tmp_path: Path) -> None:
    undisturbed, interrupted = (Storage.at(str(tmp_path / name)) for name in ("undisturbed", "interrupted"))
    asked = (2.0, 5.3, 1000.0)
    result = train(undisturbed, asked).result
    (*kept, final) = stored_moments(undisturbed, result)
    per_step = final.exposures / final.step
    assert [asked[index] <= moment.exposures < asked[index] + per_step for index, moment in enumerate(kept)] == [
        True
    ] * 2
    assert losses_of(result.final.losses) == losses_of(trained(SPEC).result.final.losses)

    between = (kept[0].step + kept[1].step) // 2
    steps = [0]
    options = {"checkpoints": Checkpoints(interrupted), "on_step": steps.append}
    with pytest.raises(PausedError):
        train(interrupted, asked, poll_signal=lambda: Signal(Signal.PAUSE if steps[-1] >= between else 0), **options)
    assert train(interrupted, asked, **options).result.final.losses == result.final.losses
    assert stored_moments(interrupted, result) == (*kept, final)
    for moment in kept:
        one, other = (load_model(result, storage, moment).model for storage in (undisturbed, interrupted))
        assert all(one.storage[group].equal(other.storage[group]) for group in one.storage)
