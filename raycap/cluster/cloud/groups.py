"""A cluster as groups of equal machines, and the faults that do not depend on the provider."""

from collections.abc import Iterator
from dataclasses import dataclass

from raycap.cluster.cloud.document import ClusterDocument, Fault
from raycap.cluster.cloud.machines import known_size
from raycap.spec.yaml_reader import KeyPath


@dataclass(frozen=True)
class NodeGroup:
    """A group of equal machines or pods.

    Paths are key paths of the document. They may be missing in it; faults are then reported at the nearest parent.
    """

    name: str
    path: KeyPath
    """Path of the group's description."""
    cpus_path: KeyPath
    gpus_path: KeyPath
    market_path: KeyPath
    """Path of the setting that requests spot machines."""
    is_head: bool
    cpus: int | None
    """CPUs of each machine that Ray may assign; None if the document does not state them."""
    gpus: int | None
    max_count: int
    """Largest number of machines in the group; not used for the head."""
    machine_type: str | None = None
    num_accelerators: int = 0
    """GPUs that are attached to a machine type without any, as on Google's n1."""
    is_spot: bool = False
    spot_setting: str = ""
    """The setting that requests spot machines from this provider, for messages."""
    reaches: frozenset[str] = frozenset()
    """URI schemes of the buckets that its service account gives access to."""
    detects_size: bool = False
    """Whether Ray detects the CPUs and GPUs of each machine, so that the document does not state them."""

    @property
    def size(self) -> tuple[int, int]:
        """CPUs and GPUs of each machine; those of the machine type where the document does not state them."""
        known = known_size(self.machine_type or "", self.num_accelerators) or (0, 0)
        return (known[0] if self.cpus is None else self.cpus, known[1] if self.gpus is None else self.gpus)


@dataclass(frozen=True)
class Cluster:
    """A cluster as its file describes it."""

    document: ClusterDocument
    groups: tuple[NodeGroup, ...]
    max_machines: int
    """Largest number of worker machines in all groups together."""
    run_path: KeyPath | None = None
    """Path of the command that runs the sweep; None if the document has none."""
    shares_folders: bool = False
    """Whether all machines share folders, so that a file in one of them outlives its machine."""
    storage_example: str = "storage=s3://BUCKET/raycap or gs://BUCKET/raycap"
    """Overrides of a sweep with which it can run on this cluster, for messages."""
    tracking_example: str = "tracking.uri=http://127.0.0.1:5000 for the server that the template starts on the head"

    @property
    def workers(self) -> tuple[NodeGroup, ...]:
        """All groups except the head."""
        return tuple(group for group in self.groups if not group.is_head)

    @property
    def num_machines(self) -> int:
        """Largest number of machines, with the head if it is a machine of its own."""
        return self.max_machines + any(group.is_head for group in self.groups)

    def faults(self) -> Iterator[Fault]:
        """Find faults of the groups that do not depend on a sweep."""
        for group in self.groups:
            yield from self._size_faults(group)
            yield from self._market_faults(group)

    def _size_faults(self, group: NodeGroup) -> Iterator[Fault]:
        if group.is_head and group.cpus != 0:
            got = "nothing" if group.cpus is None else group.cpus
            rule = f"must be 0 on the head, got {got}; write 0: otherwise trials run on the head and can bring it down"
            yield self.document.fault(group.cpus_path, rule)
        known = known_size(group.machine_type or "", group.num_accelerators)
        if known is None:
            return
        if group.gpus is not None and group.gpus != known.gpus and not group.is_head:
            rule = f"must be {known.gpus}, the number of GPUs of a {group.machine_type}, got {group.gpus}"
            yield self.document.fault(group.gpus_path, f"{rule}; write {known.gpus} or choose another machine type")
        # Fewer CPUs than the machine has are no fault: some may be reserved for other processes.
        if group.cpus is not None and group.cpus > known.cpus:
            rule = f"must be at most {known.cpus}, the number of vCPUs of a {group.machine_type}, got {group.cpus}"
            yield self.document.fault(group.cpus_path, f"{rule}; write {known.cpus} or choose another machine type")

    def _market_faults(self, group: NodeGroup) -> Iterator[Fault]:
        if group.is_head and group.is_spot:
            rule = "the head must not be a spot machine, because the sweep ends if it is reclaimed"
            yield self.document.fault(group.market_path, f"{rule}; remove {group.spot_setting}")
        if "spot" in group.name.lower() and not group.is_spot and not group.is_head:
            rule = f"must request spot machines, as the name {group.name} says, but requests on-demand machines"
            yield self.document.fault(group.market_path, f"{rule}; add {group.spot_setting} or rename the group")
