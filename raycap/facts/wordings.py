"""Wording of the texts about a subject: its noun phrase, the phrasings of its question, and the leads of sentences."""

from dataclasses import dataclass

from raycap.facts.templates import lead_texts

QUESTION, ANSWER = "Question:", " Answer:"
"""Beginning of the text before the name of a question, and end of the text after it."""
PROMPT_START, PROMPT_END = f"{QUESTION} What was", f"?{ANSWER}"
"""The texts around "A's best friend" in the default question."""


@dataclass(frozen=True)
class Wording:
    """Wording of the texts about one subject."""

    phrase: str
    """Noun after a possessive, as in "A's best friend"."""
    questions: tuple[tuple[str, str], ...] = ()
    """Texts before and after the name in each phrasing of the question. If there are none, the default question is
    asked, "What was A's best friend?"."""
    own_leads: tuple[str, ...] = ()
    """Leads of sentences in biographies, each beginning with a space. If there are none, those of `templates.py` are
    used."""

    @classmethod
    def of(cls, subject: str) -> "Wording":
        """Return the default wording of a subject."""
        return cls(subject.replace("_", " "))

    @property
    def possessive(self) -> str:
        """The phrase in possessive form, such as "'s best friend"."""
        return f"'s {self.phrase}"

    def leads(self, subject: str, *, is_relation: bool) -> tuple[str, ...]:
        """Return the leads of the subject that has this wording."""
        return self.own_leads or lead_texts(subject, self.phrase, is_relation=is_relation)
