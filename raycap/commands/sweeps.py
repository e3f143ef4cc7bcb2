"""Commands on whole sweeps: `plan`, `status`, `report`, `sync` and `compare`."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE

from raycap import pipeline
from raycap.commands.arguments import (
    DEFAULT_STORAGE,
    AsJson,
    OnlyFailed,
    Overrides,
    SetName,
    SpecFile,
    StorageOption,
    SweepArgument,
    Trials,
    all_overrides,
)
from raycap.commands.named import find_sweep
from raycap.errors import CannotRunError
from raycap.plan.gpu_rates import Gpu
from raycap.plan.lookup import lookup_trials
from raycap.plan.throughput import expected_times
from raycap.results import SweepRecord
from raycap.spec.document import SpecError
from raycap.spec.file import load_tree
from raycap.spec.locations import LocationError, absolute_tracking_uri, database_path, refuse_shell_syntax
from raycap.storage import Storage
from raycap.storage.lock import LockedError, locked
from raycap.storage.sweep_folder import InvalidRecordError, SweepFolder
from raycap.terminal.failures import print_unreadable
from raycap.terminal.format import wide_console
from raycap.terminal.plan_table import print_power
from raycap.terminal.status import follow, read_status

MIN_OPTION, MAX_OPTION = 1e-6, 1e15
"""Range of the numbers given to an estimate."""
ESTIMATE, POWER = "Estimate of cost", "Statistical power"


def plan(
    spec: SpecFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    only_failed: OnlyFailed = False,
    trials: Trials = None,
    set_name: SetName = None,
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate",
            help="Estimate time, GPU hours and memory, from results of this machine or by timing steps (1 s per shape).",
            rich_help_panel=ESTIMATE,
        ),
    ] = False,
    throughput: Annotated[
        float | None,
        typer.Option(help="Estimate with this number of tokens per second and worker.", rich_help_panel=ESTIMATE),
    ] = None,
    gpu: Annotated[
        Gpu | None,
        typer.Option(help="Estimate for a machine with this card, to within a factor of 2.", rich_help_panel=ESTIMATE),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option(help="Estimate with this number of concurrent trials (or stacks).", rich_help_panel=ESTIMATE),
    ] = None,
    price_per_hour: Annotated[
        float | None,
        typer.Option(
            help="Dollars per hour of one GPU, or of the machine if trials use none.", rich_help_panel=ESTIMATE
        ),
    ] = None,
    power: Annotated[
        bool,
        typer.Option("--power", help="Simulate how often the true reading is found.", rich_help_panel=POWER),
    ] = False,
    noise: Annotated[
        list[float] | None,
        typer.Option(help="Relative noise of learned bits; may be repeated.", rich_help_panel=POWER),
    ] = None,
    bits_per_param: Annotated[float, typer.Option(help="Assumed capacity of the models.", rich_help_panel=POWER)] = 2.0,
    num_sweeps: Annotated[int, typer.Option(help="Simulated sweeps per true reading.", rich_help_panel=POWER)] = 200,
) -> None:
    """Show the plan of a sweep: sizes, bits, tokens, and the state of every trial with its reason.

    Examples:

      raycap plan specs/grid.yaml --estimate

      raycap plan specs/one_hop.yaml --gpu h100 --price-per-hour 2.5

      raycap plan specs/one_hop.yaml --throughput 2e6 --slots 8 --price-per-hour 2.5

      raycap plan specs/grid.yaml --power --noise 0.05
    """
    changes = all_overrides(overrides, set_name)
    if power:
        sweep, _ = pipeline.prepare(spec, changes)
        levels = tuple(noise or (0.02, 0.05, 0.1))
        if not all(0 < level < math.inf for level in (*levels, bits_per_param)) or num_sweeps < 1:
            got = f"{', '.join(map(str, levels))}; {bits_per_param}; {num_sweeps}"
            raise SpecError([f"--noise, --bits-per-param and --num-sweeps must be positive and finite, got {got}"])
        print_power(sweep, levels, bits_per_param, num_sweeps, as_json=as_json)
        return
    options = {"--throughput": throughput, "--slots": slots, "--price-per-hour": price_per_hour}
    given = {name: value for name, value in options.items() if value is not None}
    wrong = {name: value for name, value in given.items() if not MIN_OPTION <= value <= MAX_OPTION}
    if wrong:
        rule = f"must lie in {MIN_OPTION:g}..{MAX_OPTION:g}"
        raise SpecError([f"{name}: {rule}, got {value:g}" for name, value in wrong.items()])
    pipeline.show_plan(
        spec,
        changes,
        only_failed=only_failed,
        only=trials,
        as_json=as_json,
        estimate=partial(expected_times, throughput=throughput, gpu=gpu, slots=slots, price_per_hour=price_per_hour)
        if estimate or given or gpu
        else None,
    )


def status(
    argument: SweepArgument,
    overrides: Overrides = None,
    as_json: AsJson = False,
    trials: Trials = None,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing the status until the sweep ends.")] = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Show the progress of a sweep and the process that runs it, from its files, during a run or afterwards.

    Examples:

      raycap status runs/grid --watch

      raycap status specs/grid.yaml --json

      raycap status grid --trials d10-L2-N1000-s0,d12-L2-N1000-s0
    """
    sweep, root = find_sweep(argument, SweepFolder.SWEEP, overrides=tuple(overrides or ()), storage=storage)
    if trials is not None:
        sweep = sweep.model_copy(update={"trials": tuple(lookup_trials(sweep.trials, trials))})
    console = wide_console()
    now = read_status(sweep, root)
    if as_json:
        print(now.json())
    elif not watch:
        now.show(console)
    else:
        follow(now, sweep, root, console)


