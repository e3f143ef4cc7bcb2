"""From a spec to populations and corpora: the one place that knows every arm."""

from raycap.facts.biographies import Biographies
from raycap.facts.corpus import Corpus
from raycap.facts.hosted import load
from raycap.facts.names_corpus import NamesCorpus
from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.questions import Questions
from raycap.facts.random_data import pairs, strings
from raycap.spec import (
    Biographies as BiographiesSpec,
)
from raycap.spec import (
    LoadedProfiles,
    NamesOnly,
    ProfilesByCount,
    ProfilesSpec,
    QuestionsSpec,
    RandomPairs,
    RandomStrings,
    TrialSpec,
)


def profiles_of(spec: ProfilesSpec) -> Profiles:
    """The population a resolved spec names: generated here, or loaded.

    Raises ValueError for data that does not fit the schema or the spec, FileNotFoundError for a missing path.
    """
    if isinstance(spec, ProfilesByCount):
        schema = census_schema(spec.names, spec.num_relations, spec.structure, spec.self_relations)
        return generate(schema, spec.num_profiles, seed=spec.seed)
    if isinstance(spec, RandomPairs):
        return pairs(spec)
    if isinstance(spec, RandomStrings):
        return strings(spec)
    assert isinstance(spec, LoadedProfiles), "profiles by bits are solved by plan.expand"
    return load(spec)


def populations_of(spec: TrialSpec) -> tuple[Profiles, ...]:
    """The population of a trial; under fill the first and the second, which share no name.

    A second population that is generated draws from the names the first has left. Raises ValueError where they cannot
    be told apart.
    """
    first = profiles_of(spec.profiles)
    if spec.fill is None:
        return (first,)
    second = spec.fill.profiles
    if isinstance(second, ProfilesByCount):
        if getattr(spec.profiles, "seed", None) == second.seed:
            raise ValueError(f"fill.profiles.seed: {second.seed} is the seed of the first population; take another")
        schema = census_schema(second.names, second.num_relations, second.structure, second.self_relations)
        return first, generate(schema, second.num_profiles, seed=second.seed, taken=first)
    loaded = profiles_of(second)
    shared = {loaded.full_name(p) for p in range(loaded.num_profiles)} & {
        first.full_name(p) for p in range(first.num_profiles)
    }
    if shared:
        raise ValueError(
            f"fill.profiles: {len(shared)} of its names are in the first population, {min(shared)!r} is one"
        )
    return first, loaded


def corpora_of(profiles: Profiles, spec: QuestionsSpec) -> tuple[Corpus, ...]:
    """What is read about a population, one corpus for each of the spec's kinds, in their order.

    Raises ValueError where the population cannot give such texts.
    """
    if isinstance(spec, NamesOnly):
        return (NamesCorpus(profiles),)
    if isinstance(spec, BiographiesSpec):
        return (Biographies(profiles, spec),)
    if max(spec.hops) > 1 and not profiles.schema.relations:
        raise ValueError("two-hop questions need at least one relation, but these profiles have none")
    return tuple(Questions(profiles, hops, spec.chain_of_thought, spec.held_out) for hops in spec.hops)
