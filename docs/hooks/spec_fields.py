"""mkdocs hook: the marker `<!-- spec -->` becomes every field of the spec, from the Pydantic models of raycap.spec."""

import ast
import inspect
import textwrap
from enum import StrEnum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from table_cells import cell, inline

MAX_DEFAULT_CHARS = 24
"""Longest default value of a nested model that is written out in a table."""
CONSTRAINTS = {
    "minimum": "≥ {}",
    "exclusiveMinimum": "> {}",
    "maximum": "≤ {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "multiple of {}",
    "minItems": "at least {} items",
    "maxLength": "at most {} characters",
    "pattern": "matches `{}`",
}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace the marker of a page by a section per model of the spec."""
    return markdown.replace("<!-- spec -->", spec_markdown()) if "<!-- spec -->" in markdown else markdown


def spec_markdown() -> str:
    """Markdown for every field of a sweep file: models in depth-first order, starting at the root."""
    from raycap.spec import SweepSpec

    sections: list[str] = []
    documented: dict[Any, str] = {}
    enums: dict[type[StrEnum], str] = {}
    waiting: list[tuple[str, tuple[Any, ...]]] = [("", (SweepSpec,))]
    while waiting:
        path, models = waiting.pop(0)
        if models in documented:
            sections.append(
                f"## `{path}` {{ #{_anchor(path)} }}\n\nAs [`{documented[models]}`](#{_anchor(documented[models])})."
            )
            continue
        documented[models] = path
        section, children = _models_section(path, models, enums)
        sections.append(section)
        waiting = children + waiting  # depth first
    sections.append("## Values of enumerations { #enumerations }\n")
    sections += [_enum_section(enum) for enum in enums]
    return "\n\n".join(sections)


def _anchor(path: str) -> str:
    """Anchor of the section of a path, such as `trial-model` for `trial.model`."""
    return path.replace(".", "-").replace("[]", "-item") or "sweep"


def _model_anchor(path: str, model: Any) -> str:
    return f"{_anchor(path)}-{model.__name__.lower()}"


def _models_section(
    path: str, models: tuple[Any, ...], enums: dict[type[StrEnum], str]
) -> tuple[str, list[tuple[str, tuple[Any, ...]]]]:
    """Section of a path whose value is one of `models`, and the nested models by path."""
    title = f"`{path}`" if path else "The sweep file"
    parts = [f"## {title} {{ #{_anchor(path)} }}"]
    children: dict[str, tuple[Any, ...]] = {}
    if len(models) > 1:
        rows = [
            f"| [{_name(model)}](#{_model_anchor(path, model)}) | {_selector(model, models)} | {_summary(model)} |"
            for model in models
        ]
        parts.append("One of these forms:\n\n| form | chosen by | |\n|---|---|---|\n" + "\n".join(rows))
    for model in models:
        if len(models) > 1:
            parts.append(f"### {_name(model)}: {_selector(model, models)} {{ #{_model_anchor(path, model)} }}")
        parts.append(_documentation(model))
        rows, below = _field_rows(path, model, enums)
        parts.append("| field | type and constraints | default | description |\n|---|---|---|---|\n" + "\n".join(rows))
        for below_path, nested in below.items():  # a field may have more forms in one model than in another
            children[below_path] = tuple(dict.fromkeys((*children.get(below_path, ()), *nested)))
    return "\n\n".join(part for part in parts if part), list(children.items())


def _field_rows(path: str, model: Any, enums: dict[type[StrEnum], str]) -> tuple[list[str], dict[str, tuple[Any, ...]]]:
    """Table rows of the fields of a model, tags first, and the nested models by path. Adds enumerations to `enums`."""
    from raycap.spec import SweepSpec, TrialSpec

    schema = model.model_json_schema()
    rows, children = [], {}
    fields = sorted(model.model_fields.items(), key=lambda item: get_origin(item[1].annotation) is not Literal)
    for name, field in fields:
        annotation = TrialSpec if (model, name) == (SweepSpec, "trial") else field.annotation
        kind, models, found = _type(annotation)
        for enum in found:
            enums.setdefault(enum, path)
        item = {tuple: "[]", dict: ".NAME"}.get(get_origin(annotation), "") if models else ""
        field_path = f"{path}.{name}".lstrip(".") + item
        if models:
            children[field_path] = models
            kind = kind.format(f"[see below](#{_anchor(field_path)})")
        limits = _constraints(schema["properties"][name], schema)
        text = field.description or (_summary(models[0]) if len(models) == 1 else f"One of {len(models)} forms.")
        cells = [f"`{name}`", "; ".join(filter(None, (kind, limits))), _default(field), inline(text)]
        rows.append("| " + " | ".join(cells) + " |")
    return rows, children


def _type(annotation: Any) -> tuple[str, tuple[Any, ...], list[type[StrEnum]]]:
    """Description of a type with `{}` in place of models, the models in it, and the enumerations in it."""
    from raycap.spec import Spec

    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        parts = [_type(argument) for argument in arguments if argument is not NoneType]
        models = tuple(model for part in parts for model in part[1])
        words = list(dict.fromkeys(part[0] for part in parts)) + ["null"] * (NoneType in arguments)
        return " or ".join(words), models, [enum for part in parts for enum in part[2]]
    if origin is Literal:
        return " or ".join(f"`{argument}`" for argument in arguments), (), []
    if origin in (tuple, list):
        inner = [argument for argument in arguments if argument is not Ellipsis]
        words, models, enums = _type(inner[0])
        number = "list of" if origin is list or Ellipsis in arguments else f"list of {len(inner)}:"
        return f"{number} {words}{'s' * (words in ('number', 'integer', 'text'))}", models, enums
    if origin is dict:
        words, models, enums = _type(arguments[1])
        return ("mapping", (), []) if arguments[1] is Any else (f"mapping to {words}", models, enums)
    if annotation is Any:
        return "any value", (), []
    if isinstance(annotation, type) and issubclass(annotation, StrEnum):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})", (), [annotation]
    if isinstance(annotation, type) and issubclass(annotation, Spec):
        return "{}", (annotation,), []
    names = {int: "integer", float: "number", str: "text", bool: "true or false"}
    return names.get(annotation, str(annotation)), (), []


def _constraints(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """Bounds of a field from its JSON schema, including those of the elements of a list."""
    options = [schema, *schema.get("anyOf", ())]
    found = [
        text.format(_number(option[key])) for option in options for key, text in CONSTRAINTS.items() if key in option
    ]
    items = [item for option in options for item in (option.get("items"), *option.get("prefixItems", ())[:1])]
    found += [f"each {limit}" for item in items if isinstance(item, dict) and (limit := _constraints(item, root))]
    return cell(", ".join(dict.fromkeys(found)))


def _number(value: Any) -> str:
    """A bound for readers: thousands separated, and 2**63 as a power."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if value == 2**63:
            return "2⁶³"
        return f"{int(value):,}" if value == int(value) and value < 1e15 else f"{value:g}"
    return str(value)


