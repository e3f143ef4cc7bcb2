"""Expected code length of the questions about a population, and the population size for a target code length."""

from statistics import fmean

from raycap.facts.entropy import code_length_bits
from raycap.facts.profiles import census_schema
from raycap.facts.relations import INVERSES
from raycap.facts.splits import expected_trained_share, followed_share
from raycap.results import PopulationFacts
from raycap.spec import (
    EncodingScheme,
    Kind,
    ProfilesByBits,
    ProfilesByCount,
    QuestionsSpec,
    RelationStructure,
    SelectionScheme,
)
from raycap.spec.facts import MAX_PEOPLE
from raycap.spec.trial import check_number


def profiles_for_bits(
    profiles: ProfilesByBits, questions: QuestionsSpec, field: str = "target_bits"
) -> ProfilesByCount:
    """Return the largest population whose expected code length under these questions is at most the target.

    The size is found by doubling and bisection, since the code length grows with N. Raises ValueError if the target is
    less than the code length of the smallest population or more than that of the largest; `field` is its name in the error.
    """
    schema = census_schema(profiles.names, profiles.num_relations, profiles.structure, profiles.self_relations)
    unit = 2 if profiles.structure is RelationStructure.BIPARTITE else 1
    max_num = min(schema.num_names, MAX_PEOPLE) // unit

    def fits(num: int) -> bool:
        bits = expected_bits(schema.facts(num * unit), questions, profiles.scheme, profiles.selection)
        return bits <= profiles.target_bits

    low, high = 0, 1
    while high <= max_num and fits(high):
        low, high = high, 2 * high
    high = min(high, max_num + 1)  # fits(low) holds and fits(high) does not, or high is beyond the largest size
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise ValueError(
            f"profiles.{field}: must be at least the code length of {unit} profile(s), got {profiles.target_bits:g} bits"
        )
    if low == max_num:
        raise ValueError(
            f"profiles.{field}: must be less than the code length of {max_num * unit:,} profiles, the largest "
            f"possible population, got {profiles.target_bits:g} bits"
        )
    shared = {name: getattr(profiles, name) for name in ProfilesByCount.model_fields if name != "num_profiles"}
    found = ProfilesByCount(num_profiles=low * unit, **shared)
    check_number(found, questions)
    return found


def expected_bits(
    facts: PopulationFacts, questions: QuestionsSpec, scheme: EncodingScheme, selection: SelectionScheme
) -> float:
    """Return the code length of a population under some questions, with the expected numbers of held-out questions."""
    kind = questions.kinds[-1]
    return code_length_bits(
        facts,
        scheme,
        selection,
        kind,
        num_trained=expected_trained(facts, questions, kind),
        followed=followed_share(questions.held_out, len(facts.relations)),
        chained=questions.chain_of_thought,
    )


def expected_trained(facts: PopulationFacts, questions: QuestionsSpec, kind: Kind) -> dict[str, float] | None:
    """Return the expected number of training questions about each subject, or None for texts without held-out splits.

    In bipartite populations half of the people have no parent and half no child, and some people of a table may lack a
    fact. Questions whose chain of relations ends there do not exist, so the numbers are expectations over the population
    too.
    """
    if kind.hops < 2:
        return None
    share = expected_trained_share(questions.held_out, kind.hops)
    total = facts.num_profiles * len(facts.relations) ** (kind.hops - 1) * share
    halves = set(INVERSES) & set(facts.relations) if facts.structure is RelationStructure.BIPARTITE else set()
    exists = {
        subject: 0.5 if subject in halves else facts.num_facts(subject) / facts.num_profiles
        for subject in (*facts.attribute_entropies_bits, *facts.relations)
    }
    # The relations that are followed are chosen uniformly.
    chain_exists = fmean([exists[relation] for relation in facts.relations] or [1.0]) ** (kind.hops - 1)
    return {subject: total * chain_exists * share for subject, share in exists.items()}
