"""A cluster as groups of machines, wherever it is described; and what holds for every one."""

from collections.abc import Iterator
from dataclasses import dataclass

from raycap.cluster.cloud.document import ClusterDocument, Fault
from raycap.cluster.cloud.machines import known_size
from raycap.spec.yaml_tree import KeyPath


@dataclass(frozen=True)
class NodeGroup:
    """Machines (or pods) alike."""

    name: str
    place: KeyPath
    """Where in its document it is described; the places below may be missing there."""
    cpus_at: KeyPath
    gpus_at: KeyPath
    """Where its CPUs and GPUs are said."""
    market: KeyPath
    """Where it says that it is spot, if it does."""
    is_head: bool
    cpus: int | None
    """What Ray gives away on each of them; None where nothing is said."""
    gpus: int | None
    max_count: int
    machine_type: str | None = None
    num_accelerators: int = 0
    is_spot: bool = False
    spot: str = ""
    """How its cloud writes that it is spot."""
    reaches: frozenset[str] = frozenset()
    """Schemes of storage that it has been given the right to."""

    @property
    def size(self) -> tuple[int, int]:
        """CPUs and GPUs of each, by its type where nothing is said."""
        known = known_size(self.machine_type or "", self.num_accelerators) or (0, 0)
        return (known[0] if self.cpus is None else self.cpus, known[1] if self.gpus is None else self.gpus)


@dataclass(frozen=True)
class Cluster:
    """A described cluster."""

    document: ClusterDocument
    groups: tuple[NodeGroup, ...]
    max_machines: int
    """Beside the head, all groups together."""

    @property
    def workers(self) -> tuple[NodeGroup, ...]:
        """All groups but the head's."""
        return tuple(group for group in self.groups if not group.is_head)

    def faults(self) -> Iterator[Fault]:
        """What is wrong with its groups, whatever the sweep."""
        for group in self.groups:
            yield from self._sizes(group)
            yield from self._market(group)

    def _sizes(self, group: NodeGroup) -> Iterator[Fault]:
        if group.is_head and group.cpus != 0:
            got = "nothing" if group.cpus is None else group.cpus
            yield self.document.fault(
                group.cpus_at,
                f"must be 0 on the head, or trials train on it and take it down with them, got {got}; write 0",
            )
        known = known_size(group.machine_type or "", group.num_accelerators)
        if known is None:
            return
        if group.gpus is not None and group.gpus != known.gpus and not group.is_head:
            yield self.document.fault(
                group.gpus_at,
                f"a {group.machine_type} has {known.gpus} GPUs, got {group.gpus}; write {known.gpus}, or another type",
            )
        if group.cpus is not None and group.cpus > known.cpus:
            yield self.document.fault(
                group.cpus_at,
                f"a {group.machine_type} has {known.cpus} vCPUs, got {group.cpus}; write at most {known.cpus}",
            )

    def _market(self, group: NodeGroup) -> Iterator[Fault]:
        if group.is_head and group.is_spot:
            yield self.document.fault(
                group.market, f"the head must not be spot, since a sweep ends with it; take {group.spot} away"
            )
        if "spot" in group.name.lower() and not group.is_spot and not group.is_head:
            yield self.document.fault(
                group.market,
                f"{group.name} is called spot but bought on demand; add {group.spot}, or name it otherwise",
            )
