"""Loading of sweep files: YAML and overrides to a validated SweepSpec and its points.

The errors of all points are collected and raised together, each with file, line and column.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from raycap.spec import SweepSpec
from raycap.spec.build_points import GridPoint, build_points, products_of
from raycap.spec.document import SpecDocument, SpecError, did_you_mean, format_value, truncated
from raycap.spec.faults import Faults
from raycap.spec.locations import LocationError, refuse_shell_syntax
from raycap.spec.overrides import check_overrides
from raycap.spec.yaml_reader import YamlError
from raycap.spec.yaml_tree import MAX_BYTES, YamlTree, read_yaml

MAX_QUESTION = 300
"""Largest number of characters of a sweep's question."""
SWEEPS_FOLDER = Path("sweeps")
PYTHON_SOURCE = "sweep"
"""Source in the errors of a sweep that is given as Python values."""


@dataclass(frozen=True)
class LoadedSweep:
    """A validated sweep file."""

    spec: SweepSpec
    points: list[GridPoint]
    question: str
    """The first comment of the file, empty if it does not begin with one."""
    text: str
    """The text of the file."""


def load_sweep(path_or_name: str, overrides: tuple[str, ...] = ()) -> LoadedSweep:
    """Read and validate a sweep file.

    Args:
        path_or_name: Path of the file, from the working directory or from `sweeps/`.
        overrides: Texts of the form key=value. The key is a dotted path into the file (`trial.training.batch_size=64`,
            `grid.model.hidden_size=[8,16]`), the value is YAML.

    Raises:
        SpecError: The file, an override or a point is invalid; the error lists all faults.
    """
    path = _find(path_or_name)
    document = SpecDocument(str(path), _contents(path))
    document.tree.setdefault("name", path.stem.encode("utf-8", "replace").decode())
    return _load(document, overrides)


def load_tree(tree: Mapping[str, Any] | SweepSpec, question: str = "", overrides: tuple[str, ...] = ()) -> LoadedSweep:
    """Validate a sweep that is given as Python values: a spec or the contents of a file, with arrays and specs in it.

    `question` takes the place of the file's first comment, and `overrides` are those of `load_sweep`.

    Raises:
        SpecError: A value is none that YAML has, or the sweep is invalid; the error lists all faults.
    """
    try:
        plain = TypeAdapter(Any).dump_python(tree, mode="json", exclude_unset=True, fallback=_as_list)
    except (TypeError, ValueError) as error:
        raise SpecError([f"{PYTHON_SOURCE}: must consist of numbers, texts, lists, dicts and specs: {error}"]) from None
    stream = StringIO()
    YAML().dump(plain, stream)
    comment = "".join(f"# {line}\n" for line in question.splitlines())
    try:
        contents = read_yaml(f"{comment}{stream.getvalue()}".encode())
    except YamlError as error:
        raise SpecError([f"{PYTHON_SOURCE}: {error}"]) from None
    # The text was generated, so positions in it would mean nothing to the user.
    return _load(SpecDocument(PYTHON_SOURCE, replace(contents, value=plain, positions={})), overrides)


def _as_list(values: Any) -> Any:
    """Return an array, a range or another iterable as a list, and a number of NumPy as a number. Raises TypeError."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _load(document: SpecDocument, overrides: tuple[str, ...]) -> LoadedSweep:
    """Validate a document after its overrides. Raises SpecError."""
    bad_overrides = []
    for override in overrides:
        try:
            document.override(override)
        except SpecError as error:
            bad_overrides += error.problems
    faults = Faults(document)
    spec = None
    try:
        spec = SweepSpec.model_validate_json(json.dumps(document.tree))
    except ValidationError as error:
        faults.add_validation_error(error, SweepSpec, ())
    if spec is not None:
        _check_locations(spec, faults)
    first_line = document.text.lstrip().partition("\n")[0]
    question = first_line.lstrip("# ").strip() if first_line.startswith("#") else ""
    if len(question) > MAX_QUESTION:
        faults.add(
            (),
            f"the first comment is the sweep's question and must have at most {MAX_QUESTION} characters, "
            f"got {len(question):,}; shorten it",
        )
    found = products_of(document, faults)
    if spec is not None and spec.pool is None and found:  # the axes of a pool are known only when its sweeps are read
        _check_roles(spec, [path for product in found for path in product.axes], faults)
    check_overrides(found, document, faults)
    points = build_points(found, document, faults)
    if bad_overrides or faults.lines or spec is None:
        raise SpecError([*bad_overrides, *faults.lines])
    return LoadedSweep(spec, [] if spec.pool else points, question, document.text)


def _check_locations(spec: SweepSpec, faults: Faults) -> None:
    """Add faults of the paths and URIs that the sweep writes to.

    SweepSpec does not check them, because stored records contain absolute paths that raycap derived.
    """
    sweeps = spec.pool.sweeps if spec.pool else ()
    of_pool = [(("pool", "sweeps", index), location) for index, location in enumerate(sweeps)]
    for path, location in (("storage",), spec.storage), (("tracking", "uri"), spec.tracking.uri), *of_pool:
        try:
            refuse_shell_syntax(location or "")
        except LocationError as error:
            faults.add(path, f"{'.'.join(map(str, path))}: {error}")


def _check_roles(spec: SweepSpec, paths: list[str], faults: Faults) -> None:
    """Add faults of paths in `analysis.nuisance` and `analysis.compare` that are not among the axes of the sweep."""
    for field in ("nuisance", "compare"):
        for index, path in enumerate(getattr(spec.analysis, field)):
            if path not in paths:
                axes = [axis for axis in dict.fromkeys(paths) if not axis.endswith("seed")]
                hint = did_you_mean(path, axes) or (f"; the axes are: {', '.join(axes)}" if axes else "; remove it")
                message = f"analysis.{field}: must be an axis of grid or points, got {format_value(path)}{hint}"
                faults.add(("analysis", field, index), message)


def _find(path_or_name: str) -> Path:
    candidates = (Path(path_or_name), SWEEPS_FOLDER / path_or_name)
    for candidate in candidates:
        if os.path.isfile(candidate):  # unlike Path.is_file, returns False for invalid names
            return candidate
    for candidate in candidates:
        if os.path.exists(candidate):
            raise SpecError(
                [f"{candidate}: a spec must be a file, not a folder, pipe or device; pass the path of a file"]
            )
    known = sorted(str(p) for p in SWEEPS_FOLDER.glob("specs/*.yaml"))
    hint = did_you_mean(str(SWEEPS_FOLDER / path_or_name), known)
    hint = hint or (f"; known are: {', '.join(known)}" if known else "; give the path of a YAML file")
    raise SpecError(
        [f"{truncated(path_or_name)}: no such spec file, neither as given nor under {SWEEPS_FOLDER}/{hint}"]
    )


def _contents(path: Path) -> YamlTree:
    """Read a file whose root is a mapping. Raises SpecError."""
    try:
        with path.open("rb") as file:
            read = read_yaml(file.read(MAX_BYTES + 1))
    except OSError as error:
        raise SpecError([f"{path}: cannot be read: {error.strerror}; make the file readable"]) from None
    except YamlError as error:
        raise SpecError([f"{path}:{error.line}:{error.column}: {error}"]) from None
    if not isinstance(read.value, dict):
        got = "nothing" if read.value is None else format_value(read.value)
        raise SpecError([f"{path}:1:1: a sweep file must be a mapping (name:, trial:, grid:, ...), got {got}"])
    return read
