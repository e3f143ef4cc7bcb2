"""The components of questions as columns of a table: people on the way, relations, and what training shows of each hop.

A question of k hops has k facts, one for each hop: (person, relation), ..., (last person, subject). A *bridge* is a person
that a relation leads to before the last hop.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raycap.facts.corpus import Ids, TrainedIds, WithoutCaches
from raycap.facts.questions import Questions

MAX_HOPS = 3
MAX_TEXTS_COUNTED = 2**18
"""Number of trained questions that are counted at once, which bounds memory."""


@dataclass(frozen=True)
class QuestionColumns(WithoutCaches):
    """Computes the columns of the questions of one corpus."""

    corpus: Questions

    def facts(self, ids: Ids) -> NDArray[np.int64]:
        """Return the facts of some questions, (n, hops), as ids of one-hop questions in the first phrasing."""
        profiles, parts = self.corpus.profiles, self.corpus.unpack(ids)
        num_attributes, num_subjects = len(profiles.schema.attributes), len(profiles.schema.subjects)
        person, facts = parts.person.astype(np.int64), []
        for relation in parts.relations.T:
            facts.append(person * num_subjects + num_attributes + relation)
            person = profiles.relations[person, relation].astype(np.int64)
        facts.append(person * num_subjects + parts.subject)
        return np.stack(facts, axis=1)

    @cached_property
    def _num_trained(self) -> list[NDArray[np.int64]]:
        """Number of trained questions with each fact at each hop, (facts,) per hop."""
        profiles, trained = self.corpus.profiles, TrainedIds(self.corpus)
        num_facts = profiles.num_profiles * len(profiles.schema.subjects)
        counts = [np.zeros(num_facts, np.int64) for _ in range(self.corpus.hops)]
        for begin in range(0, len(trained), MAX_TEXTS_COUNTED):
            ids = trained[np.arange(begin, min(begin + MAX_TEXTS_COUNTED, len(trained)))]
            for count, facts in zip(counts, self.facts(ids).T, strict=True):
                count += np.bincount(facts, minlength=num_facts)
        return counts

    @cached_property
    def _in_degree(self) -> NDArray[np.int64]:
        """Number of (person, relation) that lead to each person, (N,)."""
        profiles = self.corpus.profiles
        reached = profiles.relations[profiles.relations >= 0]
        return np.bincount(reached, minlength=profiles.num_profiles)

    def of(self, ids: Ids) -> dict[str, NDArray[np.integer]]:
        """Return the columns of some questions, each (n,); the docstring of learner/text_losses.py describes them."""
        profiles, facts = self.corpus.profiles, self.facts(ids)
        num_attributes, num_subjects = len(profiles.schema.attributes), len(profiles.schema.subjects)
        people, last = facts // num_subjects, self.corpus.hops - 1
        columns: dict[str, NDArray[np.integer]] = {"person": people[:, 0]}
        for hop in range(self.corpus.hops):
            columns[f"trained_{hop + 1}"] = self._num_trained[hop][facts[:, hop]]
            if hop < last:
                columns[f"relation_{hop + 1}"] = facts[:, hop] % num_subjects - num_attributes
                columns[f"bridge_{hop + 1}"] = people[:, hop + 1]
        if last:
            columns["in_degree"] = self._in_degree[people[:, last]]
        return columns
