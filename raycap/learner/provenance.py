"""The code, library versions and machine of a process, which are stored with its results."""

import importlib.metadata
import platform
from contextlib import suppress
from functools import cache

import torch

from raycap.results import Provenance

STORED_VERSIONS = ("torch", "transformers", "peft", "numpy", "tokenizers", "ray", "mlflow")
"""Packages whose versions are stored with a result."""


def provenance(source_commit: str, device: torch.device) -> Provenance:
    """Return the provenance of results that this process computes on a device with the code of a commit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return Provenance(
        git_commit=source_commit, versions=_versions(), host=platform.node(), device=f"{device.type}: {name}"
    )


@cache
def _versions() -> dict[str, str]:
    """Return the versions of Python and of the packages in STORED_VERSIONS that are installed."""
    versions = {"python": platform.python_version()}
    for package in STORED_VERSIONS:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return versions
