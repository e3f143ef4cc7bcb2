"""Analyses that a sweep runs after its trials are checked with the spec, and leave trials as they are."""

from typing import Any

import pytest

from raycap.api import Sweep
from raycap.learner.analyses import analyses_of
from raycap.spec import InspectSpec, ModelAnalysis
from raycap.spec.document import SpecError
from raycap.spec.inspections import unsupported_by_transformers
from raycap.terminal.stored_models import describe_analyses

TRIAL = {
    "profiles": {"num_profiles": 20, "num_relations": 1, "names": {"first": 5, "middle": 5, "last": 5}},
    "model": {"num_layers": 1, "hidden_size": 8, "tie_embeddings": True, "heads": {"num_heads": 1}},
    "training": {"length": {"steps": 5}, "batch_size": 32, "num_evaluations": 1},
}


def sweep_with(**sections: Any) -> Sweep:
    return Sweep.from_dict({"name": "inspected", "trial": TRIAL} | sections)


def test_analyses_have_the_options_of_the_spec_and_do_not_change_trials() -> None:
    inspect = {
        "analyses": ["evaluate", "losses", "probe", "localise"],
        "models": "all",
        "quantise": ["int4", "int2"],
        "prune": [0.5],
    }
    sweep = sweep_with(
        inspect=inspect, execution={"keep_models": "evaluations"}, localise={"seed": 7}, probes={"num_texts": 200}
    )
    analyses = analyses_of(sweep.spec, sweep.spec.inspect.analyses)
    assert [str(each.name) for each in analyses] == ["evaluate"] * 4 + ["losses", "probe", "localise"]
    assert [each.options for each in analyses[:4]] == [{}, {"quantise": "int4"}, {"quantise": "int2"}, {"prune": 0.5}]
    assert analyses[5].options["num_texts"] == 200
    assert analyses[6].options["seed"] == 7
    plain = sweep_with()
    assert [trial.trial_id for trial in sweep.trials] == [trial.trial_id for trial in plain.trials]
    (line,) = describe_analyses(sweep._planned[0])
    assert all(name in line for name in ModelAnalysis)
    assert describe_analyses(plain._planned[0]) == []


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"inspect": {"analyses": ["probe"], "models": "all"}}, "inspect.models"),
        ({"inspect": {"analyses": ["probe"], "quantise": ["int4"]}}, "quantise"),
        ({"inspect": {"analyses": ["probe", "probe"]}}, "inspect.analyses"),
        ({"inspect": {"analyses": ["evaluate"], "prune": [1.0]}}, "inspect.prune"),
    ],
)
def test_analyses_that_cannot_run_are_refused(sections: dict[str, Any], field: str) -> None:
    with pytest.raises(SpecError) as caught:
        sweep_with(**sections)
    assert field in str(caught.value)


def test_models_of_transformers_are_evaluated_but_neither_probed_nor_ablated_nor_compressed() -> None:
    supported = InspectSpec(analyses=(ModelAnalysis.EVALUATE, ModelAnalysis.LOSSES))
    assert list(unsupported_by_transformers("transformers", supported)) == []
    every = InspectSpec(analyses=tuple(ModelAnalysis), prune=(0.5,))
    fields = [rule.partition(":")[0] for rule in unsupported_by_transformers("transformers", every)]
    assert fields == ["inspect.analyses", "inspect.analyses", "inspect.prune"]
