"""Questions as integers: "What was A's parent's employer?" is (person, relations, subject) packed into one id.

A k-hop id in mixed radix: ((person R + relation_1) R + ... + relation_{k-1}) S + subject, with R relations and S
subjects (attributes first, then relations). Text appears in `render` alone.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raycap.facts.profiles import IntArray, Profiles

END = "<|end|>"
"""Text of the end token, which stands right after the answer."""
PROMPT_START = "Question: What was"
PROMPT_END = "? Answer:"


@dataclass(frozen=True)
class Questions:
    """Questions of one number of hops. Arrays share their first axis."""

    person: IntArray
    relations: IntArray  # (n, hops - 1), indices into the schema's relations, in the order they are followed
    subject: IntArray

    @property
    def hops(self) -> int:
        """k."""
        return self.relations.shape[1] + 1


def num_questions(profiles: Profiles, hops: int) -> int:
    """How many k-hop questions there are: N R^(k-1) S."""
    schema = profiles.schema
    return profiles.num_profiles * len(schema.relations) ** (hops - 1) * len(schema.subjects)


def unpack(profiles: Profiles, hops: int, ids: NDArray[np.integer]) -> Questions:
    """The questions of some ids, each below num_questions."""
    num_relations, num_subjects = len(profiles.schema.relations), len(profiles.schema.subjects)
    rest, subject = np.divmod(ids, num_subjects)
    followed = []
    for _ in range(hops - 1):
        rest, relation = np.divmod(rest, num_relations)
        followed.append(relation)
    relations = np.stack(followed[::-1], axis=1) if followed else np.empty((len(ids), 0))
    return Questions(rest.astype(np.int32), relations.astype(np.int32), subject.astype(np.int32))


def asked_person(profiles: Profiles, questions: Questions) -> IntArray:
    """The person at the end of the chain, whose subject is asked for, shape (n,)."""
    person = questions.person
    for relation in questions.relations.T:
        person = profiles.relations[person, relation]
    return person


def answers(profiles: Profiles, questions: Questions) -> IntArray:
    """Index of each answer: into the attribute's values, or of a person, by the subject asked for; shape (n,)."""
    facts = np.concatenate([profiles.attributes, profiles.relations], axis=1)
    return facts[asked_person(profiles, questions), questions.subject]


def subject_text(subject: str) -> str:
    """How a subject is called in a question."""
    return subject.replace("_", " ")


def possessive(subject: str) -> str:
    """A subject as it follows the one it belongs to, such as "'s best friend"."""
    return f"'s {subject_text(subject)}"


def render(profiles: Profiles, questions: Questions) -> list[tuple[str, str]]:
    """Prompt and answer of each question as text; the trained text is prompt + answer + END."""
    schema = profiles.schema
    rendered = []
    found = answers(profiles, questions)
    for row in range(len(found)):
        chain = "".join(possessive(schema.relations[r]) for r in questions.relations[row])
        subject = questions.subject[row]
        prompt = (
            f"{PROMPT_START} {profiles.full_name(questions.person[row])}{chain}{possessive(schema.subjects[subject])}"
        )
        if subject < len(schema.attributes):
            answer = schema.attributes[subject].values[found[row]]
        else:
            answer = profiles.full_name(found[row])
        rendered.append((prompt + PROMPT_END, f" {answer}"))
    return rendered
