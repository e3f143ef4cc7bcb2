"""raycap cluster check: all that is wrong with a cluster's file at once, offline, before it costs anything."""

from dataclasses import dataclass
from pathlib import Path

from raycap.cluster.cloud import ec2, kuberay, launcher
from raycap.cluster.cloud.document import Fault, read_documents, undecided
from raycap.cluster.cloud.groups import Cluster
from raycap.cluster.cloud.needs import fit_faults, machines_of, reach_faults, trials_at_most
from raycap.cluster.cloud.versions import Versions
from raycap.cluster.resources import format_machines
from raycap.spec import SweepSpec
from raycap.spec.document import SpecError
from raycap.spec.file import LoadedSweep, load_sweep

DEFAULTS = SweepSpec(name="defaults")


@dataclass(frozen=True)
class Report:
    """What came of a check."""

    faults: list[Fault]
    """In the order of the file."""
    notes: list[str]
    """What could not be checked, and why."""
    machines: str
    """What may run beside the head, in words."""
    trials_at_once: int | None
    """How many trials of the sweep, if one was named."""


def check(path: str, spec: str | None = None, overrides: tuple[str, ...] = ()) -> Report:
    """Check a file for `ray up` or for KubeRay, alone or against a sweep.

    Raises SpecError if it cannot be read as YAML at all.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError([f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    documents, faults = read_documents(path, text)
    faults += undecided(text, documents)
    versions, notes = Versions.here(), []
    manifest = next((document for document in documents if kuberay.is_kuberay(document)), None)
    document = manifest or documents[0]
    if manifest:
        faults += kuberay.faults_of(document, versions)
        cluster = kuberay.cluster_of(document)
    else:
        faults += launcher.faults_of(document, versions)
        cluster = launcher.cluster_of(document)
        provider = document.find_document("provider", "type")
        if provider == "aws" and not ec2.is_known():
            notes.append("botocore is not installed, so node_config is not held against EC2: pip install botocore")
        elif provider != "aws":
            notes.append(f"node_config is held against no model of {provider}: Ray and its cloud will tell")
    faults += cluster.faults()
    sweep, of_sweep = _sweep_faults(cluster, spec, overrides)
    faults += of_sweep
    if sweep and sweep.spec.storage.startswith("file://"):
        notes.append(f"whether all machines share {sweep.spec.storage}")
    at_once = trials_at_most(cluster, sweep.spec.execution) if sweep else None
    return Report(sorted(faults, key=_order), notes, format_machines(machines_of(cluster)), at_once)


def _sweep_faults(
    cluster: Cluster, spec: str | None, overrides: tuple[str, ...]
) -> tuple[LoadedSweep | None, list[Fault]]:
    """The sweep, and what keeps it from running there."""
    by_job = kuberay.overrides_of(cluster.document)

    def of_job(field: str, rule: str) -> Fault:
        return cluster.document.fault(("spec", "entrypoint"), f"{field} {rule}")

    if spec is None:
        if by_job is None and overrides:
            raise SpecError([f"{overrides[0]}: is about a sweep; add --spec FILE, the sweep that is to run there"])
        if by_job is None:
            return None, []
        if wrong := [override for override in overrides if "=" not in override]:
            raise SpecError([f"override {wrong[0]!r}: must have the form key=value"])
        said = dict(override.split("=", 1) for override in (*by_job, *overrides))
        places = said.get("storage", DEFAULTS.storage), said.get("tracking.uri", DEFAULTS.tracking.uri)
        return None, list(reach_faults(cluster, of_job, *places))
    try:
        sweep = load_sweep(spec, (*(by_job or ()), *overrides))
    except SpecError as error:
        return None, [
            Fault(where, "", rule) for where, _, rule in (problem.partition(": ") for problem in error.problems)
        ]
    (in_spec,), _ = read_documents(spec, sweep.text)

    def of_spec(field: str, rule: str) -> Fault:
        return in_spec.fault(tuple(field.split(".")), rule)

    at = of_spec if by_job is None else of_job
    reached = reach_faults(cluster, at, sweep.spec.storage, sweep.spec.tracking.uri)
    return sweep, [*fit_faults(cluster, sweep.spec), *reached]


def _order(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (fault.where, 0)
