"""Expansion of a sweep into resolved trials, with all sizes and bits that are known before training.

This module imports neither torch nor ray, so a plan takes one or two seconds.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeVar, cast

from tokenizers import Tokenizer

from raycap.facts.build import corpora_of, populations_of, profiles_of
from raycap.facts.corpus import num_facts
from raycap.facts.entropy import answer_bits
from raycap.facts.hosted import describe_source, fingerprint
from raycap.facts.order import Rates
from raycap.facts.profiles import Profiles
from raycap.facts.solve_population import expected_bits, profiles_for_bits
from raycap.facts.splits import num_held_out
from raycap.plan.labels import label, with_unique_labels
from raycap.plan.sizes import embedding_share, max_length, parameter_counts, resolve_model
from raycap.plan.solve import (
    follow_sizes,
    has_bits_per_param,
    profiles_for_params,
    smallest,
    solved_fields,
    with_populations,
)
from raycap.plan.trial_warnings import describe_unused, tokenizer_cost, trial_warnings
from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import (
    AnalysisSpec,
    BpeTokenizer,
    Exposures,
    HeldOut,
    Kind,
    LoadedProfiles,
    ModelByWidth,
    PretrainedModel,
    PretrainedTokenizer,
    ProfilesByBits,
    ProfilesByBitsPerParam,
    ProfilesByCount,
    ProfilesSpec,
    QuestionsSpec,
    ResolvedModel,
    SelectionScheme,
    TokensPerParam,
    TrialSpec,
    UserTexts,
    Windows,
    WordTokenizer,
    find_conflicts,
)
from raycap.spec.build_points import GridPoint
from raycap.spec.document import SpecError
from raycap.spec.file import LoadedSweep
from raycap.spec.scaling import Scaling, Size
from raycap.storage import Storage
from raycap.storage.saved_model import parent_model, resolve_parent
from raycap.tokens.pretrained import tokenizer_sha256
from raycap.tokens.text_check import check_texts
from raycap.tokens.tokenizers import build_tokenizer, load_tokenizer, num_embeddings
from raycap.tokens.training_data import TrainingData

ESTIMATE_PROFILES = 1_000
"""Population size on which the plan estimates BPE token counts, so that it trains no tokenizer on larger ones."""

Value = TypeVar("Value")


def expand(sweep: LoadedSweep) -> list[PlannedTrial]:
    """Return the resolved trials of a sweep; grid points that resolve to the same trial appear once.

    Raises SpecError for targets that cannot be met, data that cannot be read, and settings that the execution does not
    support, with all problems of all points.
    """
    try:
        shared = _Shared(Storage.at(sweep.spec.storage), sweep.spec.analysis)
    except ValueError as error:
        raise SpecError([f"storage: {error}"]) from error
    trials: dict[str, PlannedTrial] = {}
    problems = []
    for point in sweep.points:
        stated = point.trial
        try:
            stated = shared.resolve(point.trial, point.scalings)
            planned = _plan(stated, point, shared)
            trials.setdefault(planned.trial_id, planned)
        except (ValueError, OSError) as error:  # OSError: a file or hub that cannot be reached
            problems.append(f"{point.position}: trial: {error}")
        for rule in find_conflicts(stated, sweep.spec):
            section = "trial." if rule.partition(":")[0].partition(".")[0] in TrialSpec.model_fields else ""
            problems.append(f"{point.position}: {section}{rule}")
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return with_unique_labels(list(trials.values()))


def resolve(trial: TrialSpec, storage: Storage) -> TrialSpec:
    """Return a trial with its targets solved.

    Solves num_profiles from target_bits or bits_per_param, hidden_size from num_params and tokens from tokens_per_param,
    sets the fingerprint of loaded populations, and under `fill` the fields that the parent determines. Raises ValueError if
    a target cannot be met.
    """
    return _Shared(storage, AnalysisSpec()).resolve(trial)


def dataset_bits(
    populations: Sequence[PopulationFacts], questions: QuestionsSpec, analysis: AnalysisSpec
) -> dict[str, float]:
    """Return the code length of some populations by selection scheme, under the first encoding scheme of an analysis."""
    scheme = analysis.schemes[0]
    return {
        str(selection): sum(expected_bits(facts, questions, scheme, selection) for facts in populations)
        for selection in analysis.selections
    }


def _plan(spec: TrialSpec, point: GridPoint, shared: "_Shared") -> PlannedTrial:
    assert isinstance(spec.model, ResolvedModel)
    dataset = shared.dataset(spec)
    # The dataset is shared with trials that differ in model and training; the number of steps depends on this spec.
    data = replace(dataset.data, spec=spec)
    _check_training(spec, data)
    steps = data.num_steps
    parameters = parameter_counts(spec.model, data.vocab_size, spec.adapter)
    demanded = dataset.dataset_bits[shared.analysis.headline[1]] / parameters.total
    return PlannedTrial(
        trial_id=spec.trial_id,
        label=label(spec, point.coordinates, dataset.populations[0].num_profiles),
        coordinates=point.coordinates,
        solved=solved_fields(point.trial, spec, point.scalings),
        spec=spec,
        populations=dataset.populations,
        parameters=parameters,
        dataset_bits=dataset.dataset_bits,
        tokens=round(steps * spec.training.batch_size * dataset.rates.tokens),
        steps=steps,
        tokens_exact=dataset.tokens_exact and not spec.training.curriculum and spec.training.stop is None,
        warnings=(
            *dataset.warnings,
            *trial_warnings(spec, steps, demanded, dataset.rates, embedding_share(parameters)),
        ),
    )


def _check_training(spec: TrialSpec, data: TrainingData) -> None:
    """Raise ValueError if windows are too short for a text, rows too long for the model, or training too short for a
    plateau."""
    training = spec.training
    assert isinstance(spec.model, ResolvedModel)
    lengths = [counts.longest for counts in data.token_counts]
    longest_row = max([*lengths, training.packing.length] if isinstance(training.packing, Windows) else lengths)
    limit = max_length(spec.model, data.vocab_size)
    if limit is not None and longest_row > limit:
        raise ValueError(
            f"model.config.max_position_embeddings: must be at least {longest_row}, the number of tokens of the longest "
            f"row, got {limit}; increase it"
        )
    if isinstance(training.packing, Windows):
        longest = max(counts.longest for counts in data.token_counts)
        # An estimate from part of the population may miss the longest text, so it gets a margin.
        needed = math.ceil(1.25 * longest) if _is_estimated(spec) else longest
        if needed > training.packing.length:
            raise ValueError(
                f"training.packing.length: must be at least {needed}, as a text has {longest} tokens, "
                f"got {training.packing.length}"
            )
    if training.stop and isinstance(training.length, Exposures):
        window = training.stop.window_exposures
        if 2 * window > training.length.exposures:
            raise ValueError(
                f"training.stop.window_exposures: two windows of {window:g} do not fit into {training.length.exposures:g} "
                "exposures, so no plateau can be detected; make it shorter"
            )


def _check_loaded(spec: TrialSpec, data: TrainingData) -> None:
    """Raise ValueError if a tokenizer alters texts (see `check_texts`), or if all answers about loaded people are equal.

    Texts about generated people are checked for pretrained tokenizers and the user's own texts only: the other ones are kept
    by construction.
    """
    specs = (spec.profiles, *([spec.fill.profiles] if spec.fill else []))
    for composer, population in zip(data.composers, data.population_of, strict=True):
        loaded, profiles = specs[population], composer.corpus.profiles
        if not isinstance(loaded, LoadedProfiles):
            if isinstance(spec.tokenizer, PretrainedTokenizer) or isinstance(spec.questions, UserTexts):
                check_texts(composer, data.tokenizer)
            continue
        try:
            check_texts(composer, data.tokenizer)
        except ValueError as error:
            raise ValueError(f"{describe_source(loaded)}: {error}") from None
        if composer.corpus.kind is not Kind.NAME and not any(answer_bits(profiles.facts, SelectionScheme.SET).values()):
            raise ValueError(
                f"{describe_source(loaded)}: every column has only one value, so there is nothing to learn; use data "
                "whose values differ"
            )


# --- data that trials share -------------------------------------------------------------------------------------------


def _is_estimated(spec: TrialSpec) -> bool:
    """Whether token counts are estimated on part of the population, because a BPE tokenizer has yet to be trained."""
    large = isinstance(spec.profiles, ProfilesByCount) and spec.profiles.num_profiles > ESTIMATE_PROFILES
    return isinstance(spec.tokenizer, BpeTokenizer) and large and spec.fill is None


@dataclass(frozen=True)
class _Dataset:
    """Properties of a trial that depend only on its data, and not on its model and training."""

    data: TrainingData
    populations: tuple[PopulationFacts, ...]
    dataset_bits: dict[str, float]
    """By selection scheme."""
    rates: Rates
    """Rates of the mix that the question spec defines, without curriculum."""
    tokens_exact: bool
    warnings: tuple[str, ...]


DATASET_FIELDS = {"profiles", "questions", "tokenizer", "fill"}
"""Fields of a trial that determine its dataset."""
PARENT_FIELDS = {"profiles", "tokenizer", "model", "fill"}
"""Fields of a trial that its parent may determine."""


class _Shared:
    """Cache of populations, tokenizers, datasets and models that trials of one sweep share, by content.

    Ten thousand grid points are usually combinations of a few populations and models. Errors are cached, too.
    """

    def __init__(self, storage: Storage, analysis: AnalysisSpec) -> None:
        self._storage, self.analysis = storage, analysis
        self._cache: dict[Hashable, Any] = {}

    def _cached(self, key: Hashable, compute: Callable[[], Value]) -> Value:
        """Return the cached value of a key, or compute it. An error of `compute` is cached and raised every time."""
        if key not in self._cache:
            try:
                self._cache[key] = compute()
            except (ValueError, OSError) as error:
                self._cache[key] = error
        value = self._cache[key]
        if isinstance(value, Exception):
            raise value.with_traceback(None)  # the traceback would grow with every raise
        return cast(Value, value)

    def resolve(self, trial: TrialSpec, scalings: Mapping[str, Scaling] = MappingProxyType({})) -> TrialSpec:
        """See the function `resolve`. `scalings`: numbers of the training that follow a size, by dotted path."""
        if trial.fill:
            trial = self._with_parent(trial)
        if has_bits_per_param(trial):
            trial = self._with_people_per_param(trial)
        trial = self._with_sizes(trial)
        if scalings or isinstance(trial.training.length, TokensPerParam):
            assert isinstance(trial.model, ResolvedModel)
            sizes = {
                Size.HIDDEN_SIZE: trial.model.hidden_size,
                Size.NUM_PARAMS: self._num_params(trial),
                Size.NUM_PROFILES: self.dataset(trial).populations[0].num_profiles,
            }
            trial = follow_sizes(trial, scalings, sizes)
        return trial

    def _with_people_per_param(self, trial: TrialSpec) -> TrialSpec:
        """Return a trial whose populations by bits per parameter are solved, for the parameters that the model really has.

        These do not depend on the number of people, because the vocabulary does not.
        """
        total, questions = self._num_params(self._with_sizes(with_populations(trial, smallest))), trial.questions

        def solved(profiles: ProfilesByBitsPerParam) -> ProfilesByCount:
            key = ("solved", profiles.model_dump_json(), questions.model_dump_json(), total)
            return self._cached(key, lambda: profiles_for_params(profiles, total, questions))

        return with_populations(trial, solved)

    def _with_sizes(self, trial: TrialSpec) -> TrialSpec:
        """Return a trial with numbers of people for target_bits, a width for num_params, and fingerprints."""
        changes: dict[str, Any] = {"profiles": self._resolve_profiles(trial.profiles, trial.questions)}
        if trial.fill:
            second = self._resolve_profiles(trial.fill.profiles, trial.questions)
            changes["fill"] = trial.fill.model_copy(update={"profiles": second})
        tokenizer = trial.tokenizer
        if isinstance(tokenizer, PretrainedTokenizer) and tokenizer.sha256 is None:
            digest = self._cached(("tokenizer", tokenizer.model_dump_json()), lambda: tokenizer_sha256(tokenizer))
            changes["tokenizer"] = tokenizer.model_copy(update={"sha256": digest})
        trial = trial.model_copy(update=changes)
        model = trial.model
        if isinstance(model, ModelByWidth):
            return trial
        vocab_size = self._vocab_size(trial)
        from_saved = isinstance(model, PretrainedModel)
        tokens = self._tokenizer(trial, self._population(trial.profiles)) if from_saved else None
        key = ("model", model.model_dump_json(), vocab_size, id(tokens))  # tokenizers stay in the cache
        resolved = self._cached(key, lambda: resolve_model(model, vocab_size, tokens))
        return trial.model_copy(update={"model": resolved})

    def _num_params(self, trial: TrialSpec) -> int:
        """Return the number of parameters of a trial whose width is solved."""
        assert isinstance(trial.model, ResolvedModel)
        return parameter_counts(trial.model, self._vocab_size(trial), trial.adapter).total

    def _vocab_size(self, trial: TrialSpec) -> int:
        """Return the number of rows of the embedding, which does not depend on the number of people."""
        if isinstance(trial.tokenizer, BpeTokenizer):
            return trial.tokenizer.vocab_size
        if trial.fill:
            return self.dataset(trial).data.vocab_size
        return num_embeddings(trial.tokenizer, self._tokenizer(trial, self._population(trial.profiles)))

    def _with_parent(self, trial: TrialSpec) -> TrialSpec:
        # The fields set in the spec are part of the key: only these can contradict the parent.
        key = ("parent", trial.model_dump_json(include=PARENT_FIELDS), frozenset(trial.model_fields_set))
        resolved = self._cached(key, lambda: resolve_parent(trial, self._storage))
        return trial.model_copy(update={name: getattr(resolved, name) for name in PARENT_FIELDS})

    def _resolve_profiles(self, profiles: ProfilesSpec, questions: QuestionsSpec) -> ProfilesSpec:
        if isinstance(profiles, ProfilesByBits):
            solved_key = ("solved", profiles.model_dump_json(), questions.model_dump_json())
            return self._cached(solved_key, lambda: profiles_for_bits(profiles, questions))
        if isinstance(profiles, LoadedProfiles):
            fingerprint_key = ("fingerprint", profiles.model_dump_json())
            digest = self._cached(fingerprint_key, lambda: fingerprint(self._population(profiles)))
            return profiles.model_copy(update={"fingerprint": digest})
        return profiles

    def _population(self, profiles: ProfilesSpec) -> Profiles:
        return self._cached(("population", profiles.model_dump_json()), lambda: profiles_of(profiles))

    def dataset(self, spec: TrialSpec) -> _Dataset:
        """Return the dataset of a trial whose populations are solved."""
        return self._cached(
            ("dataset", spec.model_dump_json(include=DATASET_FIELDS)), lambda: self._build_dataset(spec)
        )

    def _build_dataset(self, spec: TrialSpec) -> _Dataset:
        people = populations_of(spec) if spec.fill else (self._population(spec.profiles),)
        data = self._training_data(spec, people)
        _check_loaded(spec, data)
        for profiles in people:
            num_held_out(profiles.schema, profiles.num_profiles, spec.questions.held_out)
        populations = tuple(profiles.facts for profiles in people)
        return _Dataset(
            data=data,
            populations=populations,
            dataset_bits=dataset_bits(populations, spec.questions, self.analysis),
            rates=data.rates(data.shares()),
            tokens_exact=not _is_estimated(spec) and all(counts.exact for counts in data.token_counts),
            warnings=(
                *(describe_unused(profiles) for profiles in people if profiles.untrained_columns),
                *tokenizer_cost(spec, data),
            ),
        )

    def _training_data(self, spec: TrialSpec, people: tuple[Profiles, ...]) -> TrainingData:
        """Return the training data of some populations.

        If `_is_estimated`, token counts are those of a small population, but facts are counted over the whole one.
        """
        if spec.fill:
            with parent_model(spec.fill, self._storage) as folder:
                return TrainingData.of(spec, people, load_tokenizer(folder))
        if not _is_estimated(spec):
            return TrainingData.of(spec, people, self._tokenizer(spec, people[0]))
        small = spec.profiles.model_copy(update={"num_profiles": ESTIMATE_PROFILES, "frequencies": None})
        questions = spec.questions
        if questions.held_out.fractions:  # in a small population, the fractions may round to nothing
            questions = questions.model_copy(update={"held_out": HeldOut()})
        small_spec = spec.model_copy(update={"profiles": small, "questions": questions})
        small_population = self._population(small)
        estimate = TrainingData.of(small_spec, (small_population,), self._tokenizer(small_spec, small_population))
        full_corpus = replace(estimate.composers[-1].corpus, profiles=people[0])  # type: ignore[type-var]
        return replace(estimate, num_facts=num_facts(full_corpus))

    def _tokenizer(self, spec: TrialSpec, people: Profiles) -> Tokenizer:
        profiles, questions = spec.profiles, spec.questions
        # The words of a generated population are those of its schema, independent of the people that are drawn.
        from_schema = isinstance(spec.tokenizer, WordTokenizer) and isinstance(profiles, ProfilesByCount)
        irrelevant = {"frequencies", *(("num_profiles", "seed") if from_schema else ())}
        corpora = corpora_of(people, questions)
        # A BPE tokenizer is trained on the first corpus only, and one-hop questions are never held out.
        one_hop = isinstance(spec.tokenizer, BpeTokenizer) and corpora[0].kind is Kind.ONE_HOP
        corpus_key = (profiles.model_dump_json(exclude=irrelevant), "" if one_hop else questions.model_dump_json())
        key = ("tokenizer", *corpus_key, spec.tokenizer.model_dump_json())
        return self._cached(key, lambda: build_tokenizer(spec.tokenizer, corpora))
