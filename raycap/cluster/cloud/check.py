"""Check of a cluster file, which finds all faults at once and offline, for `raycap cluster check`."""

from dataclasses import dataclass
from pathlib import Path

from raycap.cluster.cloud import ec2, gce, kuberay, launcher
from raycap.cluster.cloud.document import Fault, read_documents, undecided
from raycap.cluster.cloud.groups import Cluster
from raycap.cluster.cloud.kubernetes import workload_faults
from raycap.cluster.cloud.needs import fit_faults, machines_of, max_concurrent_trials, reach_faults
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
    """Description of the largest set of worker machines."""
    trials_at_once: int | None
    """Number of trials of the sweep that can run at once; None if no sweep was given."""


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
    documents, faults = read_documents(path, text)
    faults += undecided(text, documents)
    versions, notes = Versions.of_environment(), []
    manifest = next((document for document in documents if kuberay.is_kuberay(document)), None)
    document = manifest or documents[0]
    if manifest:
        for each in documents:
            faults += kuberay.faults_of(each, versions) if kuberay.is_kuberay(each) else workload_faults(each)
        cluster = kuberay.cluster_of(document)
    else:
        faults += launcher.faults_of(document, versions)
        cluster = launcher.cluster_of(document)
        provider = document.value_at("provider", "type")
        if provider == "aws" and not ec2.can_check():
            notes.append("node_config, because botocore is not installed; to check it: pip install botocore")
        elif provider == "gcp" and not gce.can_check():
            package = "google-api-python-client"
            notes.append(
                f"types in node_config, because {package} is not installed; to check them: pip install {package}"
            )
        elif provider not in ("aws", "gcp"):
            notes.append(f"node_config, because only those of aws and gcp can be checked offline, got {provider}")
    faults += cluster.faults()
    sweep, sweep_faults = _sweep_faults(cluster, spec, overrides)
    faults += sweep_faults
    if sweep and sweep.spec.storage.startswith("file://"):
        notes.append(f"whether all machines share {sweep.spec.storage}")
    trials_at_once = max_concurrent_trials(cluster, sweep.spec.execution) if sweep else None
    return Report(sorted(faults, key=_order), notes, format_machines(machines_of(cluster)), trials_at_once)


def _sweep_faults(
    cluster: Cluster, spec: str | None, overrides: tuple[str, ...]
) -> tuple[LoadedSweep | None, list[Fault]]:
    """Load the sweep, if one is given, and find the faults that keep it from running on the cluster."""
    job_overrides = kuberay.overrides_of(cluster.document)

    def job_fault(field: str, rule: str) -> Fault:
        return cluster.document.fault(("spec", "entrypoint"), f"{field} {rule}")

    if spec is None:
        if job_overrides is None and overrides:
            raise SpecError([f"{overrides[0]}: an override needs a sweep; add --spec FILE with the sweep to be run"])
        if job_overrides is None:
            return None, []
        if wrong := [override for override in overrides if "=" not in override]:
            raise SpecError(
                [f"override {wrong[0]!r}: must have the form key=value, such as storage=s3://BUCKET/raycap"]
            )
        # The file of the job's sweep is inside its image, so only storage and tracking.uri can be checked.
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


def _order(fault: Fault) -> tuple[str, int]:
    file, _, line = fault.where.rpartition(":")
    return (file, int(line)) if line.isdecimal() else (fault.where, 0)