def _default(field: Any) -> str:
    """Table cell for the default of a field, as YAML where it is short."""
    if field.is_required():
        return "**required**"
    if field.default_factory is not None:
        return "see description"
    value = field.default
    if hasattr(value, "model_dump"):
        tags = [
            f"{n}: {getattr(value, n)}"
            for n, f in type(value).model_fields.items()
            if get_origin(f.annotation) is Literal
        ]
        dumped = ", ".join(f"{name}: {each}" for name, each in value.model_dump(mode="json").items())
        if tags:
            return f"`{{{', '.join(tags)}}}`"
        return f"`{{{dumped}}}`" if len(dumped) <= MAX_DEFAULT_CHARS else "all defaults"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, tuple | list):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`" if value != {} else "`{}`"


def _selector(model: Any, models: tuple[Any, ...]) -> str:
    """How a YAML value selects this model among several: by a tag, by a field that only it requires, or by default."""
    tags = [
        (n, f) for n, f in model.model_fields.items() if get_origin(f.annotation) is Literal and n in ("kind", "source")
    ]
    others = {name for other in models if other is not model for name in other.model_fields}
    required = [name for name, field in model.model_fields.items() if field.is_required() and name not in others]
    required = [name for name in required if name not in dict(tags)]
    shared = any(_tag(other) == _tag(model) for other in models if other is not model)
    selectors = [f"`{name}: {get_args(field.annotation)[0]}`" for name, field in tags if not (shared and required)]
    if shared and required:
        selectors.append(f"`{required[0]}` given")
    if all(not field.is_required() for _, field in tags) and not (shared and required):
        selectors.append("the default")
    return ", ".join(selectors)


def _tag(model: Any) -> tuple[Any, ...]:
    """Values of the tags of a model, which several forms may share."""
    fields = (model.model_fields.get(name) for name in ("kind", "source"))
    return tuple(get_args(field.annotation) for field in fields if field)


def _name(model: Any) -> str:
    return str(model.__name__)


def _summary(model: Any) -> str:
    """First line of the docstring of a model, as a table cell."""
    return inline((inspect.getdoc(model) or "").partition("\n")[0])


def _documentation(model: Any) -> str:
    return inspect.cleandoc(model.__doc__ or "")


def _enum_section(enum: type[StrEnum]) -> str:
    """Table of the members of an enumeration with the docstring below each in the source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(enum))).body[0]
    assert isinstance(body, ast.ClassDef)
    meanings: dict[str, str] = {}
    for node, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            is_docstring = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            meanings[node.targets[0].id] = inspect.cleandoc(after.value.value) if is_docstring else ""  # type: ignore[union-attr]
    rows = [f"| `{member.value}` | {inline(meanings.get(member.name, ''))} |" for member in enum]
    heading = f"### {enum.__name__} {{ #{enum.__name__.lower()} }}\n\n{_documentation(enum)}\n\n"
    return heading + "| value | meaning |\n|---|---|\n" + "\n".join(rows)
