"""Commands that analyse the stored models of finished trials: `evaluate` and `probe`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from raycap import pipeline
from raycap.commands.arguments import DEFAULT_STORAGE, AsJson, StorageOption, SweepArgument, Trials
from raycap.commands.named import find_sweep
from raycap.errors import TrackingError
from raycap.terminal.format import wide_console
from raycap.terminal.stored_models import evaluation_rows, evaluation_table

AllModels = Annotated[
    bool, typer.Option("--all-models", help="Also analyse the models that execution.keep_models has stored.")
]


def evaluate(
    argument: SweepArgument,
    trials: Trials = None,
    all_models: AllModels = False,
    as_json: AsJson = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Evaluate stored models of finished trials again, on the same texts as in training, without training.

    Results are stored with the trials. Models that have been evaluated already are not evaluated again.

    Examples:

      raycap evaluate runs/grid --all-models

      raycap evaluate runs/grid --trials d10-L2-N1000-s0
    """
    from raycap.cluster.inspections import Inspections
    from raycap.learner.inspections import Inspection
    from raycap.learner.inspections import evaluate as evaluate_model

    sweep, root = find_sweep(argument, storage=storage)
    inspections = Inspections((Inspection("evaluate", evaluate_model),), all_models)
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, inspections, console, only=trials)
    rows = evaluation_rows(sweep, done, root)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console.print(evaluation_table(rows))
    raise typer.Exit(code)


def probe(
    argument: SweepArgument,
    trials: Trials = None,
    all_models: AllModels = False,
    as_json: AsJson = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Read the parts of questions from the residual stream of stored models, and interchange residuals between questions.

    The section `probes` of the spec states what is read. Results are stored with the trials. Models that have been probed
    with the same settings already are not probed again. Usable bits are also metrics of the trials' runs in MLflow. See
    docs/probes.md.

    Examples:

      raycap probe runs/grid

      raycap probe runs/grid --trials d10-L2-N1000-s0 --all-models --json
    """
    from raycap.analysis.probes import read_probes
    from raycap.cluster.inspections import Inspections
    from raycap.learner.inspections import Inspection
    from raycap.learner.probing import probe as probe_model
    from raycap.results.probes import PROBE
    from raycap.terminal.probe_table import probe_table
    from raycap.tracking.environment import configure_mlflow

    sweep, root = find_sweep(argument, storage=storage)
    inspections = Inspections((Inspection(PROBE, probe_model, sweep.spec.probes.model_dump(mode="json")),), all_models)
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, inspections, console, only=trials)
    readings = read_probes(done, root)
    configure_mlflow()
    from raycap.tracking.readings import log_probes

    try:
        log_probes(sweep, readings)
    except TrackingError as error:
        console.print(f"The results are stored but not logged to MLflow: {error}", soft_wrap=True)
    if as_json:
        records = [record.model_dump(mode="json") for of_trial in readings.values() for record in of_trial]
        print(json.dumps(records, indent=1))
    else:
        labels = {trial.trial_id: trial.label for trial in done}
        console.print(probe_table([(labels[trial_id], records) for trial_id, records in readings.items()]))
    raise typer.Exit(code)
