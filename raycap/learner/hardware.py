"""The GPUs, build and threads of torch on this machine."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Gpu:
    """A CUDA device."""

    name: str
    total_bytes: int


def gpus() -> list[Gpu]:
    """Return the CUDA devices that torch can use, as limited by CUDA_VISIBLE_DEVICES; empty for a build without CUDA."""
    if not torch.cuda.is_available():
        return []
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [Gpu(device.name, device.total_memory) for device in devices]


def build() -> str:
    """Return the version of torch and of its CUDA, such as "2.13.0+cpu, without CUDA"."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__}, {cuda}"


def threads() -> int:
    """Return the default number of threads of a torch process."""
    return torch.get_num_threads()
