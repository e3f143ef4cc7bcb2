"""The `raycap` command line: registration of the commands in raycap/commands/."""

import importlib.metadata
import platform
import sys
from typing import Annotated

import typer

from raycap.commands import cluster, pieces, reproduce, run, share, start, stored_models, sweeps, ui
from raycap.host.isolation import PACKAGE_ROOT

HELP = "Measure how many bits a transformer stores per parameter, and with which algorithm."
EPILOG = (
    "First steps: raycap init first; raycap plan first.yaml --estimate; raycap run first.yaml. "
    "raycap COMMAND --help shows examples. python -m raycap.sweep SPEC is the same as raycap run SPEC.\n\n"
    "Exit codes: 0 all trials finished, or the command succeeded; 1 some trials failed or are not finished, MLflow lacks "
    "records, or a check of doctor failed; 2 the spec is invalid, the environment cannot run it, or Ray died during the "
    "run; 3 the budget is spent; 130 interrupted."
)
START, SWEEPS, PIECES, AROUND = "Getting started", "Sweeps", "Single trials", "Export and clusters"
MODELS = "Trained models"


def _print_version(is_requested: bool) -> None:
    if not is_requested:
        return
    try:
        version = importlib.metadata.version("raycap")
    except importlib.metadata.PackageNotFoundError:
        version = "(not installed)"
    print(f"raycap {version} in {PACKAGE_ROOT}, with Python {platform.python_version()} in {sys.prefix}")
    raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `raycap` itself."""


app = typer.Typer(
    callback=_options,
    help=HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.command(rich_help_panel=START)(start.init)
app.command(rich_help_panel=START)(start.doctor)
app.command("run", rich_help_panel=SWEEPS)(run.run)
app.command(rich_help_panel=SWEEPS)(sweeps.plan)
app.command(rich_help_panel=SWEEPS)(sweeps.status)
app.command(rich_help_panel=SWEEPS)(sweeps.report)
app.command(rich_help_panel=SWEEPS)(sweeps.sync)
app.command(rich_help_panel=SWEEPS)(sweeps.compare)
app.command(rich_help_panel=SWEEPS)(ui.ui)
app.command(rich_help_panel=SWEEPS)(reproduce.archive)
app.command("reproduce", rich_help_panel=SWEEPS)(reproduce.reproduce)
app.command(rich_help_panel=MODELS)(stored_models.evaluate)
app.command(rich_help_panel=MODELS)(stored_models.losses)
app.command(rich_help_panel=MODELS)(stored_models.probe)
app.command(rich_help_panel=MODELS)(stored_models.localise)
app.command(rich_help_panel=PIECES)(pieces.trial)
app.command(rich_help_panel=PIECES)(pieces.texts)
app.command(rich_help_panel=AROUND)(share.export)
app.add_typer(cluster.app, name="cluster", rich_help_panel=AROUND)
