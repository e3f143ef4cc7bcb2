"""What will run: expand() turns a sweep into resolved trials with everything that is known before training.

No torch and no ray here: the plan is there in a second or two.
"""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tokenizers import Tokenizer

from raycap.facts.corpora import corpora_of, populations_of, profiles_of
from raycap.facts.corpus import num_facts
from raycap.facts.hosted import fingerprint
from raycap.facts.profiles import Profiles
from raycap.facts.splits import num_held_out
from raycap.facts.targets import expected_bits, profiles_for_bits
from raycap.learner.material import Material
from raycap.learner.parent import parent_model, resolve_parent
from raycap.learner.sizes import parameter_counts, width_for_params
from raycap.learner.tokenizers import build_tokenizer, load_tokenizer
from raycap.results import PlannedTrial, PopulationFacts
from raycap.spec import (
    Accounting,
    BpeTokenizer,
    Exposures,
    HeldOut,
    Kind,
    LoadedProfiles,
    ModelByParams,
    ModelByWidth,
    Precision,
    ProfilesByBits,
    ProfilesByCount,
    ProfilesSpec,
    QuestionsSpec,
    RandomPairs,
    RandomStrings,
    RelationStructure,
    TrialSpec,
    Windows,
)
from raycap.spec.file import LoadedSweep, SpecError
from raycap.storage import Storage

SATURATION_BITS_PER_PARAM = 2.0
"""What one-hop facts reach after enough exposures (A-Z): below this demand the data end before the capacity does."""
TRIVIAL_BITS_PER_PARAM = 0.2
"""Below a tenth of that demand a trial measures the data, not the model."""
ESTIMATE_PROFILES = 1_000
"""The plan estimates BPE token counts on a population of this size instead of training the tokenizer on all of it."""


def expand(sweep: LoadedSweep) -> list[PlannedTrial]:
    """Every trial of a sweep, resolved; points that resolve to the same trial appear once.

    Raises SpecError for targets that cannot be met, data that cannot be read, and what the execution does not allow.
    """
    trials: dict[str, PlannedTrial] = {}
    problems = []
    execution = sweep.spec.execution
    for point in sweep.points:
        training = point.trial.training
        if training.batch_size < execution.num_workers:
            rule = f"must be at least execution.num_workers = {execution.num_workers}, got {training.batch_size}"
            problems.append(f"{point.place}: trial.training.batch_size: {rule}")
        if isinstance(training.packing, Windows) and training.packing.attend_across and execution.num_workers > 1:
            rule = "workers fill windows of their own, so texts would see others than with one; set num_workers: 1"
            problems.append(f"{point.place}: trial.training.packing.attend_across: {rule}")
        if sweep.spec.analysis.accounting is Accounting.OBSERVED and (
            unknown := _unknown_to_the_reference(point.trial)
        ):
            problems.append(f"{point.place}: trial.{unknown}; set analysis.accounting: exact")
        if training.precision is Precision.FP16 and not execution.gpus_per_worker:
            rule = "fp16 needs CUDA; set execution.gpus_per_worker, or take bf16"
            problems.append(f"{point.place}: trial.training.precision: {rule}")
        try:
            storage = Storage.at(sweep.spec.storage)
            planned = _plan(resolve(point.trial, storage), point.coordinates, sweep, storage)
        except (ValueError, OSError) as error:  # OSError: files and hubs out of reach
            problems.append(f"{point.place}: trial: {error}")
            continue
        trials.setdefault(planned.trial_id, planned)
    if problems:
        raise SpecError(list(dict.fromkeys(problems)))
    return list(trials.values())


def _unknown_to_the_reference(trial: TrialSpec) -> str | None:
    """What of a trial the reference's accounting has no formula for."""
    if any(kind not in (Kind.ONE_HOP, Kind.TWO_HOP) for kind in trial.questions.kinds):
        return "questions: observed accounting knows one- and two-hop questions only"
    if trial.questions.held_out.second_subjects:
        return "questions.held_out.second_subjects: observed accounting needs a loss of every subject"
    if trial.questions.chain_of_thought:
        return "questions.chain_of_thought: observed accounting knows latent answers only"
    if trial.fill:
        return "fill: observed accounting knows one population only"
    if isinstance(trial.profiles, RandomPairs | RandomStrings):
        return "profiles: observed accounting knows people only"
    if getattr(trial.profiles, "structure", RelationStructure.UNIFORM) is not RelationStructure.UNIFORM:
        return "profiles.structure: observed accounting knows uniform relations only"
    return None


def resolve(trial: TrialSpec, storage: Storage) -> TrialSpec:
    """The same trial with its targets solved: num_profiles from target_bits, hidden_size from num_params, the identity
    of what is loaded from its content, and under fill everything that the parent decides.
    """
    trial = resolve_parent(trial, storage)
    trial = trial.model_copy(update={"profiles": _resolve_profiles(trial.profiles, trial.questions)})
    if trial.fill:
        second = _resolve_profiles(trial.fill.profiles, trial.questions)
        trial = trial.model_copy(update={"fill": trial.fill.model_copy(update={"profiles": second})})
    if isinstance(trial.model, ModelByParams):
        vocab_size = _material_of(trial, storage).vocab_size
        trial = trial.model_copy(update={"model": width_for_params(trial.model, vocab_size)})
    return trial


def _resolve_profiles(profiles: ProfilesSpec, questions: QuestionsSpec) -> ProfilesSpec:
    if isinstance(profiles, ProfilesByBits):
        return profiles_for_bits(profiles, questions)
    if isinstance(profiles, LoadedProfiles):
        return profiles.model_copy(update={"fingerprint": fingerprint(_loaded(profiles))})
    return profiles


