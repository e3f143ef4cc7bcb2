"""Commands that analyse the stored models of finished trials: `evaluate`, `losses`, `probe` and
`localise`."""

import json
from typing import Annotated, Any

import typer
from rich.console import Console

from raycap import pipeline
from raycap.commands.arguments import DEFAULT_STORAGE, AsJson, StorageOption, SweepArgument, Trials
from raycap.commands.named import find_sweep
from raycap.results import TextLosses
from raycap.spec import WeightFormat
from raycap.spec.document import SpecError
from raycap.storage.inspections import inspection_folder, read_inspections
from raycap.terminal.format import wide_console
from raycap.terminal.stored_models import composition_table, evaluation_rows, evaluation_table

AllModels = Annotated[
    bool, typer.Option("--all-models", help="Also analyse the models that execution.keep_models has stored.")
]


def evaluate(
    argument: SweepArgument,
    trials: Trials = None,
    all_models: AllModels = False,
    quantise: Annotated[
        list[WeightFormat] | None,
        typer.Option(help="Also with weights rounded to integers of so many bits per output channel; may be repeated."),
    ] = None,
    prune: Annotated[
        list[float] | None,
        typer.Option(help="Also with this share of the weights, the smallest, set to 0; may be repeated."),
    ] = None,
    as_json: AsJson = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Evaluate stored models of finished trials again, also compressed, on the same texts as in training.

    Results are stored with the trials. Models that have been evaluated already are not evaluated again.

    Examples:

      raycap evaluate runs/grid --all-models

      raycap evaluate runs/grid --trials d10-L2-N1000-s0 --quantise int8 --quantise int4 --prune 0.5
    """
    if wrong := [share for share in prune or () if not 0 < share < 1]:
        raise SpecError([f"--prune: must lie between 0 and 1, got {wrong[0]:g}"])
    from raycap.cluster.inspections import Inspections
    from raycap.learner.inspections import Inspection
    from raycap.learner.inspections import evaluate as evaluate_model

    sweep, root = find_sweep(argument, storage=storage)
    variants: list[dict[str, Any]] = [
        {},
        *({"quantise": str(weights)} for weights in quantise or ()),
        *({"prune": share} for share in prune or ()),
    ]
    inspections = Inspections(tuple(Inspection("evaluate", evaluate_model, each) for each in variants), all_models)
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, inspections, console, only=trials)
    rows = evaluation_rows(sweep, done, root)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        console.print(evaluation_table(rows))
    raise typer.Exit(code)


def losses(
    argument: SweepArgument,
    trials: Trials = None,
    all_models: AllModels = False,
    per_question: Annotated[
        bool,
        typer.Option("--per-question", help="Also analyse whether two-hop answers are composed or memorised."),
    ] = False,
    as_json: AsJson = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Write the loss of every text under stored models of finished trials to texts.parquet, without training.

    Examples:

      raycap losses runs/two_hop

      raycap losses runs/two_hop --trials d10-L2-N1000-s0 --all-models

      raycap losses runs/two_hop --per-question
    """
    from raycap.analysis.composition import read_composition
    from raycap.cluster.inspections import Inspections
    from raycap.learner.inspections import Inspection
    from raycap.learner.text_losses import TEXTS_FILE, write_text_losses

    sweep, root = find_sweep(argument, storage=storage)
    inspections = Inspections((Inspection("losses", write_text_losses),), all_models)
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, inspections, console, only=trials)
    rows = []
    for trial in done:
        for record in read_inspections(root, trial.trial_id, "losses", TextLosses):
            file = f"{inspection_folder(trial.trial_id, 'losses', {}, record.moment.step)}/{TEXTS_FILE}"
            row = {"trial_id": trial.trial_id, "label": trial.label} | record.moment.model_dump()
            row |= {"num_rows": sum(record.body.num_rows.values()), "file": root.location(file)}
            if per_question:
                with root.filesystem.open_input_file(root.path(file)) as source:
                    found = read_composition(source)
                row["composition"] = found and found.as_dict()
            rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            console.print(f"{row['label']}: {row['num_rows']:,} rows: {row['file']}", soft_wrap=True)
        if per_question:
            console.print(composition_table(rows))
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
    from raycap.cluster.inspections import Inspections
    from raycap.learner.inspections import Inspection
    from raycap.learner.probing import probe as probe_model
    from raycap.results.probes import PROBE
    from raycap.terminal.probe_table import probe_table

    sweep, root = find_sweep(argument, storage=storage)
    inspections = Inspections((Inspection(PROBE, probe_model, sweep.spec.probes.model_dump(mode="json")),), all_models)
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, inspections, console, only=trials)
    readings = pipeline.log_inspected(sweep, done, root, console).probes
    if as_json:
        records = [record.model_dump(mode="json") for of_trial in readings.values() for record in of_trial]
        print(json.dumps(records, indent=1))
    else:
        labels = {trial.trial_id: trial.label for trial in done}
        console.print(probe_table([(labels[trial_id], records) for trial_id, records in readings.items()]))
    raise typer.Exit(code)


def localise(
    argument: SweepArgument,
    trials: Trials = None,
    all_models: AllModels = False,
    as_json: AsJson = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Measure how many learned bits stored models lose when one of their parts is ablated or quantised.

    Parts are the embeddings, and the attention, the MLP and both of every block. The section `localise` of the spec states
    how they are ablated. Results are stored with the trials. Models that have been ablated with the same settings already
    are not ablated again. Lost bits are also metrics of the trials' runs in MLflow. See docs/probes.md.

    Examples:

      raycap localise runs/grid

      raycap localise runs/grid --trials d10-L2-N1000-s0 --all-models --json
    """
    from raycap.analysis.localisation import localisation_rows
    from raycap.cluster.inspections import Inspections
    from raycap.learner.inspections import Inspection
    from raycap.learner.localisation import localise as localise_model
    from raycap.results.localisation import LOCALISE
    from raycap.terminal.localisation_table import localisation_table

    sweep, root = find_sweep(argument, storage=storage)
    options = sweep.spec.localise.model_dump(mode="json")
    inspections = Inspections((Inspection(LOCALISE, localise_model, options),), all_models)
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, inspections, console, only=trials)
    found = pipeline.log_inspected(sweep, done, root, console).localisations
    rows = localisation_rows(done, found, sweep.spec.analysis)
    if as_json:
        names = {name: [getattr(done[index], name) for index in rows["trial"]] for name in ("trial_id", "label")}
        print(rows.drop(columns="trial").assign(**names).to_json(orient="records", indent=1))
    else:
        console.print(localisation_table([trial.label for trial in done], rows))
    raise typer.Exit(code)
