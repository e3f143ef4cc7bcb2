"""The raycap command: run, plan, report, sync, compare, ui, trial, texts, profiles."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.box import SIMPLE
from rich.console import Console

from raycap import sweep as sweeps
from raycap.cluster.errors import CannotRunError
from raycap.lock import LockedError, locked
from raycap.results import PlannedTrial, SweepRecord
from raycap.show import print_power, print_unreadable, wide_console
from raycap.spec.file import SpecError
from raycap.storage import Storage, absolute_uri

app = typer.Typer(
    help="How many bits does a transformer store per parameter, and with which algorithm?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, e.g. trial.training.seed=3.")]
SweepFolder = Annotated[str, typer.Argument(help="A sweep's folder or URI, such as runs/grid.")]
SpecFile = Annotated[str, typer.Argument(help="Sweep file, as given or under sweeps/.")]

app.command("run")(sweeps.main)


@app.command()
def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    power: Annotated[bool, typer.Option("--power", help="How often would it tell which reading is true?")] = False,
    noise: Annotated[
        list[float] | None, typer.Option(help="With --power: noise of a trial's bits, as a share.")
    ] = None,
    bits_per_param: Annotated[float, typer.Option(help="With --power: what models are taken to store.")] = 2.0,
    num_sweeps: Annotated[int, typer.Option(help="With --power: sweeps simulated for each truth.")] = 200,
    only_failed: sweeps.OnlyFailed = False,
) -> None:
    """Show what a sweep would run: sizes, bits, tokens, and the state of every trial."""
    if power:
        sweep, _ = sweeps.prepare(spec, tuple(overrides or ()))
        levels = tuple(noise or (0.02, 0.05, 0.1))
        if min(levels) <= 0 or bits_per_param <= 0 or num_sweeps < 1:
            raise SpecError(["--noise, --bits-per-param and --num-sweeps must be positive"])
        print_power(sweep, levels, bits_per_param, num_sweeps, as_json=as_json)
    else:
        sweeps.main(spec, overrides, plan=True, as_json=as_json, only_failed=only_failed)


@app.command()
def report(folder: SweepFolder) -> None:
    """Analyse a sweep again from its stored results: tables, figures, summary.json, report.html. Needs no Ray."""
    from raycap.analysis.report import answer

    sweep, storage = _sweep_in(folder)
    analysis = sweeps.report(sweep, storage)
    print(answer(analysis))
    print_unreadable(analysis.unreadable, storage, wide_console())
    print(f"{folder}/report.html")


@app.command()
def sync(
    folder: SweepFolder,
    tracking_uri: Annotated[str | None, typer.Option(help="Another MLflow than the sweep's own.")] = None,
) -> None:
    """Tell MLflow what it lacks of a sweep: what is stored, and what waits since MLflow was out of reach. Needs no Ray."""
    from raycap.cluster.analyst import sync as deliver

    sweep, storage = _sweep_in(folder)
    spec = sweep.spec
    if Storage.at(spec.storage).root != storage.root:  # it was moved
        place = storage.root if storage.is_local else folder.rstrip("/").rpartition("/")[0]
        spec = spec.model_copy(update={"storage": place})
    if tracking_uri:
        tracking = spec.tracking.model_copy(update={"uri": absolute_uri(tracking_uri)})
        spec = spec.model_copy(update={"tracking": tracking})
    try:
        with locked(storage, spec.name):
            delivery = deliver(sweep.model_copy(update={"spec": spec}))
    except (CannotRunError, LockedError) as error:
        raise SpecError([f"{folder}: {error}"]) from error
    except ValidationError:
        raise SpecError([f"{folder}/run.json cannot be read; run the sweep's spec once more"]) from None
    if delivery.problems:
        raise SpecError(list(delivery.problems))
    told = f"{delivery.num_points:,} points logged" if delivery.num_points else "everything was there"
    print(f"{folder}: {told}, in {spec.tracking.uri}")


@app.command()
def compare(
    one: SweepFolder,
    other: SweepFolder,
    html: Annotated[Path | None, typer.Option(help="Write it as a page of its own, with a figure.")] = None,
) -> None:
    """Put two sweeps side by side: what differs in their specs, laws and their ratio, trials at the same coordinates."""
    from rich.table import Table

    from raycap.analysis.compare import SideBySide, compare_html, headings, sections

    both = SideBySide(*(sweeps.read_analysis(*_sweep_in(folder)) for folder in (one, other)))
    console = wide_console()
    for title, rows in sections(both).items():
        shown = Table(title=title, title_justify="left", box=SIMPLE)
        for header in headings(both)[title]:
            shown.add_column(header)
        for row in rows:
            shown.add_row(*row)
        if rows:
            console.print(shown)
    console.print(f"{both.shared} trials are in both.")
    if html:
        html.write_text(compare_html(both), encoding="utf-8")
        console.print(str(html), highlight=False)


def _sweep_in(folder: str) -> tuple[SweepRecord, Storage]:
    """The sweep whose folder this is, and the storage it lies in."""
    place, _, name = folder.rstrip("/").rpartition("/")
    storage = Storage.at(place or ".")
    if not storage.exists(f"{name}/sweep.json") or not storage.exists(f"{name}/run.json"):
        raise SpecError([f"{folder}: not the folder of a sweep that has run (it lacks sweep.json or run.json)"])
    try:
        return SweepRecord.model_validate_json(storage.read(f"{name}/sweep.json")), storage
    except ValidationError as error:
        told = error.errors(include_url=False)[0]
        place = "".join(f"{part}: " for part in [".".join(map(str, told["loc"]))] if part)
        raise SpecError(
            [f"{folder}/sweep.json: {place}{told['msg']}; run the sweep's spec once more, and it is written anew"]
        ) from None


@app.command()
def ui(
    spec: SpecFile,
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(help="Port of the page, on this machine alone.")] = 5000,
) -> None:
    """Start MLflow's page, light, and print the link that opens this sweep's trials side by side."""
    from raycap.cluster.tracking import comparison_link, find_sweep, sweep_link

    sweep, _ = sweeps.prepare(spec, tuple(overrides or ()))
    tracking = sweep.spec.tracking
    uri = tracking.uri
    try:
        experiment_id, parent_id = find_sweep(tracking, sweep.spec.name, sweep.spec.storage)
    except CannotRunError as error:
        raise SpecError([f"{spec}: {error}; run the sweep first"]) from error
    base = uri if uri.startswith("http") else f"http://127.0.0.1:{port}"
    print(f"Compare the trials: {comparison_link(base, experiment_id, parent_id)}")
    print(f"The sweep itself:   {sweep_link(base, experiment_id, parent_id)}", flush=True)
    if uri.startswith("http"):  # somebody else's server
        return
    # One worker and no job runner: 0.5 GiB instead of 2.4.
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri, "--host", "127.0.0.1"]
    try:
        raise typer.Exit(subprocess.call([*command, "--port", str(port), "--workers", "1"], env=environment))
    except KeyboardInterrupt:
        raise typer.Exit(0) from None


@app.command()
def trial(
    spec: SpecFile,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Which trial of the plan, from 0.")] = 0,
) -> None:
    """Run one trial of a sweep in this process, without Ray and without storing anything: for debugging."""
    from raycap.learner.trial import run_trial
    from raycap.results import Evaluation, source_commit

    sweep, storage = sweeps.prepare(spec, tuple(overrides or ()))
    planned = _planned(sweep, spec, index)
    print(f"{planned.trial_id} {planned.label}: {planned.parameters.total:,} parameters, {planned.steps:,} steps")

    def show(_trial_id: str, evaluation: Evaluation) -> None:
        table = evaluation.losses
        losses = ", ".join(f"{kind} {table.select(kind).mean_bits:.3f}" for kind in table.kinds)
        print(f"step {evaluation.step:,}: {evaluation.exposures:,.1f} exposures, loss {losses} bits", flush=True)

    run_trial(planned.spec, source_commit=source_commit(), storage=storage, report=show)


@app.command()
def profiles(
    spec: SpecFile,
    target: Annotated[str, typer.Argument(help="A .parquet file, a folder, or hub:owner/name.")],
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Whose population: which trial of the plan, from 0.")] = 0,
) -> None:
    """Save the population of a trial in the hosted dataset schema, with a dataset card."""
    from raycap.facts.corpora import profiles_of
    from raycap.facts.hosted import save

    planned = _planned(sweeps.prepare(spec, tuple(overrides or ()))[0], spec, index)
    try:
        population = profiles_of(planned.spec.profiles)
        save(population, target, description=planned.spec.profiles.model_dump_json(indent=2))
    except (ValueError, OSError) as error:
        raise SpecError([f"{target}: {error}"]) from error
    print(f"{population.num_profiles:,} people with {len(population.schema.relations)} relations: {target}")


@app.command()
def texts(
    spec: SpecFile,
    overrides: Overrides = None,
    index: Annotated[int, typer.Option(help="Which trial of the plan, from 0.")] = 0,
    num: Annotated[int, typer.Option(help="How many texts of each kind.")] = 5,
) -> None:
    """Show texts as a trial is trained on them, in its order."""
    from raycap.facts.corpora import populations_of
    from raycap.facts.corpus import render
    from raycap.facts.order import Mix
    from raycap.learner.material import Material

    planned = _planned(sweeps.prepare(spec, tuple(overrides or ()))[0], spec, index)
    material = Material.of(planned.spec, populations_of(planned.spec))
    order = material.order((Mix(0, material.shares()),))
    for composer, places, size in zip(material.composers, order.step_places(0), order.sizes, strict=True):
        print(f"{composer.corpus.kind}: {size:,} texts, {composer.token_counts.mean:.1f} tokens on average")
        for text in render(composer.corpus, composer.trained[places[:num]]):
            print(f"  {text}")


def _planned(sweep: SweepRecord, spec: str, index: int) -> PlannedTrial:
    if not 0 <= index < len(sweep.trials):
        raise SpecError([f"{spec}: --index must lie in 0..{len(sweep.trials) - 1}, got {index}"])
    return sweep.trials[index]


def main() -> None:
    """Entry point: spec errors are told in plain lines, exit code 2."""
    try:
        app()
    except SpecError as error:
        Console(stderr=True).print("\n".join(error.problems), highlight=False, soft_wrap=True, markup=False)
        sys.exit(sweeps.EXIT_BAD_SPEC)
