"""Questions of k hops: "What was A's parent's employer?" is (person, relations, subject) packed into one id.

A k-hop id in mixed radix: ((person R + relation_1) R + ... + relation_{k-1}) S + subject, with R relations and S
subjects (attributes first, then relations).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raycap.facts import splits
from raycap.facts.corpus import END, Ids, Measure, Slot, Table, WithoutCaches, is_trained
from raycap.facts.profiles import IntArray, Profiles
from raycap.losses import Part
from raycap.spec import HeldOut, Kind

TEXTS = (END, "Question: What was", "? Answer:", ";")
END_TEXT, PROMPT_START, PROMPT_END, CHAIN_LINK = range(len(TEXTS))


NOTHING_HELD_OUT = HeldOut()


class Asked(NamedTuple):
    """Unpacked questions; arrays share their first axis."""

    person: IntArray
    relations: IntArray
    """(n, k - 1), indices into the schema's relations, in the order they are followed."""
    subject: IntArray


@dataclass(frozen=True)
class Questions(WithoutCaches):
    """All questions of one number of hops about a population: a Corpus."""

    profiles: Profiles
    hops: int
    chain_of_thought: bool = False
    """Whether the answer spells every step: "... Answer: Jane Doe Roe; Heron Security"."""
    held_out: HeldOut = NOTHING_HELD_OUT

    @property
    def kind(self) -> Kind:
        """One hop, two hops, three."""
        return Kind.of_hops(self.hops)

    @property
    def num_ids(self) -> int:
        """N R^(k-1) S."""
        schema = self.profiles.schema
        return self.profiles.num_profiles * len(schema.relations) ** (self.hops - 1) * len(schema.subjects)

    @property
    def _spells_chain(self) -> bool:
        return self.chain_of_thought and self.hops > 1

    @property
    def measures(self) -> tuple[Measure, ...]:
        """The answer by subject, then the chain by the same."""
        subjects = self.profiles.schema.subjects
        chains = tuple(Measure(subject, Part.CHAIN) for subject in subjects) if self._spells_chain else ()
        return tuple(map(Measure, subjects)) + chains

    @property
    def texts(self) -> tuple[str, ...]:
        """Without the link of chains where there are none."""
        return TEXTS if self._spells_chain else TEXTS[:CHAIN_LINK]

    @property
    def uses(self) -> int:
        """One fact per hop."""
        return self.hops

    @cached_property
    def split_codes(self) -> NDArray[np.uint8] | None:
        """See splits.py."""
        return splits.codes(self.profiles, self.held_out, self.hops)

    def num_trained(self) -> dict[str, int]:
        """How many questions are trained about each subject."""
        subjects = self.profiles.schema.subjects
        if self.split_codes is None:
            return dict.fromkeys(subjects, self.num_ids // len(subjects))
        trained = is_trained(self.kind, self.split_codes).reshape(-1, len(subjects))
        return dict(zip(subjects, trained.sum(axis=0).tolist(), strict=True))

    def unpack(self, ids: Ids) -> Asked:
        """Who and what some ids ask for."""
        rest, subject = np.divmod(ids, len(self.profiles.schema.subjects))
        followed = []
        for _ in range(self.hops - 1):
            rest, relation = np.divmod(rest, len(self.profiles.schema.relations))
            followed.append(relation)
        relations = np.stack(followed[::-1], axis=1) if followed else np.empty((len(ids), 0))
        return Asked(rest.astype(np.int32), relations.astype(np.int32), subject.astype(np.int32))

    def slots(self, ids: Ids) -> list[Slot]:
        """Prompt, chain if it is spelled, answer, end."""
        profiles, asked = self.profiles, self.unpack(ids)
        num_attributes, num_subjects = len(profiles.schema.attributes), len(profiles.schema.subjects)
        prompt = [Slot(Table.TEXT, PROMPT_START), Slot(Table.NAME, asked.person)]
        chain, person = [], asked.person
        for relation in asked.relations.T:
            prompt.append(Slot(Table.SUBJECT, num_attributes + relation))
            person = profiles.relations[person, relation]
            if self._spells_chain:
                label = 1 + num_subjects + asked.subject
                chain += [Slot(Table.NAME, person, label), Slot(Table.TEXT, CHAIN_LINK, label)]
        prompt += [Slot(Table.SUBJECT, asked.subject), Slot(Table.TEXT, PROMPT_END)]
        label = 1 + asked.subject
        answer = [Slot(Table.ANSWER, profiles.answers[person, asked.subject], label), Slot(Table.TEXT, END_TEXT, label)]
        return [*prompt, *chain, *answer]
