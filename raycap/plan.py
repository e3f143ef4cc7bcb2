"""What will run: expand() turns a sweep into resolved trials with everything that is known before training.

No torch and no ray here: the plan is there in a second or two.
"""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

from raycap.facts.entropy import code_length_bits
from raycap.facts.hosted import profiles_of
from raycap.facts.order import num_steps
from raycap.facts.profiles import census_schema
from raycap.facts.questions import num_questions
from raycap.learner.sizes import parameter_counts, width_for_params
from raycap.learner.tokens import Composer, build_tokenizer, num_embeddings
from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import (
    BpeTokenizer,
    ModelByParams,
    ModelByWidth,
    ProfilesByBits,
    ProfilesByCount,
    ProfilesSpec,
    TokenizerSpec,
    TrialSpec,
)
from raycap.spec.file import LoadedSweep, SpecError

SATURATION_BITS_PER_PARAM = 2.0
"""What one-hop facts reach after enough exposures (A-Z): below this demand the data end before the capacity does."""
TRIVIAL_BITS_PER_PARAM = 0.2
"""Below a tenth of that demand a trial measures the data, not the model."""
ESTIMATE_PROFILES = 1_000
"""The plan estimates BPE token counts on a population of this size instead of training the tokenizer on all of it."""


def expand(sweep: LoadedSweep) -> list[PlannedTrial]:
    """Every trial of a sweep, resolved; points that resolve to the same trial appear once.

    Raises SpecError for targets that cannot be met and for profiles that cannot be read.
    """
    trials: dict[str, PlannedTrial] = {}
    problems = []
    num_workers = sweep.spec.execution.num_workers
    for point in sweep.points:
        try:
            planned = _plan(resolve(point.trial), point.coordinates, sweep)
        except (ValueError, OSError) as error:  # OSError: files and hubs out of reach
            problems.append(f"{point.place}: trial: {error}")
            continue
        if point.trial.training.batch_size < num_workers:
            rule = f"must be at least execution.num_workers = {num_workers}, got {point.trial.training.batch_size}"
            problems.append(f"{point.place}: trial.training.batch_size: {rule}")
        trials.setdefault(planned.trial_id, planned)
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return list(trials.values())


def resolve(trial: TrialSpec) -> TrialSpec:
    """The same trial with its targets solved: num_profiles from target_bits, hidden_size from num_params."""
    profiles, model = trial.profiles, trial.model
    if isinstance(profiles, ProfilesByBits):
        profiles = _profiles_for_bits(profiles)
    if isinstance(model, ModelByParams):
        model = width_for_params(model, _tokens_of(profiles, trial.tokenizer)[0])
    return trial.model_copy(update={"profiles": profiles, "model": model})


def _profiles_for_bits(profiles: ProfilesByBits) -> ProfilesByCount:
    """The largest population whose one-hop code length stays within the target; the length grows with N."""
    schema = census_schema(profiles.names, profiles.num_relations)

    def fits(num_profiles: int) -> bool:
        bits = code_length_bits(schema.facts(num_profiles), profiles.scheme, profiles.selection)
        return bits <= profiles.target_bits

    low, high = 0, 1
    while high <= schema.num_names and fits(high):
        low, high = high, 2 * high
    if high > schema.num_names:
        high = schema.num_names + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        raise ValueError(f"profiles.target_bits: {profiles.target_bits:g} is less than a single profile takes")
    if low == schema.num_names:
        raise ValueError(
            f"profiles.target_bits: {profiles.target_bits:g} needs more than the {low} names of profiles.names"
        )
    shared = profiles.model_dump(exclude={"target_bits", "scheme", "selection", "names"})
    return ProfilesByCount(names=profiles.names, num_profiles=low, **shared)


