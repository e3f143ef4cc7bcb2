"""Logging of the results of analyses of stored models as metrics of the runs of their trials."""

from mlflow.entities import Metric

from raycap.analysis.inspected import ModelMetrics
from raycap.results import SweepRecord
from raycap.tracking.client import connect
from raycap.tracking.experiment import find_or_create_experiment
from raycap.tracking.problems import unusable
from raycap.tracking.runs import SweepRuns, find_pages
from raycap.tracking.tracker import METRICS_PER_CALL


def log_models(sweep: SweepRecord, metrics: ModelMetrics) -> int:
    """Log the metrics of stored models to the runs that the trials have in MLflow, and return the number of points.

    Each point has the step of its model and the time at which the run ended, so a repeated call changes nothing.

    Raises TrackingError if MLflow cannot be used or has no such sweep.
    """
    uri, num_points = sweep.tracking_uri, 0
    find_pages(sweep)  # SweepRuns would create the run of a sweep that is not logged
    try:
        client = connect(uri)
        experiment = find_or_create_experiment(client, uri, sweep.spec.tracking.experiment)
        runs = SweepRuns(client, experiment, sweep).trial_runs()
        for trial_id in runs.keys() & metrics.keys():
            run = runs[trial_id]
            points = [
                Metric(name, value, run.ended_ms, step)
                for step, of_model in metrics[trial_id]
                for name, value in of_model.items()
            ]
            for begin in range(0, len(points), METRICS_PER_CALL):
                client.log_batch(run.run_id, metrics=points[begin : begin + METRICS_PER_CALL])
            num_points += len(points)
    except Exception as error:  # of MLflow, SQLAlchemy, Alembic or the system
        raise unusable(uri, error) from error
    return num_points
