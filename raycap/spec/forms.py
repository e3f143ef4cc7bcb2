"""Forms of a section: the models that its value may have, and how one section is merged into another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, Discriminator, Tag


@dataclass(frozen=True)
class Forms:
    """The models of a section."""

    models: Mapping[str, type[BaseModel]]
    """By tag; a section with a single form has the tag ""."""
    tag_of: Callable[[Any], Any]
    """Function that returns the tag of a section's value, which need not be among the tags of `models`."""

    @classmethod
    def of(cls, model: type[BaseModel]) -> "Forms":
        """Return the forms of a section that only has the form `model`."""
        return cls({"": model}, lambda _: "")

    def chosen(self, section: dict[str, Any]) -> type[BaseModel] | None:
        """Return the form that the fields of a section choose, or None if there is no such form."""
        return self.models.get(self.tag_of(section) or "")


@cache
def forms_of(model: type[BaseModel], field: str) -> Forms | None:
    """Return the forms of a field of a model; None if its value is no section, or if there is no such field."""
    info = model.model_fields.get(field)
    if info is None:
        return None
    annotation, metadata = _without_none(info.annotation, tuple(info.metadata))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Forms.of(annotation)
    discriminator = next((item.discriminator for item in metadata if isinstance(item, Discriminator)), None)
    if not callable(discriminator):
        return None
    models = {}
    for member in get_args(annotation):
        form, *tags = get_args(member) or (member,)
        if isinstance(form, type) and issubclass(form, BaseModel):
            models.update({item.tag: form for item in tags if isinstance(item, Tag)})
    return Forms(models, discriminator)


def merged(base: Any, value: Any, forms: Forms | None) -> Any:
    """Return `base` with `value` merged into it field by field; neither is changed.

    Where `value` chooses another form of a section than `base` has (another kind, or `steps` instead of `exposures`), only
    the fields of `base` that this form has are kept. Values other than sections replace those of `base`.

    Args:
        base: Value of a field before.
        value: Value that is set.
        forms: Forms of the field; None if they are unknown.
    """
    if not (isinstance(base, dict) and isinstance(value, dict)):
        return value
    form = forms and forms.chosen(base)
    if form and not _fits(value, form) and (other := forms and forms.chosen(value)) and _fits(value, other):
        base, form = {key: inner for key, inner in base.items() if _fits({key: inner}, other)}, other
    result = dict(base)
    for key, inner in value.items():
        result[key] = merged(base.get(key), inner, forms_of(form, key) if form else None)
    return result


def contains(tree: Any, value: Any) -> bool:
    """Return whether a tree has every value of a partial tree."""
    if isinstance(tree, dict) and isinstance(value, dict):
        return all(key in tree and contains(tree[key], inner) for key, inner in value.items())
    return isinstance(tree, bool) == isinstance(value, bool) and bool(tree == value)


def has(tree: Any, keys: Sequence[str | int]) -> bool:
    """Return whether nested mappings and lists have a value at a path of keys and indices."""
    for key in keys:
        found = isinstance(tree, dict) and key in tree
        if not (found or (isinstance(tree, list) and isinstance(key, int) and key < len(tree))):
            return False
        tree = tree[key]
    return True


def nested(path: str, value: Any) -> dict[str, Any]:
    """Return a tree that has a value at a dotted path and nothing else."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


@cache
def tags_of(form: type[BaseModel]) -> dict[str, tuple[Any, ...]]:
    """Return the possible values of the fields that choose a form, such as kind, by name of the field."""
    return {
        name: get_args(info.annotation)
        for name, info in form.model_fields.items()
        if get_origin(info.annotation) is Literal and name in ("kind", "source")
    }


def _fits(section: dict[str, Any], form: type[BaseModel]) -> bool:
    """Return whether a form has all fields of a section, and the values of its tags."""
    tags = tags_of(form)
    return all(key in form.model_fields and value in tags.get(key, (value,)) for key, value in section.items())


def _without_none(annotation: Any, metadata: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """Return an annotation and its metadata without `| None`."""
    if get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        return _without_none(inner, (*more, *metadata))
    if get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation):
        members = [member for member in get_args(annotation) if member is not NoneType]
        if len(members) == 1:
            return _without_none(members[0], metadata)
    return annotation, metadata
