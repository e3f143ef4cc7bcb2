"""The figures of a report: functions from an analysis to a matplotlib Figure. None of them writes files.

Importing this package imports matplotlib, whatever backend MPLBACKEND names. Jupyter sets that variable for all commands
that it starts, to a backend that other environments lack, and matplotlib cannot be imported under an unknown backend.
"""

import os
import sys
from contextlib import suppress


def _import_matplotlib() -> None:
    """Import matplotlib without MPLBACKEND, then use the backend if it exists, for figures that the user draws.

    Raises OSError if matplotlib cannot be imported, for example because a file matplotlibrc is not UTF-8.
    """
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    except Exception as error:
        raise OSError(
            f"matplotlib cannot be imported: {error}; correct or remove the file matplotlibrc in the working directory or "
            "in the folder that MATPLOTLIBRC or MPLCONFIGDIR names, or reinstall matplotlib"
        ) from error
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


if "matplotlib" not in sys.modules:
    _import_matplotlib()
