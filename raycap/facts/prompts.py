"""The texts around the names of questions, and checks that the wordings of a population can be distinguished."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts.profiles import Schema
from raycap.facts.wordings import ANSWER, PROMPT_END, PROMPT_START, QUESTION
from raycap.spec.tables import NAME_PLACE


def check_wordings(schema: Schema) -> None:
    """Raise ValueError if two subjects share a phrase, a question or a lead, or a lead begins with another one.

    The answer, or the end of the lead, would then not be determined by the text before it.
    """
    owners: dict[tuple[str, ...], str] = {}
    leads = []
    for subject in schema.subjects:
        wording = schema.wording(subject)
        for text in {(wording.phrase,), *wording.questions}:
            if (other := owners.setdefault(text, subject)) != subject:
                shown = NAME_PLACE.join(text)
                raise ValueError(
                    f"profiles.subjects: {other!r} and {subject!r} share the wording {shown!r}; change the phrase or the "
                    "questions of one of them"
                )
        leads += [(f"{lead} ", subject) for lead in schema.leads(subject)]
    for (lead, subject), (other_lead, other) in pairwise(sorted(leads)):  # a text sorts right before those it begins
        if other_lead.startswith(lead):
            raise ValueError(
                f"profiles.subjects: the lead {lead.strip()!r} of {subject!r} begins the lead {other_lead.strip()!r} of "
                f"{other!r}; change the phrase or the leads of one of them"
            )


class Prompts(NamedTuple):
    """The texts around the names of all questions, by phrasing (F) and subject (S).

    The text after the name is the possessive of the subject, unless the phrasing contains the subject already, and then
    `after`.
    """

    texts: tuple[str, ...]
    """Fixed texts, which begin with those that were given to `prompts`."""
    before: NDArray[np.int64]
    """Index in `texts` of the text before the name, (F, S)."""
    after: NDArray[np.int64]
    """Index in `texts` of the text after the name or the possessive, (F, S)."""
    has_possessive: NDArray[np.bool_]
    """Whether the possessive of the subject follows the name, (F, S)."""


def prompts(schema: Schema, texts: tuple[str, ...]) -> Prompts:
    """Return the prompts of all questions about a population.

    There are as many phrasings as the subject with most of them has. Other subjects repeat theirs, so that every fact
    is asked equally often.

    Args:
        schema: Subjects with their wordings.
        texts: Fixed texts of the corpus. They contain PROMPT_START and PROMPT_END.
    """
    wordings = [schema.wording(subject) for subject in schema.subjects]
    shape = max([1, *(len(wording.questions) for wording in wordings)]), len(wordings)
    index_of = {text: index for index, text in enumerate(texts)}
    before, after = (np.full(shape, index_of[text]) for text in (PROMPT_START, PROMPT_END))
    has_possessive = np.ones(shape, bool)
    for subject, wording in enumerate(wordings):
        for phrasing in range(shape[0] if wording.questions else 0):
            start, end = wording.questions[phrasing % len(wording.questions)]
            before[phrasing, subject] = index_of.setdefault(f"{QUESTION} {start}".strip(), len(index_of))
            after[phrasing, subject] = index_of.setdefault(f"{end}{ANSWER}", len(index_of))
            has_possessive[phrasing, subject] = False
    return Prompts(tuple(index_of), before, after, has_possessive)
