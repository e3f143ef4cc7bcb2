"""What will run: expand() turns a sweep into resolved trials with everything that is known before training.

No torch and no ray here: the plan is there in a second or two.
"""

import math
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

from tokenizers import Tokenizer

from raycap.facts.build import corpora_of, populations_of, profiles_of
from raycap.facts.corpus import num_facts
from raycap.facts.hosted import fingerprint
from raycap.facts.order import Rates
from raycap.facts.profiles import Profiles
from raycap.facts.solve_population import expected_bits, profiles_for_bits
from raycap.facts.splits import num_held_out
from raycap.plan.sizes import parameter_counts, width_for_params
from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import (
    AnalysisSpec,
    BpeTokenizer,
    Exposures,
    HeldOut,
    Kind,
    LoadedProfiles,
    ModelByParams,
    ModelByWidth,
    ProfilesByBits,
    ProfilesByCount,
    ProfilesSpec,
    QuestionsSpec,
    TrialSpec,
    Windows,
    WordTokenizer,
    not_allowed,
)
from raycap.spec.file import LoadedSweep, SpecError
from raycap.spec.trial import check_number
from raycap.storage import Storage
from raycap.storage.saved_model import parent_model, resolve_parent
from raycap.tokens.tokenizers import build_tokenizer, load_tokenizer
from raycap.tokens.training_data import TrainingData

SATURATION_BITS_PER_PARAM = 2.0
"""What one-hop facts reach after enough exposures (A-Z): below this demand the data end before the capacity does."""
TRIVIAL_BITS_PER_PARAM = 0.2
"""Below a tenth of that demand a trial measures the data, not the model."""
ESTIMATE_PROFILES = 1_000
"""The plan estimates BPE token counts on a population of this size instead of training the tokenizer on all of it."""

Found = TypeVar("Found")


def expand(sweep: LoadedSweep) -> list[PlannedTrial]:
    """Every trial of a sweep, resolved; points that resolve to the same trial appear once.

    Raises SpecError for targets that cannot be met, data that cannot be read, and what the execution does not allow.
    """
    try:
        shared = _Shared(Storage.at(sweep.spec.storage), sweep.spec.analysis)
    except ValueError as error:
        raise SpecError([f"storage: {error}"]) from error
    trials: dict[str, PlannedTrial] = {}
    problems = []
    for point in sweep.points:
        problems += [f"{point.place}: trial.{rule}" for rule in not_allowed(point.trial, sweep.spec)]
        try:
            planned = _plan(shared.resolve(point.trial), point.coordinates, shared)
        except (ValueError, OSError) as error:  # OSError: files and hubs out of reach
            problems.append(f"{point.place}: trial: {error}")
            continue
        trials.setdefault(planned.trial_id, planned)
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return list(trials.values())


def resolve(trial: TrialSpec, storage: Storage) -> TrialSpec:
    """The same trial with its targets solved: num_profiles from target_bits, hidden_size from num_params, the identity
    of what is loaded from its content, and under fill everything that the parent decides.
    """
    return _Shared(storage, AnalysisSpec()).resolve(trial)


def _plan(spec: TrialSpec, coordinates: dict[str, Any], shared: "_Shared") -> PlannedTrial:
    assert isinstance(spec.model, ModelByWidth)
    reading = shared.reading(spec)
    # The reading is shared with trials of other models and training; how long this one trains is its own.
    material = replace(reading.material, spec=spec)
    _check_course(spec, material)
    steps = material.num_steps
    parameters = parameter_counts(spec.model, material.vocab_size)
    demanded = reading.dataset_bits[shared.analysis.headline[1]] / parameters.total
    return PlannedTrial(
        trial_id=spec.trial_id,
        label=_label(spec, coordinates, reading.populations[0]),
        coordinates=coordinates,
        spec=spec,
        populations=reading.populations,
        parameters=parameters,
        dataset_bits=reading.dataset_bits,
        tokens=round(steps * spec.training.batch_size * reading.rates.tokens),
        steps=steps,
        tokens_exact=reading.tokens_exact and not spec.training.curriculum and spec.training.stop is None,
        warnings=tuple(_warnings(spec, steps, demanded, reading.rates)),
    )


