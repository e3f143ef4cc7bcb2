"""The analyses of stored models by name, with the options that a spec gives them."""

from collections.abc import Iterable
from typing import Any

from raycap.learner.inspections import Inspection, evaluate
from raycap.learner.localisation import localise
from raycap.learner.probing import probe
from raycap.learner.text_losses import write_text_losses
from raycap.spec import ModelAnalysis, SweepSpec


def analyses_of(spec: SweepSpec, names: Iterable[ModelAnalysis]) -> tuple[Inspection, ...]:
    """Return some analyses with the options of a spec. An analysis that has several sets of options occurs for each."""
    return tuple(each for name in names for each in _analysis(spec, name))


def _analysis(spec: SweepSpec, name: ModelAnalysis) -> tuple[Inspection, ...]:
    match name:
        case ModelAnalysis.EVALUATE:
            variants: list[dict[str, Any]] = [{}]
            variants += [{"quantise": str(weights)} for weights in spec.inspect.quantise]
            variants += [{"prune": share} for share in spec.inspect.prune]
            return tuple(Inspection(name, evaluate, options) for options in variants)
        case ModelAnalysis.LOSSES:
            return (Inspection(name, write_text_losses),)
        case ModelAnalysis.PROBE:
            return (Inspection(name, probe, spec.probes.model_dump(mode="json")),)
        case ModelAnalysis.LOCALISE:
            return (Inspection(name, localise, spec.localise.model_dump(mode="json")),)
