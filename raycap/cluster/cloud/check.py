"""Check of a cluster file, which finds all faults at once and offline, for `raycap cluster check`."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from raycap.cluster.cloud import ec2, gce, kuberay, launcher, slurm
from raycap.cluster.cloud.document import Fault, read_documents, undecided
from raycap.cluster.cloud.exposure import TOKEN, exposed_services
from raycap.cluster.cloud.groups import Cluster
from raycap.cluster.cloud.kubernetes import workload_faults
from raycap.cluster.cloud.needs import (
    fit_faults,
    has_known_sizes,
    machines_of,
    max_concurrent_trials,
    reach_faults,
)
from raycap.cluster.cloud.versions import Versions
from raycap.cluster.resources import format_machines
from raycap.spec import SweepSpec
from raycap.spec.document import SpecError
from raycap.spec.file import LoadedSweep, load_sweep
from raycap.spec.locations import DEFAULT_TRACKING_URI

DEFAULTS = SweepSpec(name="defaults")


@dataclass(frozen=True)
class Report:
    """Result of a check."""

    faults: list[Fault]
    """Sorted by file and line."""
    notes: list[str]
    """Parts of the file that were not checked, each with the reason."""
    machines: str
    """Description of the largest set of machines on which trials run."""
    trials_at_once: int | None
    """Number of trials of the sweep that can run at once; None if no sweep was given, or sizes of machines are unknown."""
    open: list[Fault]
    """Services that others can reach without a token or password."""


def check_cluster_file(path: str, spec: str | None = None, overrides: tuple[str, ...] = ()) -> Report:
    """Check a file for `ray up` or KubeRay, alone or together with a sweep.

    `spec` is the path of the sweep's file and `overrides` are its key=value overrides. A RayJob has overrides in its
    entrypoint; they are applied before those given here.

    Raises SpecError if the file cannot be read, is not YAML, or describes no cluster.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            [f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}; give a text file in UTF-8"]
        ) from None
    is_script = slurm.is_batch_script(text)
    if is_script:
        document, faults = slurm.read_script(path, text)
        documents = [document]
    else:
        documents, faults = read_documents(path, text)
    faults += undecided(text, documents)
    versions, notes = Versions.of_environment(), []
    manifest = next((document for document in documents if kuberay.is_kuberay(document)), None)
    document = manifest or documents[0]
    if is_script:
        faults += slurm.faults_of(document)
        cluster = slurm.cluster_of(document)
        notes.append("partitions, accounts and limits, which only the site knows; to check them: sbatch --test-only")
    elif manifest:
        for each in documents:
            faults += kuberay.faults_of(each, versions) if kuberay.is_kuberay(each) else workload_faults(each)
        cluster = kuberay.cluster_of(document)
    else:
        faults += launcher.faults_of(document, versions)
        cluster = launcher.cluster_of(document)
        notes += _unchecked_nodes(document.value_at("provider", "type"))
    faults += cluster.faults()
    sweep, sweep_faults = _sweep_faults(cluster, spec, overrides)
    faults += sweep_faults
    if sweep and sweep.spec.storage.startswith("file://"):
        notes.append(f"whether all machines share {sweep.spec.storage}")
    exposed = list(exposed_services(documents, sets_token=is_script and TOKEN in text))
    if not has_known_sizes(cluster):
        notes.append("whether a trial fits on a machine, because Ray detects the CPUs and GPUs when it starts")
        return Report(sorted(faults, key=_order), notes, f"{cluster.num_machines} machines", None, exposed)
    trials_at_once = max_concurrent_trials(cluster, sweep.spec.execution) if sweep else None
    machines = format_machines(machines_of(cluster))
    if any(group.is_head for group in cluster.groups):
        machines += " in addition to the head"
    return Report(sorted(faults, key=_order), notes, machines, trials_at_once, exposed)


def _unchecked_nodes(provider: object) -> list[str]:
    """Return the parts of a file for `ray up` that cannot be checked here."""
    if provider == "aws" and not ec2.can_check():
        return ["node_config, because botocore is not installed; to check it: pip install botocore"]
    if provider == "gcp" and not gce.can_check():
        package = "google-api-python-client"
        return [f"types in node_config, because {package} is not installed; to check them: pip install {package}"]
    if provider not in ("aws", "gcp", "local"):
        return [f"node_config, because only those of aws and gcp can be checked offline, got {provider}"]
    return []


def _sweep_faults(
    cluster: Cluster, spec: str | None, overrides: tuple[str, ...]
) -> tuple[LoadedSweep | None, list[Fault]]:
    """Load the sweep, if one is given, and find the faults that keep it from running on the cluster."""
    run_path = cluster.run_path
    job_overrides = None if run_path is None else _overrides_in(cluster.document.value_at(*run_path))

    def job_fault(field: str, rule: str) -> Fault:
        return cluster.document.fault(run_path or (), f"{field} {rule}")

    if spec is None:
        if job_overrides is None and overrides:
            raise SpecError([f"{overrides[0]}: an override needs a sweep; add --spec FILE with the sweep to be run"])
        if job_overrides is None:
            return None, []
        if wrong := [override for override in overrides if "=" not in override]:
            raise SpecError(
                [f"override {wrong[0]!r}: must have the form key=value, such as storage=s3://BUCKET/raycap"]
            )
        # The file of the job's sweep may exist only on the cluster, so only storage and tracking.uri can be checked.
        settings = dict(override.split("=", 1) for override in (*job_overrides, *overrides))
        storage = settings.get("storage", DEFAULTS.storage)
        tracking_uri = settings.get("tracking.uri", DEFAULT_TRACKING_URI)
        return None, list(reach_faults(cluster, job_fault, storage, tracking_uri))
    try:
        sweep = load_sweep(spec, (*(job_overrides or ()), *overrides))
    except SpecError as error:
        return None, [
            Fault(where, "", rule) for where, _, rule in (problem.partition(": ") for problem in error.problems)
        ]
    (spec_document,), _ = read_documents(spec, sweep.text)

    def spec_fault(field: str, rule: str) -> Fault:
        return spec_document.fault(tuple(field.split(".")), rule)

    make_fault = spec_fault if job_overrides is None else job_fault
    unreachable = reach_faults(cluster, make_fault, sweep.spec.storage, sweep.spec.tracking.uri or DEFAULT_TRACKING_URI)
    return sweep, [*fit_faults(cluster, sweep.spec), *unreachable]


def _overrides_in(command: object) -> tuple[str, ...] | None:
    """Return the key=value overrides in a command, or None if it does not run raycap."""
    if not isinstance(command, str) or "raycap" not in command:
        return None
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return None
    return tuple(word for word in words if "=" in word and not word.startswith("-"))


def _order(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (fault.where, 0)
