"""What torch finds on this machine."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    total_bytes: int


def gpus() -> list[Gpu]:
    """The CUDA devices that torch can use, as CUDA_VISIBLE_DEVICES lets it; none where its build knows no CUDA."""
    if not torch.cuda.is_available():
        return []
    found = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(device.name, device.total_memory) for device in found]


def build() -> str:
    """Version of torch and what it was built for, such as "2.13.0+cpu, without CUDA"."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__}, {cuda}"


def threads() -> int:
    """Threads that one process computes with, unless it is told otherwise."""
    return torch.get_num_threads()
