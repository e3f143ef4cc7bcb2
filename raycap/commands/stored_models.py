"""Commands that analyse the stored models of finished trials: `evaluate`."""

import json
from typing import Annotated

import typer
from rich.console import Console

from raycap import pipeline
from raycap.commands.arguments import DEFAULT_STORAGE, AsJson, StorageOption, SweepArgument, Trials
from raycap.commands.named import find_sweep
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
