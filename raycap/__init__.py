"""raycap: measure how many bits of knowledge a transformer stores per parameter, and with which encoding scheme.

The names in `__all__` are the stable interface for Python. They are imported when they are used first, so `import raycap`
alone takes milliseconds.
"""

TYPE_CHECKING = False  # raycap/host/isolation.py explains why typing is not imported
if TYPE_CHECKING:
    from raycap.analysis.frames import Results, load
    from raycap.api import Sweep, run_trial
    from raycap.results import TrialResult
    from raycap.spec import SweepSpec, TrialSpec
    from raycap.spec.document import SpecError

__all__ = ["Results", "SpecError", "Sweep", "SweepSpec", "TrialResult", "TrialSpec", "load", "run_trial"]

_MODULES = {
    "Results": "raycap.analysis.frames",
    "SpecError": "raycap.spec.document",
    "Sweep": "raycap.api",
    "SweepSpec": "raycap.spec",
    "TrialResult": "raycap.results",
    "TrialSpec": "raycap.spec",
    "load": "raycap.analysis.frames",
    "run_trial": "raycap.api",
}
"""The modules that define the names of `__all__`."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
