"""Construction of populations and corpora from specs."""

from dataclasses import replace
from functools import lru_cache

import numpy as np

from raycap.facts.biographies import BiographyCorpus
from raycap.facts.corpus import END, NAME_SUBJECT, Corpus
from raycap.facts.frequencies import draw_frequencies
from raycap.facts.hosted import load_profiles
from raycap.facts.names_corpus import NamesCorpus
from raycap.facts.profiles import Profiles, census_schema, generate
from raycap.facts.prompts import check_wordings
from raycap.facts.questions import Questions
from raycap.facts.random_data import pairs, pairs_schema, strings, strings_schema
from raycap.results import PopulationFacts
from raycap.spec import (
    Biographies,
    FrequencyColumn,
    Kind,
    LoadedProfiles,
    NamesOnly,
    ProfilesByCount,
    ProfilesSpec,
    QuestionsSpec,
    RandomPairs,
    RandomStrings,
    TrialSpec,
    UserTexts,
)
from raycap.spec.trial import MAX_QUESTIONS


def profiles_of(spec: ProfilesSpec) -> Profiles:
    """Generate or load the population of a resolved spec.

    Raises ValueError if loaded data do not fit the schema or the spec, and FileNotFoundError if a path does not exist.
    """
    return _with_frequencies(_profiles_of(spec), spec)


def _with_frequencies(profiles: Profiles, spec: ProfilesSpec) -> Profiles:
    """Return a population with the frequencies that its spec draws. Those of a column are part of a loaded population."""
    if spec.frequencies is None or isinstance(spec.frequencies, FrequencyColumn):
        return profiles
    return replace(profiles, frequencies=draw_frequencies(spec.frequencies, profiles.num_profiles))


def _profiles_of(spec: ProfilesSpec) -> Profiles:
    if isinstance(spec, ProfilesByCount):
        schema = census_schema(spec.names, spec.num_relations, spec.structure, spec.self_relations)
        return generate(schema, spec.num_profiles, seed=spec.seed)
    if isinstance(spec, RandomPairs):
        return pairs(spec)
    if isinstance(spec, RandomStrings):
        return strings(spec)
    assert isinstance(spec, LoadedProfiles), "ProfilesByBits are resolved by plan.expand"
    return load_profiles(spec)


@lru_cache(maxsize=64)
def facts_of(spec: ProfilesSpec) -> PopulationFacts | None:
    """Return the sizes and entropies of a population that follow from its resolved spec, without drawing it.

    None for a loaded population, whose sizes follow from its data. `observed` is None, because it needs the draw.
    """
    if isinstance(spec, ProfilesByCount):
        schema = census_schema(spec.names, spec.num_relations, spec.structure, spec.self_relations)
        facts = schema.facts(spec.num_profiles)
    elif isinstance(spec, RandomPairs):
        facts = pairs_schema(spec).facts(spec.num_keys)
    elif isinstance(spec, RandomStrings):
        facts = strings_schema(spec).facts(spec.num_strings)
    else:
        return None
    if spec.frequencies is None:
        return facts
    return facts.model_copy(update={"frequencies": draw_frequencies(spec.frequencies, facts.num_profiles).classes})


def populations_of(spec: TrialSpec) -> tuple[Profiles, ...]:
    """Return the population of a trial, and with fill also the second population, which shares no name with the first.

    A generated second population draws from the names that the first does not use. Raises ValueError if the seeds of
    the two are equal or a loaded second population contains a name of the first.
    """
    first = profiles_of(spec.profiles)
    if spec.fill is None:
        return (first,)
    second = spec.fill.profiles
    if isinstance(second, ProfilesByCount):
        if getattr(spec.profiles, "seed", None) == second.seed:
            raise ValueError(
                f"fill.profiles.seed: must differ from the seed of the first population, got {second.seed}"
            )
        schema = census_schema(second.names, second.num_relations, second.structure, second.self_relations)
        drawn = generate(schema, second.num_profiles, seed=second.seed, exclude=first)
        return first, _with_frequencies(drawn, second)
    loaded = profiles_of(second)
    shared = {loaded.full_name(p) for p in range(loaded.num_profiles)} & {
        first.full_name(p) for p in range(first.num_profiles)
    }
    if shared:
        raise ValueError(
            f"fill.profiles: must not share names with the first population, got {len(shared)} such as {min(shared)!r}"
        )
    return first, loaded


def corpora_of(profiles: Profiles, spec: QuestionsSpec) -> tuple[Corpus, ...]:
    """Return the corpora about a population, one for each of the spec's kinds, in the same order.

    Raises ValueError if the population has no relations but the spec has questions of two or more hops, if texts about
    different subjects cannot be distinguished, or if a corpus of the user's own module does not have the properties of
    one.
    """
    if isinstance(spec, UserTexts):
        return (_user_corpus(profiles, spec),)
    if isinstance(spec, NamesOnly):
        return (NamesCorpus(profiles),)
    check_wordings(profiles.schema)
    if isinstance(spec, Biographies):
        return (BiographyCorpus(profiles, spec),)
    if max(spec.hops) > 1 and not profiles.schema.relations:
        raise ValueError("questions.hops: two-hop questions need at least one relation, but the profiles have none")
    corpora = tuple(Questions(profiles, hops, spec.chain_of_thought, spec.held_out) for hops in spec.hops)
    if (most := max(corpus.num_ids for corpus in corpora)) > MAX_QUESTIONS:
        raise ValueError(f"questions: {most:,} questions of one kind exceed {MAX_QUESTIONS:,}; decrease questions.hops")
    return corpora


def _user_corpus(profiles: Profiles, spec: UserTexts) -> Corpus:
    """Return the corpus of a module of the user. Raises ValueError if it differs from what is assumed about it."""
    corpus: Corpus = spec.load()(profiles, spec.per_person, **spec.options)
    num_ids = profiles.num_profiles * spec.per_person
    subjects = {*profiles.schema.subjects, NAME_SUBJECT}
    try:
        problems = {
            f"num_ids must be people x per_person = {num_ids}, got {corpus.num_ids}": corpus.num_ids != num_ids,
            f"kind must be {Kind.BIOGRAPHY}, got {corpus.kind}": corpus.kind is not Kind.BIOGRAPHY,
            f"texts must begin with {END!r}, got {corpus.texts[:1]}": corpus.texts[:1] != (END,),
            "measures must be every subject and the name": {each.subject for each in corpus.measures} != subjects,
            "split_codes must be None, as no text is held out": corpus.split_codes is not None,
            "people must be those whom the ids are about": corpus.people(np.arange(num_ids)).shape != (num_ids,),
        }
    except AttributeError as error:
        raise ValueError(f"questions.function: {spec.function} did not return a corpus: {error}") from error
    for problem, holds in problems.items():
        if holds:
            raise ValueError(f"questions.function: {spec.function}: {problem}")
    return corpus