def _plan(spec: TrialSpec, coordinates: dict[str, Any], sweep: LoadedSweep) -> PlannedTrial:
    assert isinstance(spec.model, ModelByWidth)
    vocab_size, mean_tokens = _tokens_of(spec.profiles, spec.tokenizer)
    population, num_facts = _population_of(spec.profiles)
    if max(spec.questions.hops) > 1 and not population.relations:
        raise ValueError("two-hop questions need at least one relation, but these profiles have none")
    shares = {1: spec.questions.one_hop_share, 2: 1 - spec.questions.one_hop_share}
    steps = num_steps(spec.training, spec.questions, num_facts, mean_tokens)
    mean = sum(shares[hops] * mean_tokens[hops] for hops in spec.questions.hops)
    parameters = parameter_counts(spec.model, vocab_size)
    scheme, hops = sweep.spec.analysis.schemes[0], max(spec.questions.hops)
    dataset_bits = {
        str(selection): code_length_bits(population, scheme, selection, hops=hops)
        for selection in sweep.spec.analysis.selections
    }
    planned = PlannedTrial(
        trial_id=spec.trial_id,
        label=_label(spec, coordinates, population),
        coordinates=coordinates,
        spec=spec,
        population=population,
        parameters=parameters,
        dataset_bits=dataset_bits,
        tokens=round(steps * spec.training.batch_size * mean),
        steps=steps,
        tokens_exact=not isinstance(spec.tokenizer, BpeTokenizer),
        warnings=(),
    )
    demanded = planned.demanded_bits_per_param(sweep.spec.analysis.headline[1])
    return planned.model_copy(update={"warnings": tuple(_warnings(planned, demanded, num_facts))})


def _warnings(planned: PlannedTrial, demanded: float, num_facts: int) -> list[str]:
    uses = planned.steps * planned.spec.training.batch_size
    warnings = []
    if demanded < TRIVIAL_BITS_PER_PARAM:
        warnings.append(f"trivially small, {demanded:.2f} bits/param")
    elif demanded < SATURATION_BITS_PER_PARAM:
        warnings.append(f"cannot saturate, below {SATURATION_BITS_PER_PARAM:g} bits/param")
    if uses < num_facts:
        warnings.append(f"sees only {uses:,} questions about {num_facts:,} facts")
    return warnings


def _label(spec: TrialSpec, coordinates: dict[str, Any], population: PopulationFacts) -> str:
    assert isinstance(spec.model, ModelByWidth)
    label = f"d{spec.model.hidden_size}-L{spec.model.num_layers}-N{population.num_profiles}-s{spec.training.seed}"
    covered = {"model.hidden_size", "model.num_params", "model.num_layers", "profiles.num_profiles", "training.seed"}
    others = [f"{path.rpartition('.')[2]}={value}" for path, value in coordinates.items() if path not in covered]
    return "-".join([label, *others])


# --- populations and tokens, once per distinct one --------------------------------------------------------------------


def _cached_by_json(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Cache by the specs' JSON: they hold dicts no cache can hash."""
    results: dict[str, Any] = {}

    def cached(*specs: Any) -> Any:
        key = json.dumps([spec.model_dump(mode="json") for spec in specs])
        if key not in results:
            results[key] = compute(*specs)
        return results[key]

    return cached


@_cached_by_json
def _population_of(profiles: ProfilesSpec) -> tuple[PopulationFacts, int]:
    """Numbers of a population, and how many one-hop facts it holds; generated ones are not drawn for this."""
    if isinstance(profiles, ProfilesByCount):
        schema = _census_schema(profiles.names, profiles.num_relations)
        return schema.facts(profiles.num_profiles), profiles.num_profiles * len(schema.subjects)
    loaded = profiles_of(profiles)
    return loaded.facts, num_questions(loaded, 1)


_census_schema = cache(census_schema)


def _tokens_of(profiles: ProfilesSpec, tokenizer: TokenizerSpec) -> tuple[int, dict[int, float]]:
    """Rows of the embedding, and mean tokens of a question by number of hops."""
    if isinstance(profiles, ProfilesByCount) and isinstance(tokenizer, BpeTokenizer):
        profiles = profiles.model_copy(update={"num_profiles": min(profiles.num_profiles, ESTIMATE_PROFILES)})
    return _tokens_of_whole(profiles, tokenizer)


@_cached_by_json
def _tokens_of_whole(profiles: ProfilesSpec, tokenizer: TokenizerSpec) -> tuple[int, dict[int, float]]:
    population = profiles_of(profiles)
    built = build_tokenizer(tokenizer, population)
    composer = Composer.build(population, built)
    hops = (1, 2) if population.schema.relations else (1,)
    return num_embeddings(tokenizer, built), {k: composer.mean_tokens(k)[0] for k in hops}
