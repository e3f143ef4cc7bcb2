"""What questions will demand in bits, before anybody is drawn; and populations solved for a demand."""

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


def profiles_for_bits(profiles: ProfilesByBits, questions: QuestionsSpec) -> ProfilesByCount:
    """The largest population whose code length, as these questions ask for it, stays within the target.

    The length grows with N; what is held out counts with its expected share. Raises ValueError for a target that no
    population meets.
    """
    schema = census_schema(profiles.names, profiles.num_relations, profiles.structure, profiles.self_relations)
    unit = 2 if profiles.structure is RelationStructure.BIPARTITE else 1
    most = min(schema.num_names, MAX_PEOPLE) // unit

    def fits(num: int) -> bool:
        bits = expected_bits(schema.facts(num * unit), questions, profiles.scheme, profiles.selection)
        return bits <= profiles.target_bits

    low, high = 0, 1
    while high <= most and fits(high):
        low, high = high, 2 * high
    high = min(high, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise ValueError(f"profiles.target_bits: {profiles.target_bits:g} is less than a single profile takes")
    if low == most:
        raise ValueError(
            f"profiles.target_bits: {profiles.target_bits:g} needs more than the {most * unit:,} people that can be named"
        )
    shared = {name: getattr(profiles, name) for name in ProfilesByCount.model_fields if name != "num_profiles"}
    return ProfilesByCount(num_profiles=low * unit, **shared)


def expected_bits(
    facts: PopulationFacts, questions: QuestionsSpec, scheme: EncodingScheme, selection: SelectionScheme
) -> float:
    """Code length of what some questions ask about a population, with the expected share of what is held out."""
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
    """How many questions about each subject are expected to be trained; None where that is all there could be.

    Parents and children exist for half the people: of the chains that lead somewhere, the expected number.
    """
    if kind.hops < 2:
        return None
    share = expected_trained_share(questions.held_out, kind.hops)
    whole = facts.num_profiles * len(facts.relations) ** (kind.hops - 1) * share
    halves = [r for r in facts.relations if r in INVERSES] if facts.structure is RelationStructure.BIPARTITE else []
    leads = (1 - 0.5 * len(halves) / max(len(facts.relations), 1)) ** (kind.hops - 1)
    return {
        subject: whole * leads * (0.5 if subject in halves else 1.0)
        for subject in (*facts.attribute_entropies_bits, *facts.relations)
    }