def report(
    argument: SweepArgument,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE|SWEEP",
            help="Changes to the spec, such as analysis.per_subject=false; or with --name, the other sweeps.",
        ),
    ] = None,
    as_json: AsJson = False,
    paper: Annotated[
        bool, typer.Option("--paper", help="Also write the figures as PDFs, into the folder paper.")
    ] = False,
    name: Annotated[
        str | None,
        typer.Option("--name", help="Analyse all given sweeps as a pool of this name, in a folder beside the first."),
    ] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Analyse a sweep from its stored results and write tables, figures, summary.json and report.html, without Ray.

    With --name, analyse several sweeps as one, a pool: their trials together, each once.

    Examples:

      raycap report runs/grid

      raycap report runs/grid runs/wide --name both

      raycap report runs/grid --json | jq .law

      raycap report runs/grid --paper
    """
    from raycap.analysis.answer import answer

    if name is None:
        sweep, root = find_sweep(argument, overrides=tuple(overrides or ()), storage=storage)
    else:
        sweep, root = _pool(name, (argument, *(overrides or ())), storage)
    analysis = pipeline.write_report(sweep, root, paper=paper)
    if as_json:
        print(SweepFolder(root, sweep.spec.name).read(SweepFolder.SUMMARY).decode())
        return
    print(answer(analysis))
    print_unreadable(analysis.unreadable, root, wide_console())
    print(root.location(f"{sweep.spec.name}/{SweepFolder.REPORT}"))


def _pool(name: str, arguments: tuple[str, ...], storage: str) -> tuple[SweepRecord, Storage]:
    """Return the pool of some sweeps, with their analysis, and the storage of the first. Raises SpecError."""
    found = [find_sweep(argument, storage=storage) for argument in arguments]
    analyses = [sweep.spec.analysis for sweep, _ in found]
    if differing := [argument for argument, each in zip(arguments, analyses, strict=True) if each != analyses[0]]:
        raise SpecError(
            [
                f"{differing[0]}: its section analysis differs from that of {arguments[0]}; write a sweep file with name, "
                "analysis and pool: {sweeps: [...]}, and report it"
            ]
        )
    tree = {
        "name": name,
        "pool": {"sweeps": [root.location(sweep.spec.name) for sweep, root in found]},
        "analysis": analyses[0].model_dump(mode="json", exclude_defaults=True),
        "storage": found[0][1].location(),
    }
    questions = dict.fromkeys(sweep.question for sweep, _ in found if sweep.question)
    return pipeline.plan_loaded(load_tree(tree, " / ".join(questions)), f"--name {name}")


def sync(
    argument: SweepArgument,
    overrides: Overrides = None,
    tracking_uri: Annotated[str | None, typer.Option(help="Another MLflow database or server.")] = None,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Log to MLflow what is missing there: stored results, and points that wait in the outbox. Needs no Ray.

    Example:

      raycap sync runs/grid --tracking-uri http://mlflow.example.org:5000
    """
    from raycap.cluster.analyst import sync_sweep

    sweep, root = find_sweep(argument, overrides=tuple(overrides or ()), storage=storage)
    pipeline.refuse_pool(sweep, "is not logged to MLflow")
    spec = sweep.spec
    if tracking_uri:
        try:
            refuse_shell_syntax(tracking_uri)
            absolute = absolute_tracking_uri(tracking_uri)
        except LocationError as error:
            raise SpecError([f"--tracking-uri: {error}"]) from None
        spec = spec.model_copy(update={"tracking": spec.tracking.model_copy(update={"uri": absolute})})
    sweep = sweep.model_copy(update={"spec": spec})
    _check_database_folder(sweep)
    try:
        with locked(root, spec.name, wide_console().print) as lease:
            delivery = sync_sweep(sweep, lease.id)
    except (CannotRunError, LockedError) as error:
        raise SpecError([f"{argument}: {error}"]) from error
    except InvalidRecordError as error:
        raise SpecError([str(error)]) from None
    if delivery.problems:
        raise SpecError(list(delivery.problems))
    delivered = f"{delivery.num_points:,} points logged" if delivery.num_points else "nothing was missing"
    print(f"{argument}: {delivered} in {sweep.tracking_uri}")


