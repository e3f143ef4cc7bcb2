"""Commands that analyse the stored models of finished trials: `evaluate`, `losses`, `probe` and `localise`."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from raycap import pipeline
from raycap.commands.arguments import DEFAULT_STORAGE, AsJson, StorageOption, SweepArgument, Trials
from raycap.commands.named import find_sweep
from raycap.results import PlannedTrial, SweepRecord, TextLosses
from raycap.spec import ModelAnalysis, WeightFormat
from raycap.spec.document import SpecError
from raycap.storage import Storage
from raycap.storage.inspections import TEXTS_FILE, inspection_folder, read_inspections
from raycap.terminal.format import wide_console
from raycap.terminal.stored_models import composition_table, evaluation_table

if TYPE_CHECKING:
    from raycap.analysis.inspected import Inspected

AllModels = Annotated[
    bool, typer.Option("--all-models", help="Also analyse the models that execution.keep_models has stored.")
]


@dataclass(frozen=True)
class _Analysed:
    """The trials of a sweep of which all results of an analysis are stored."""

    sweep: SweepRecord
    root: Storage
    trials: list[PlannedTrial]
    console: Console
    code: int

    def log(self) -> "Inspected":
        """Log the stored results of all analyses of the trials to MLflow, and return them."""
        return pipeline.log_inspected(self.sweep, self.trials, self.root, self.console)


def _analyse(
    name: ModelAnalysis,
    argument: str,
    *,
    trials: str | None,
    all_models: bool,
    as_json: bool,
    storage: str,
    options: dict[str, Any] | None = None,
) -> _Analysed:
    """Run an analysis as a command states it, with `options` in place of those of the section `inspect`."""
    from raycap.cluster.inspections import Inspections
    from raycap.learner.analyses import analyses_of

    sweep, root = find_sweep(argument, storage=storage)
    inspect = sweep.spec.inspect.model_copy(update=options or {})
    analyses = analyses_of(sweep.spec.model_copy(update={"inspect": inspect}), [name])
    console = Console(stderr=True) if as_json else wide_console()
    done, code = pipeline.inspect_models(sweep, root, Inspections(analyses, all_models), console, only=trials)
    return _Analysed(sweep, root, done, console, code)


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
    given = {"quantise": tuple(quantise or ()), "prune": tuple(prune or ())}
    analysed = _analyse(
        ModelAnalysis.EVALUATE,
        argument,
        trials=trials,
        all_models=all_models,
        as_json=as_json,
        storage=storage,
        options={name: values for name, values in given.items() if values},
    )
    from raycap.analysis.model_evaluations import evaluation_entries

    inspected = analysed.log()
    rows = evaluation_entries(analysed.trials, inspected.evaluations, analysed.sweep.spec.analysis)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        analysed.console.print(evaluation_table(rows))
    raise typer.Exit(analysed.code)


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
    from raycap.analysis.composition import store_compositions

    analysed = _analyse(
        ModelAnalysis.LOSSES, argument, trials=trials, all_models=all_models, as_json=as_json, storage=storage
    )
    root, rows = analysed.root, []
    compositions = {}
    if per_question:
        for problem in store_compositions(root, [trial.trial_id for trial in analysed.trials]):
            analysed.console.print(problem, style="red", soft_wrap=True)
        found = analysed.log().compositions
        compositions = {(each.trial_id, each.moment): each.body for records in found.values() for each in records}
    for trial in analysed.trials:
        for record in read_inspections(root, trial.trial_id, ModelAnalysis.LOSSES, TextLosses):
            file = f"{inspection_folder(trial.trial_id, ModelAnalysis.LOSSES, {}, record.moment.step)}/{TEXTS_FILE}"
            row = {"trial_id": trial.trial_id, "label": trial.label} | record.moment.model_dump()
            row |= {"num_rows": sum(record.body.num_rows.values()), "file": root.location(file)}
            if per_question:
                body = compositions.get((trial.trial_id, record.moment))
                row["composition"] = body and body.model_dump(mode="json")
            rows.append(row)
    if as_json:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            analysed.console.print(f"{row['label']}: {row['num_rows']:,} rows: {row['file']}", soft_wrap=True)
        if per_question:
            analysed.console.print(composition_table(rows))
    raise typer.Exit(analysed.code)


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
    from raycap.terminal.probe_table import probe_table

    analysed = _analyse(
        ModelAnalysis.PROBE, argument, trials=trials, all_models=all_models, as_json=as_json, storage=storage
    )
    readings = analysed.log().probes
    if as_json:
        records = [record.model_dump(mode="json") for of_trial in readings.values() for record in of_trial]
        print(json.dumps(records, indent=1))
    else:
        labels = {trial.trial_id: trial.label for trial in analysed.trials}
        analysed.console.print(probe_table([(labels[trial_id], records) for trial_id, records in readings.items()]))
    raise typer.Exit(analysed.code)


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
    from raycap.terminal.localisation_table import localisation_table

    analysed = _analyse(
        ModelAnalysis.LOCALISE, argument, trials=trials, all_models=all_models, as_json=as_json, storage=storage
    )
    done = analysed.trials
    found = analysed.log().localisations
    rows = localisation_rows(done, found, analysed.sweep.spec.analysis)
    if as_json:
        names = {name: [getattr(done[index], name) for index in rows["trial"]] for name in ("trial_id", "label")}
        print(rows.drop(columns="trial").assign(**names).to_json(orient="records", indent=1))
    else:
        analysed.console.print(localisation_table([trial.label for trial in done], rows))
    raise typer.Exit(analysed.code)
