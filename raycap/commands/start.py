"""Commands `raycap init`, which writes a first sweep file, and `raycap doctor`, which checks this machine."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.table import Table
from rich.text import Text

from raycap.commands.arguments import AsJson
from raycap.spec import SweepSpec
from raycap.spec.document import SpecError
from raycap.spec.locations import DEFAULT_TRACKING_URI, TRACKING_VARIABLE, without_credentials
from raycap.terminal.format import wide_console

VERDICT_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the sweep; the file is NAME.yaml in this folder.")
    ],
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write a first sweep file with a description of every field, which runs on a laptop in a minute or two.

    Example:

      raycap init first && raycap plan first.yaml --estimate && raycap run first.yaml
    """
    from raycap.commands.starter import starter

    text, file = starter(name), Path(f"{name}.yaml")
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
    except FileExistsError:
        raise SpecError([f"{file}: exists already; give --force to replace it"]) from None
    except OSError as error:
        raise SpecError(
            [f"{file}: cannot be written: {error.strerror}; run init in a folder that is writable"]
        ) from None
    print(f"{file} is written. Edit it, then run\n  raycap plan {file} --estimate\n  raycap run {file}")


def doctor(
    as_json: AsJson = False,
    storage: Annotated[str, typer.Option(help="Storage of your sweeps.")] = SweepSpec.model_fields["storage"].default,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow database or server of your sweeps.",
            show_default=f"MLFLOW_TRACKING_URI or {DEFAULT_TRACKING_URI}",
        ),
    ] = None,
) -> None:
    """Check what sweeps need on this machine and print verdicts with advice; the exit code is 1 if a check fails.

    Examples:

      raycap doctor

      RAY_ADDRESS=10.0.0.1:6379 raycap doctor --storage s3://bucket/runs --tracking-uri http://10.0.0.1:5000
    """
    from raycap.commands.doctor import examine
    from raycap.host.preflight import CheckVerdict

    from_environment = without_credentials(os.environ.get(TRACKING_VARIABLE, ""))
    checks = examine(storage, tracking_uri or from_environment or DEFAULT_TRACKING_URI)
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=1))
    else:
        table = Table(box=SIMPLE, show_header=False)
        for check in checks:
            found = f"{check.found}\nto do: {check.to_do}" if check.to_do else check.found
            table.add_row(Text(check.verdict, VERDICT_STYLES[check.verdict]), check.name, found)
        wide_console().print(table)
    if any(check.verdict is CheckVerdict.FAIL for check in checks):
        raise typer.Exit(1)