def _check_course(spec: TrialSpec, material: TrainingData) -> None:
    """Raise ValueError where windows are too short for texts, or for a plateau to be seen."""
    training = spec.training
    if isinstance(training.packing, Windows):
        longest = max(counts.longest for counts in material.token_counts)
        # Seen on part of the population only, the longest text of all may be somewhat longer.
        needed = math.ceil(1.25 * longest) if _is_estimated(spec) else longest
        if needed > training.packing.length:
            raise ValueError(
                f"training.packing.length: a text has {longest} tokens, windows need {needed}, got {training.packing.length}"
            )
    if training.stop and isinstance(training.length, Exposures):
        window = training.stop.window_exposures
        if 2 * window > training.length.exposures:
            raise ValueError(
                f"training.stop.window_exposures: two windows of {window:g} do not fit into {training.length.exposures:g} "
                "exposures; no plateau could be seen"
            )


def _warnings(spec: TrialSpec, steps: int, demanded: float, rates: Rates) -> Iterator[str]:
    if demanded < TRIVIAL_BITS_PER_PARAM:
        yield f"trivially small, {demanded:.2f} bits/param"
    elif demanded < SATURATION_BITS_PER_PARAM:
        yield f"cannot saturate, below {SATURATION_BITS_PER_PARAM:g} bits/param"
    if (uses := steps * spec.training.batch_size * rates.exposures) < 1:
        yield f"sees each fact only {uses:.2f} times"
    if spec.training.optimizer.warmup_steps > steps // 2:
        yield f"warm-up cut to half of all steps, {steps // 2}"


def _label(spec: TrialSpec, coordinates: dict[str, Any], population: PopulationFacts) -> str:
    assert isinstance(spec.model, ModelByWidth)
    label = f"d{spec.model.hidden_size}-L{spec.model.num_layers}-N{population.num_profiles}-s{spec.training.seed}"
    covered = {"model.hidden_size", "model.num_params", "model.num_layers", "profiles.num_profiles", "training.seed"}
    others = [
        f"{path.rpartition('.')[2]}={_short(value)}" for path, value in coordinates.items() if path not in covered
    ]
    return "-".join([label, *others])


def _short(value: Any) -> str:
    """A grid value in few characters, sections by their values alone."""
    if isinstance(value, dict):
        return ",".join(map(_short, value.values()))
    if isinstance(value, list):
        return "+".join(map(_short, value)) or "none"
    return str(value)


# --- what trials share ------------------------------------------------------------------------------------------------


def _is_estimated(spec: TrialSpec) -> bool:
    """Whether the plan counts tokens on part of the population: only where a BPE would have to be trained for it."""
    large = isinstance(spec.profiles, ProfilesByCount) and spec.profiles.num_profiles > ESTIMATE_PROFILES
    return isinstance(spec.tokenizer, BpeTokenizer) and large and spec.fill is None


@dataclass(frozen=True)
class _Reading:
    """What is known of trials by what they read alone, whatever model reads it and how it is trained."""

    material: TrainingData
    populations: tuple[PopulationFacts, ...]
    dataset_bits: dict[str, float]
    rates: Rates
    """Of the questions' own mix."""
    tokens_exact: bool


READ = {"profiles", "questions", "tokenizer", "fill"}
"""The parts of a trial that make its reading."""
FROM_PARENT = {"profiles", "tokenizer", "model", "fill"}
"""The parts of a trial that its parent has a say in."""


