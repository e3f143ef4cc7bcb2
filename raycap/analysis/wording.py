"""Texts of kinds of questions, splits, values of axes and outcomes, the same in sentences, tables and figures."""

from raycap.analysis.axes import Axis
from raycap.analysis.contrasts import Outcome
from raycap.spec import Kind, Split

KIND_TEXTS = {
    Kind.NAME: "names",
    Kind.BIOGRAPHY: "biographies",
    Kind.ONE_HOP: "one-hop questions",
    Kind.TWO_HOP: "two-hop questions",
    Kind.THREE_HOP: "three-hop questions",
}
SPLIT_TEXTS = {
    Split.TRAIN: "trained",
    Split.FIRST_PEOPLE: "held-out first people",
    Split.PEOPLE: "people held out of both roles",
    Split.RELATIONS: "held-out relations",
    Split.FIRST_PAIRS: "held-out pairs of first person and relation",
    Split.SECOND_PEOPLE: "held-out second people",
    Split.SECOND_SUBJECTS: "held-out second subjects",
    Split.SECOND_PAIRS: "held-out pairs of second person and subject",
    Split.TUPLES: "held-out combinations",
    Split.SEVERAL: "several held-out components",
}
SWITCHES = {
    "questions.chain_of_thought": ("without a chain of thought", "with a chain of thought"),
    "model.tie_embeddings": ("with untied embeddings", "with tied embeddings"),
    "model.parallel": ("with sequential blocks", "with parallel blocks"),
    "model.mlp.gated": ("without gates", "with gates"),
}
"""Texts of false and true."""


def value_text(axis: Axis, index: int) -> str:
    """Return a value of an axis as it stands in a sentence, such as "with hidden_size 12"."""
    value = axis.values[index]
    if axis.path in SWITCHES and isinstance(value, bool):
        return SWITCHES[axis.path][value]
    return f"with {axis.describe(index)}"


def outcome_text(outcome: Outcome) -> str:
    """Return an outcome as sentences and tables name it, such as "held-out combinations (two-hop questions)"."""
    if outcome.kind is None:
        return "bits per parameter"
    second = ", second population" if outcome.population else ""
    if outcome.kind.hops < 2:
        return KIND_TEXTS[outcome.kind] + second
    return f"{SPLIT_TEXTS[outcome.split]} ({KIND_TEXTS[outcome.kind]}{second})"
