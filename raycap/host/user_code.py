"""Import of functions and classes from the user's own modules, which specs name in the form module:attribute."""

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

_imported: dict[str, str] = {}
"""SHA-256 of the source of each imported module, by the name of the module."""


class UserCodeError(ValueError):
    """A module of the user cannot be imported, or lacks an attribute; the message says what to do."""


def import_attribute(reference: str) -> tuple[Any, str]:
    """Import a function or class, and return it with the SHA-256 of its source file.

    The module may lie in the working directory. That folder is searched last, so none of its files takes the place of an
    installed module. A module whose file has changed since it was imported is imported again. The SHA-256 does not include
    other modules that it imports.

    Args:
        reference: Name in the form module:attribute. The attribute must be defined in this module.

    Raises:
        UserCodeError: The module cannot be imported, or does not define the attribute.
    """
    module_name, _, attribute = reference.partition(":")
    module, sha256 = _import_module(module_name)
    found = getattr(module, attribute, None)
    if found is None:
        known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise UserCodeError(
            f"module {module_name} ({module.__file__}) has no attribute {attribute}; it has {', '.join(known) or 'none'}"
        )
    defined_in = getattr(found, "__module__", module_name)
    if isinstance(defined_in, str) and defined_in not in (module_name, "functools"):  # functools.partial
        raise UserCodeError(f"{attribute} is defined in module {defined_in}; write {defined_in}:{attribute}")
    return found, sha256


def _import_module(name: str) -> tuple[ModuleType, str]:
    """Return a module in its current version and the SHA-256 of its source file. Raises UserCodeError."""
    add_folders([os.getcwd()])
    importlib.invalidate_caches()  # the file may have been written after its folder was listed
    try:
        module = importlib.import_module(name)
        sha256 = _source_sha256(module)
        if _imported.setdefault(name, sha256) != sha256:
            # Python compares compiled files with their source by time, in seconds, and size.
            Path(importlib.util.cache_from_source(str(module.__file__))).unlink(missing_ok=True)
            module = importlib.reload(module)
            _imported[name] = sha256
    except UserCodeError:
        raise
    except Exception as error:  # the module may raise anything
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            where = "put it into the working directory or a folder of PYTHONPATH, or install it"
            raise UserCodeError(f"there is no module {name}; {where}") from None
        raise UserCodeError(f"module {name} cannot be imported: {type(error).__name__}: {error}; correct it") from error
    return module, sha256


def _source_sha256(module: ModuleType) -> str:
    file = getattr(module, "__file__", None)
    if file is None or not file.endswith(".py"):
        raise UserCodeError(f"module {module.__name__} has no source file; define the attribute in a Python file")
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def folder_of(reference: str) -> str:
    """Return the folder that contains the module of an attribute, or its outermost package. Raises UserCodeError."""
    name = reference.partition(":")[0]
    file = Path(str(_import_module(name)[0].__file__)).absolute()
    return str(file.parents[name.count(".") + (file.name == "__init__.py")])


def add_folders(folders: Iterable[str]) -> None:
    """Append folders to the search path of modules, so that processes of Ray find modules of the user."""
    sys.path += [folder for folder in dict.fromkeys(folders) if folder not in sys.path]