def _plan(spec: TrialSpec, coordinates: dict[str, Any], sweep: LoadedSweep, storage: Storage) -> PlannedTrial:
    assert isinstance(spec.model, ModelByWidth)
    material = _material_of(spec, storage)
    populations = _populations_of(spec)
    for profiles in populations:
        num_held_out(profiles.schema, profiles.num_profiles, spec.questions.held_out)
    _check_course(spec, material)
    scheme = sweep.spec.analysis.schemes[0]
    dataset_bits = {
        str(selection): sum(expected_bits(p.facts, spec.questions, scheme, selection) for p in populations)
        for selection in sweep.spec.analysis.selections
    }
    steps = material.num_steps
    planned = PlannedTrial(
        trial_id=spec.trial_id,
        label=_label(spec, coordinates, populations[0].facts),
        coordinates=coordinates,
        spec=spec,
        populations=tuple(profiles.facts for profiles in populations),
        parameters=parameter_counts(spec.model, material.vocab_size),
        dataset_bits=dataset_bits,
        tokens=round(steps * spec.training.batch_size * material.rates(material.shares()).tokens),
        steps=steps,
        tokens_exact=not _is_estimated(spec)
        and not spec.training.curriculum
        and spec.training.stop is None
        and all(counts.exact for counts in material.token_counts),
        warnings=(),
    )
    demanded = planned.demanded_bits_per_param(sweep.spec.analysis.headline[1])
    return planned.model_copy(update={"warnings": tuple(_warnings(planned, demanded, material))})


def _check_course(spec: TrialSpec, material: Material) -> None:
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


def _warnings(planned: PlannedTrial, demanded: float, material: Material) -> list[str]:
    training = planned.spec.training
    texts = planned.steps * training.batch_size
    warnings = []
    if demanded < TRIVIAL_BITS_PER_PARAM:
        warnings.append(f"trivially small, {demanded:.2f} bits/param")
    elif demanded < SATURATION_BITS_PER_PARAM:
        warnings.append(f"cannot saturate, below {SATURATION_BITS_PER_PARAM:g} bits/param")
    if (uses := texts * material.exposures(material.shares())) < 1:
        warnings.append(f"sees each fact only {uses:.2f} times")
    if training.optimizer.warmup_steps > planned.steps // 2:
        warnings.append(f"warm-up cut to half of all steps, {planned.steps // 2}")
    return warnings


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


# --- populations and tokens, once per distinct one --------------------------------------------------------------------


def _is_estimated(spec: TrialSpec) -> bool:
    """Whether the plan counts tokens on part of the population: only where a BPE would have to be trained for it."""
    large = isinstance(spec.profiles, ProfilesByCount) and spec.profiles.num_profiles > ESTIMATE_PROFILES
    return isinstance(spec.tokenizer, BpeTokenizer) and large and spec.fill is None


def _cached_by_json(compute: Callable[..., Any]) -> Callable[..., Any]:
    """Cache by the JSON of a spec of profiles, or of a trial's: specs hold dicts no cache can hash."""
    results: dict[str, Any] = {}

    def cached(spec: ProfilesSpec | TrialSpec) -> Any:
        key = spec.model_dump_json(include={"profiles", "fill"} if isinstance(spec, TrialSpec) else None)
        if key not in results:
            results[key] = compute(spec)
        return results[key]

    return cached


@_cached_by_json
def _loaded(profiles: ProfilesSpec) -> Profiles:
    return profiles_of(profiles)


@_cached_by_json
def _populations_of(spec: TrialSpec) -> tuple[Profiles, ...]:
    return populations_of(spec)


_materials: dict[str, Material] = {}
_tokenizers: dict[str, Tokenizer] = {}


def _material_of(spec: TrialSpec, storage: Storage) -> Material:
    """What a trial reads, which depends on neither model nor training; exposures are counted of the whole population."""
    reading = ("profiles", "questions", "tokenizer", "fill")
    key = json.dumps([spec.model_dump(mode="json", include={part}) for part in reading])
    if key not in _materials:
        _materials[key] = _new_material(spec, storage)
    return replace(_materials[key], spec=spec)


def _new_material(spec: TrialSpec, storage: Storage) -> Material:
    if spec.fill:
        with parent_model(spec.fill, storage) as folder:
            tokenizer = load_tokenizer(folder)
        return Material.of(spec, _populations_of(spec), tokenizer)
    if not _is_estimated(spec):
        return Material.of(spec, _populations_of(spec))
    few = spec.profiles.model_copy(update={"num_profiles": ESTIMATE_PROFILES})
    questions = spec.questions
    if questions.held_out.fractions:  # few people would not have the fractions that many do
        questions = questions.model_copy(update={"held_out": HeldOut()})
    spec_of_few = spec.model_copy(update={"profiles": few, "questions": questions})
    corpora = corpora_of(_loaded(few), questions)
    key = few.model_dump_json() + spec.tokenizer.model_dump_json()
    key += "" if corpora[0].kind is Kind.ONE_HOP else questions.model_dump_json()  # a BPE reads the first corpus alone
    if key not in _tokenizers:
        _tokenizers[key] = build_tokenizer(spec.tokenizer, corpora)
    estimate = Material.of(spec_of_few, (_loaded(few),), _tokenizers[key])
    whole = replace(estimate.composers[-1].corpus, profiles=_populations_of(spec)[0])  # type: ignore[type-var]
    return replace(estimate, num_facts=num_facts(whole))
