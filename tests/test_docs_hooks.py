"""The generated pages of the manual contain every field and every command, and formulas become MathML."""

import re
from functools import cache

import pytest
import typer

from raycap import spec
from raycap.cli import app
from tests.support.docs_hooks import load_hook

SPECS = [
    model for name in spec.__all__ if isinstance(model := getattr(spec, name), type) and issubclass(model, spec.Spec)
]
DOCUMENTED = [model for model in SPECS if model not in (spec.Spec, spec.LoadedProfiles)]


@cache
def spec_page() -> str:
    page: str = load_hook("spec_fields").spec_markdown()
    return page


@pytest.mark.parametrize("model", DOCUMENTED, ids=lambda model: model.__name__)
def test_every_field_is_on_the_spec_page(model: type[spec.Spec]) -> None:
    tables = re.split(r"^#+ .*$", spec_page(), flags=re.MULTILINE)
    rows = [set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) for table in tables]
    assert set(model.model_fields) in rows


def test_every_link_on_the_spec_page_has_a_target() -> None:
    targets = re.findall(r"\{ #([\w-]+) \}", spec_page())
    assert len(targets) == len(set(targets))
    assert set(re.findall(r"\]\(#([\w-]+)\)", spec_page())) <= set(targets)


def test_every_value_of_an_enumeration_is_explained() -> None:
    for schedule in spec.Schedule:
        assert re.search(rf"^\| `{schedule}` \| .+ \|$", spec_page(), re.MULTILINE)


def test_every_command_and_option_is_on_the_page_of_commands() -> None:
    hook = load_hook("commands")
    page = hook.cli_markdown()
    root = typer.main.get_command(app)
    for words, command in hook.leaf_commands(["raycap"], root):
        section = page.partition(f"## `{' '.join(words)}` ")[2].partition("\n## ")[0]
        assert section, f"{words} is missing"
        for parameter in command.params:
            if parameter.param_type_name == "option" and not getattr(parameter, "hidden", False):
                assert parameter.opts[0] in section
    assert re.findall(r"^\| (\d+) \|", page, re.MULTILINE) == ["0", "1", "2", "3", "130"]


def test_formulas_become_mathml() -> None:
    html = r'<p><span class="arithmatex">\(a &lt; b\)</span></p><div class="arithmatex">\[\frac{1}{2}\]</div>'
    rendered = load_hook("formulas").on_page_content(html)
    assert rendered.count("<math") == 2
    assert "<mfrac>" in rendered
    assert "arithmatex" not in rendered
