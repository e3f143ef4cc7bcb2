"""Numbers of vCPUs and GPUs of common machine types, as documented by Amazon and Google."""

import re
from typing import NamedTuple


class Size(NamedTuple):
    """Numbers of vCPUs and GPUs of a machine."""

    cpus: int
    gpus: int


FOUR_OR_EIGHT = {12: 4, 24: 4, 48: 8}
EC2_GPUS: dict[str, dict[int, int]] = {
    "g4dn": {12: 4},
    "g5": FOUR_OR_EIGHT,
    "g6": FOUR_OR_EIGHT,
    "g6e": FOUR_OR_EIGHT,
    "p3": {8: 4, 16: 8},
    "p3dn": {24: 8},
    "p4d": {24: 8},
    "p4de": {24: 8},
    "p5": {48: 8},
    "p5e": {48: 8},
    "p5en": {48: 8},
    "p6-b200": {48: 8},
}
"""GPUs of EC2 families by the n of `.nxlarge`; sizes that are not listed have one GPU."""
EC2 = re.compile(r"([a-z]\w*(?:-\w+)?)\.(?:(\d*)xlarge|(large))")
EC2_WITHOUT_GPU = re.compile(r"[cmrt]\d\w*")
G2_GPUS = {4: 1, 8: 1, 12: 1, 16: 1, 24: 2, 32: 1, 48: 4, 96: 8}
CPUS_PER_GPU = {"a2-highgpu": 12, "a2-megagpu": 6, "a2-ultragpu": 12, "a3-highgpu": 26, "a3-megagpu": 26,
                "a3-ultragpu": 28, "a4-highgpu": 28}  # fmt: skip
GCE_WITH_GPUS = re.compile(r"(a\d-\w+)-(\d+)g")
GCE_WITHOUT_GPU = re.compile(r"(?:n\d|n\dd|e2|c\d|c\dd|m\d|t2d)-(?:standard|highmem|highcpu)-(\d+)")


def known_size(machine_type: str, num_accelerators: int = 0) -> Size | None:
    """Return the size of a machine type, or None if the type is unknown.

    `num_accelerators` is the number of GPUs attached to a type that has none by itself, such as Google's n1.
    """
    if found := EC2.fullmatch(machine_type):
        family, times, large = found.groups()
        number = int(times or 1)
        cpus = 2 if large else 4 * number  # 4n vCPUs per nxlarge in all families listed above
        if family in EC2_GPUS:
            return Size(cpus, EC2_GPUS[family].get(number, 1))
        return Size(cpus, 0) if EC2_WITHOUT_GPU.fullmatch(family) else None
    if found := GCE_WITH_GPUS.fullmatch(machine_type):
        family, gpus = found[1], int(found[2])
        return Size(CPUS_PER_GPU[family] * gpus, gpus) if family in CPUS_PER_GPU else None
    if machine_type.startswith("g2-standard-") and machine_type[12:].isdecimal():
        cpus = int(machine_type[12:])
        return Size(cpus, G2_GPUS[cpus]) if cpus in G2_GPUS else None
    if found := GCE_WITHOUT_GPU.fullmatch(machine_type):
        return Size(int(found[1]), num_accelerators)
    return None
