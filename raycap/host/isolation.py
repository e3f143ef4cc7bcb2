"""Isolation of a process from files of the user, such as `names.py` in the working directory, and from Python's settings.

This module imports only modules that Python has already loaded: before `isolate` has run, an import could find a file of
the user instead of a module of the standard library.
"""

import os
import site
import sys
import warnings

PACKAGE_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""Folder that contains the package raycap."""
CHILD_SETTINGS = {
    "PYTHONSAFEPATH": "1",  # does not prepend the working directory or the folder of the script to the search path
    "PYTHONUTF8": "1",
    # Empty values are ignored by Python.
    "PYTHONINSPECT": "",
    "PYTHONOPTIMIZE": "",  # Ray cannot start without docstrings
    "PYTHONWARNINGS": "",  # `error` would stop Ray and MLflow at their first warning
}
"""Environment variables of other Python processes that raycap starts."""


def isolate() -> None:
    """Remove the folder that Python prepended to `sys.path`, and move the folders of PYTHONPATH to its end.

    Python prepends the working directory for `python -m`, or the folder of the script. PYTHONPATH may name packages that
    are installed nowhere else, so its folders stay, but installed packages and the standard library go first. Filters of
    PYTHONWARNINGS are removed.
    """
    if os.environ.get("PYTHONWARNINGS"):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
    if not sys.flags.safe_path:
        del sys.path[0]
    installed = {os.path.dirname(os.__file__), *site.getsitepackages(), site.getusersitepackages()}
    user_folders = [folder for folder in sys.path if folder in _python_path() and folder not in installed]
    sys.path[:] = [folder for folder in sys.path if folder not in user_folders] + user_folders


def hidden_modules() -> dict[str, str]:
    """Return the files of the user that were imported instead of modules of the standard library, by module name.

    Python imports these modules while it starts, before `isolate` can run.
    """
    # The standard library can be in PYTHONPATH itself: `child_environment` lists the whole search path.
    library = os.path.dirname(os.__file__)
    folders = {os.getcwd(), *_python_path()} - {library, os.path.join(library, "lib-dynload")}
    files = {name: getattr(sys.modules.get(name), "__file__", None) for name in sys.stdlib_module_names}
    return {name: file for name, file in files.items() if file and os.path.dirname(os.path.abspath(file)) in folders}


def child_environment() -> dict[str, str]:
    """Return the environment variables that give other Python processes the search path and settings of this one."""
    folders = raycap_folders() + [folder for folder in sys.path if _python_path() and os.path.exists(folder)]
    return CHILD_SETTINGS | ({"PYTHONPATH": os.pathsep.join(folders)} if folders else {})


def raycap_folders() -> list[str]:
    """Return the folder of raycap if other Python processes would import another raycap, or none, without it."""
    found = (finder.find_spec("raycap", None) for finder in sys.meta_path if hasattr(finder, "find_spec"))
    origin = next((spec.origin for spec in found if spec), None)
    return [] if origin and os.path.samefile(os.path.dirname(os.path.dirname(origin)), PACKAGE_ROOT) else [PACKAGE_ROOT]


def _python_path() -> list[str]:
    """Return the folders of PYTHONPATH as they are in `sys.path`; an empty entry stands for the working directory."""
    folders = os.environ.get("PYTHONPATH", "")
    return [os.path.abspath(folder) for folder in folders.split(os.pathsep)] if folders else []
