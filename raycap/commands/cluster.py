"""Commands `raycap cluster`: files that start clusters, and waiting for the machines of a cluster."""

import json
from typing import Annotated

import typer

from raycap.commands.arguments import AsJson, Overrides

app = typer.Typer(
    help="Clusters: print or check the file that starts one, or wait for its machines.", no_args_is_help=True
)
EXIT_FAULTS = 2


@app.command()
def template(
    where: Annotated[
        str,
        typer.Argument(
            metavar="WHERE", help="aws, gcp, onprem, slurm, kuberay, or dockerfile (the image for kuberay)."
        ),
    ],
) -> None:
    """Print a file for `ray up`, `sbatch` or `kubectl apply`, with the Ray and Python versions of this environment.

    Examples:

      raycap cluster template gcp > gcp.yaml

      raycap cluster template dockerfile > Dockerfile
    """
    from raycap.cluster.cloud.templates import Template, render_template
    from raycap.cluster.cloud.versions import Versions
    from raycap.spec.document import SpecError

    if where not in list(Template):
        raise SpecError([f"cluster template: must be one of {', '.join(Template)}, got {where}; write one of these"])
    print(render_template(Template(where), Versions.of_environment()), end="")


@app.command()
def check(
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="A file for `ray up` or `sbatch`, or a RayJob or RayCluster of KubeRay."),
    ],
    overrides: Overrides = None,
    spec: Annotated[str | None, typer.Option(help="Sweep to run on the cluster; overrides apply to it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a cluster file offline and print all faults; the exit code is 2 if there are any.

    Example:

      raycap cluster check cluster.yaml --spec specs/one_hop.yaml storage=s3://BUCKET/raycap
    """
    from raycap.cluster.cloud.check import check_cluster_file

    report = check_cluster_file(file, spec, tuple(overrides or ()))
    if as_json:
        faults, services = ([vars(fault) for fault in faults] for faults in (report.faults, report.open))
        print(json.dumps(vars(report) | {"faults": faults, "open": services}, indent=2))
    else:
        for fault in report.faults:
            typer.echo(str(fault), err=True)
        for exposed in report.open:
            print(f"{exposed.where}: open: {exposed.rule}")
        for note in report.notes:
            print(f"{file}: not checked: {note}")
        if not report.faults:
            trials = "trial" if report.trials_at_once == 1 else "trials"
            at_once = f"; {report.trials_at_once:,} {trials} of {spec} at once" if report.trials_at_once else ""
            print(f"{file}: valid: at most {report.machines}{at_once}")
    if report.faults:
        raise typer.Exit(EXIT_FAULTS)


@app.command()
def wait(
    count: Annotated[int, typer.Argument(metavar="COUNT", min=1, help="Number of machines, including the head.")],
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, help="Seconds after which the command fails.")] = 300,
) -> None:
    """Wait until the Ray cluster at RAY_ADDRESS has a number of machines; a run uses those that it finds at its start.

    Example:

      RAY_ADDRESS=10.0.0.1:6379 raycap cluster wait 4
    """
    from raycap.cluster.resources import wait_for_machines

    wait_for_machines(count, timeout_s)