def _check_database_folder(sweep: SweepRecord) -> None:
    """Raise SpecError if the folder of the sweep's database does not exist, for example because it was moved."""
    file = database_path(sweep.tracking_uri)
    if file is not None and not Path(file).parent.is_dir():
        raise SpecError(
            [
                f"tracking.uri {sweep.tracking_uri}: the folder {Path(file).parent} does not exist; if it was moved, "
                "run the sweep's spec once from its new working directory, or give --tracking-uri"
            ]
        )


def compare(
    one: SweepArgument,
    other: SweepArgument,
    html: Annotated[Path | None, typer.Option(help="Write the comparison with a figure to an HTML file.")] = None,
    as_json: AsJson = False,
    storage: StorageOption = DEFAULT_STORAGE,
) -> None:
    """Compare two sweeps: differences of their specs, their laws and the ratio, and trials at the same coordinates.

    Example:

      raycap compare runs/one runs/other --html both.html
    """
    from rich.table import Table

    from raycap.analysis.compare import SideBySide, compare_html, comparison_tables, headings

    both = SideBySide(*(pipeline.read_analysis(*find_sweep(argument, storage=storage)) for argument in (one, other)))
    if html:
        try:
            html.write_text(compare_html(both), encoding="utf-8")
        except OSError as error:
            raise SpecError([f"--html {html}: cannot be written: {error.strerror}; give another file"]) from None
    if as_json:
        headers = headings(both)
        tables = {title: {"columns": headers[title], "rows": rows} for title, rows in comparison_tables(both).items()}
        print(json.dumps({"tables": tables, "shared_trials": both.shared}, indent=1))
        return
    console = wide_console()
    for title, rows in comparison_tables(both).items():
        shown = Table(title=title, title_justify="left", box=SIMPLE)
        for header in headings(both)[title]:
            shown.add_column(header)
        for row in rows:
            shown.add_row(*row)
        if rows:
            console.print(shown)
    console.print(f"{both.shared} trials are in both sweeps.")
    if html:
        console.print(str(html))