class _Shared:
    """What the trials of one sweep have in common, found once for each content; so are the faults in it.

    Ten thousand points are a few populations and models in ten thousand combinations.
    """

    def __init__(self, storage: Storage, analysis: AnalysisSpec) -> None:
        self._storage, self.analysis = storage, analysis
        self._found: dict[Hashable, Any] = {}

    def _once(self, key: Hashable, find: Callable[[], Found]) -> Found:
        """What was found for this key before, or `find()` now: a value, or the fault that it raises."""
        if key not in self._found:
            try:
                self._found[key] = find()
            except (ValueError, OSError) as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, Exception):
            raise found.with_traceback(None)
        return cast(Found, found)

    def resolve(self, trial: TrialSpec) -> TrialSpec:
        """See `resolve` above."""
        if trial.fill:
            trial = self._with_parent(trial)
        changes: dict[str, Any] = {"profiles": self._resolve_profiles(trial.profiles, trial.questions)}
        if trial.fill:
            second = self._resolve_profiles(trial.fill.profiles, trial.questions)
            changes["fill"] = trial.fill.model_copy(update={"profiles": second})
        trial = trial.model_copy(update=changes)
        model = trial.model
        if isinstance(model, ModelByParams):
            vocab_size = self.reading(trial).material.vocab_size
            key = ("width", model.model_dump_json(), vocab_size)
            trial = trial.model_copy(update={"model": self._once(key, lambda: width_for_params(model, vocab_size))})
        return trial

    def _with_parent(self, trial: TrialSpec) -> TrialSpec:
        key = ("parent", trial.model_dump_json(include=FROM_PARENT), frozenset(trial.model_fields_set))
        known = self._once(key, lambda: resolve_parent(trial, self._storage))
        return trial.model_copy(update={name: getattr(known, name) for name in FROM_PARENT})

    def _resolve_profiles(self, profiles: ProfilesSpec, questions: QuestionsSpec) -> ProfilesSpec:
        if isinstance(profiles, ProfilesByBits):
            asked = ("solved", profiles.model_dump_json(), questions.model_dump_json())
            solved = self._once(asked, lambda: profiles_for_bits(profiles, questions))
            check_number(solved, questions)
            return solved
        if isinstance(profiles, LoadedProfiles):
            given = ("identified", profiles.model_dump_json())
            known = self._once(given, lambda: fingerprint(self._population(profiles)))
            return profiles.model_copy(update={"fingerprint": known})
        return profiles

    def _population(self, profiles: ProfilesSpec) -> Profiles:
        return self._once(("people", profiles.model_dump_json()), lambda: profiles_of(profiles))

    def reading(self, spec: TrialSpec) -> _Reading:
        """The reading of a trial with solved populations."""
        return self._once(("reading", spec.model_dump_json(include=READ)), lambda: self._read(spec))

    def _read(self, spec: TrialSpec) -> _Reading:
        people = populations_of(spec) if spec.fill else (self._population(spec.profiles),)
        material = self._material(spec, people)
        for profiles in people:
            num_held_out(profiles.schema, profiles.num_profiles, spec.questions.held_out)
        populations = tuple(profiles.facts for profiles in people)
        scheme = self.analysis.schemes[0]
        return _Reading(
            material=material,
            populations=populations,
            dataset_bits={
                str(selection): sum(expected_bits(facts, spec.questions, scheme, selection) for facts in populations)
                for selection in self.analysis.selections
            },
            rates=material.rates(material.shares()),
            tokens_exact=not _is_estimated(spec) and all(counts.exact for counts in material.token_counts),
        )

    def _material(self, spec: TrialSpec, people: tuple[Profiles, ...]) -> TrainingData:
        """What is read of some people; of many and a BPE an estimate, with exposures counted of all."""
        if spec.fill:
            with parent_model(spec.fill, self._storage) as folder:
                return TrainingData.of(spec, people, load_tokenizer(folder))
        if not _is_estimated(spec):
            return TrainingData.of(spec, people, self._tokenizer(spec, people[0]))
        few = spec.profiles.model_copy(update={"num_profiles": ESTIMATE_PROFILES})
        questions = spec.questions
        if questions.held_out.fractions:  # few people would not have the fractions that many do
            questions = questions.model_copy(update={"held_out": HeldOut()})
        spec_of_few = spec.model_copy(update={"profiles": few, "questions": questions})
        few_people = self._population(few)
        estimate = TrainingData.of(spec_of_few, (few_people,), self._tokenizer(spec_of_few, few_people))
        whole = replace(estimate.composers[-1].corpus, profiles=people[0])  # type: ignore[type-var]
        return replace(estimate, num_facts=num_facts(whole))

    def _tokenizer(self, spec: TrialSpec, people: Profiles) -> Tokenizer:
        profiles, questions = spec.profiles, spec.questions
        known_before_drawn = isinstance(spec.tokenizer, WordTokenizer) and isinstance(profiles, ProfilesByCount)
        drawn = {"num_profiles", "seed"} if known_before_drawn else set()
        corpora = corpora_of(people, questions)
        # A BPE reads the first corpus alone, and nobody's held-out questions are of one hop.
        one_hop = isinstance(spec.tokenizer, BpeTokenizer) and corpora[0].kind is Kind.ONE_HOP
        about = (profiles.model_dump_json(exclude=drawn), "" if one_hop else questions.model_dump_json())
        return self._once(
            ("tokenizer", *about, spec.tokenizer.model_dump_json()), lambda: build_tokenizer(spec.tokenizer, corpora)
        )
