"""Fields of a trial that follow from others: populations and lengths per parameter, and numbers that follow a size."""

import json
from collections.abc import Callable, Mapping
from functools import reduce
from operator import getitem
from typing import Any

from pydantic import ValidationError

from raycap.facts.solve_population import profiles_for_bits
from raycap.results import describe_invalid
from raycap.spec import (
    ModelByParams,
    ProfilesByBits,
    ProfilesByBitsPerParam,
    ProfilesByCount,
    ProfilesSpec,
    QuestionsSpec,
    Tokens,
    TokensPerParam,
    TransformersByConfig,
    TransformersByParams,
    TrialSpec,
)
from raycap.spec.facts import GeneratedProfiles, SolvedProfiles
from raycap.spec.scaling import Scaling, Size


def has_bits_per_param(trial: TrialSpec) -> bool:
    """Return whether a population of a trial follows the number of parameters."""
    return any(isinstance(profiles, ProfilesByBitsPerParam) for profiles in trial_populations(trial))


def trial_populations(trial: TrialSpec) -> tuple[ProfilesSpec, ...]:
    """Return the populations of a trial: `profiles` and that of `fill`."""
    return (trial.profiles, *([trial.fill.profiles] if trial.fill else []))


def with_populations(trial: TrialSpec, convert: Callable[[ProfilesByBitsPerParam], ProfilesSpec]) -> TrialSpec:
    """Return a trial whose populations by bits per parameter are converted."""

    def converted(profiles: ProfilesSpec) -> ProfilesSpec:
        return convert(profiles) if isinstance(profiles, ProfilesByBitsPerParam) else profiles

    changes: dict[str, Any] = {"profiles": converted(trial.profiles)}
    if trial.fill:
        changes["fill"] = trial.fill.model_copy(update={"profiles": converted(trial.fill.profiles)})
    return trial.model_copy(update=changes)


def smallest(profiles: ProfilesByBitsPerParam) -> ProfilesByCount:
    """Return two people with the same names as a population; their vocabulary is that of any number of people."""
    return ProfilesByCount(num_profiles=2, **_shared(profiles, GeneratedProfiles) | {"frequencies": None})


def profiles_for_params(profiles: ProfilesByBitsPerParam, num_params: int, questions: QuestionsSpec) -> ProfilesByCount:
    """Return the largest population whose code length for a model of `num_params` parameters is at most the target.

    Raises ValueError if there is none.
    """
    target = profiles.bits_per_param * num_params
    try:
        by_bits = ProfilesByBits(target_bits=target, **_shared(profiles, SolvedProfiles))
    except ValidationError:
        raise ValueError(
            f"profiles.bits_per_param: {profiles.bits_per_param:g} bits for each of {num_params:,} parameters are "
            f"{target:.3g} bits, more than 1e+09; decrease it, or the model"
        ) from None
    return profiles_for_bits(by_bits, questions, "bits_per_param")


def follow_sizes(trial: TrialSpec, scalings: Mapping[str, Scaling], sizes: Mapping[Size, int]) -> TrialSpec:
    """Return a trial with the numbers of its training that follow its sizes: power laws and tokens per parameter.

    Raises ValueError if a number is outside of the range of its field.
    """
    if scalings:
        tree = trial.model_dump(mode="json")
        for path, scaling in scalings.items():
            *sections, name = path.split(".")
            section = reduce(getitem, sections, tree)
            number = scaling.at_size(sizes[scaling.of])
            section[name] = max(1, round(number)) if isinstance(section[name], int) else number
        try:
            training = TrialSpec.model_validate_json(json.dumps({"training": tree["training"]})).training
        except ValidationError as error:
            raise ValueError(f"{describe_invalid(error)}, from value, of, at and power") from None
        trial = trial.model_copy(update={"training": training})
    if isinstance(length := trial.training.length, TokensPerParam):
        tokens = Tokens(tokens=max(1, round(length.tokens_per_param * sizes[Size.NUM_PARAMS])))
        trial = trial.model_copy(update={"training": trial.training.model_copy(update={"length": tokens})})
    return trial


def solved_fields(before: TrialSpec, after: TrialSpec, scalings: Mapping[str, Scaling]) -> dict[str, Any]:
    """Return the values that the plan computed for a trial by dotted path.

    Args:
        before: Trial as its spec states it.
        after: Resolved trial.
        scalings: Numbers of its training that follow a size.
    """
    paths = list(scalings)
    if isinstance(before.model, ModelByParams):
        paths.append("model.hidden_size")
    if isinstance(before.model, TransformersByParams) and isinstance(after.model, TransformersByConfig):
        paths += [f"model.config.{name}" for name in after.model.config.keys() - before.model.config.keys()]
    if isinstance(before.training.length, TokensPerParam):
        paths.append("training.length.tokens")
    for name, profiles in zip(("profiles", "fill.profiles"), trial_populations(before), strict=False):
        if isinstance(profiles, SolvedProfiles):
            paths.append(f"{name}.num_profiles")
    tree = after.model_dump(mode="json")
    return {path: reduce(getitem, path.split("."), tree) for path in sorted(paths)}


def _shared(profiles: ProfilesByBitsPerParam, base: type[GeneratedProfiles]) -> dict[str, Any]:
    return {name: getattr(profiles, name) for name in base.model_fields}
