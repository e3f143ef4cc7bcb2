"""The GPUs, build and threads of torch on this machine."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

COMPILE_CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the folder in which torch.compile keeps compiled code."""


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


def torch_build() -> str:
    """Return the version of torch and of its CUDA, such as "2.13.0+cpu, without CUDA"."""
    cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return f"{torch.__version__}, {cuda}"


def threads() -> int:
    """Return the default number of threads of a torch process."""
    return torch.get_num_threads()


@contextmanager
def num_threads_of_torch(num: int) -> Iterator[None]:
    """Set the number of threads of torch within the context."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def use_private_compile_cache() -> None:
    """Let torch.compile keep its code in the user's cache folder, unless the user has chosen another one.

    By default it would load code from a folder in /tmp whose name is known, which any user of the machine could prepare.
    """
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(base, "raycap", "torchinductor")
    if COMPILE_CACHE_VARIABLE in os.environ or not folder.is_absolute():  # relative: the user has no home
        return
    with suppress(OSError):  # without a home that can be written, the default remains
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK):
            os.environ[COMPILE_CACHE_VARIABLE] = str(folder)
