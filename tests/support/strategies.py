"""Hypothesis strategies for schemas and populations."""

from hypothesis import strategies as st

from raycap.facts.names import RELATIONS
from raycap.facts.profiles import Attribute, Profiles, Schema, birth_dates, generate

words = st.text(alphabet="abcdefgXYZéß", min_size=1, max_size=6)
odd_words = st.one_of(
    words, st.builds(lambda a, b: f"{a}'{b}", words, words), st.builds(lambda a, b: f"{a}-{b}", words, words)
)
values = st.one_of(
    odd_words,
    st.builds(lambda *parts: " ".join(parts), odd_words, odd_words),
    st.builds(lambda a, b: f"{a}, {b}", words, words),
    st.builds(lambda a: f"{a}'s", words),
)


def distinct(elements: st.SearchStrategy[str], size: int) -> st.SearchStrategy[tuple[str, ...]]:
    """Tuples of 1 to `size` different elements."""
    return st.lists(elements, min_size=1, max_size=size, unique=True).map(tuple)


@st.composite
def schemas(draw: st.DrawFn) -> Schema:
    """Schemas with awkward names and values: apostrophes, hyphens, spaces, commas, letters beyond ASCII."""
    pools = (draw(distinct(odd_words, 4)), draw(distinct(odd_words, 4)), draw(distinct(odd_words, 4)))
    attributes = [birth_dates()] if draw(st.booleans()) else []
    for name in ("birth_city", "employer"):
        attributes.append(Attribute.uniform(name, draw(distinct(values, 5))))
    return Schema(pools, tuple(attributes), RELATIONS[: draw(st.integers(0, 4))])


@st.composite
def populations(draw: st.DrawFn) -> Profiles:
    """Generated populations of up to six people."""
    schema = draw(schemas())
    num_profiles = draw(st.integers(1, min(6, schema.num_names)))
    return generate(schema, num_profiles, seed=draw(st.integers(0, 10)))
