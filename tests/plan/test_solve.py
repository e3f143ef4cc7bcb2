"""Quantities that follow others: people and tokens per parameter, and numbers of the training that follow a size."""

from collections.abc import Callable
from pathlib import Path

import pytest

from raycap.facts.profiles import census_schema
from raycap.facts.solve_population import expected_bits
from raycap.plan.expand import expand
from raycap.plan.sizes import MAX_EMBEDDING_SHARE, embedding_share, suggested_names
from raycap.results import PlannedTrial
from raycap.spec import EncodingScheme, SelectionScheme
from raycap.spec.file import SpecError, load_sweep

SPEC = """\
# What follows the model?
trial:
  profiles: {num_relations: 2, names: {first: 20, middle: 20, last: 40}}
  model: {num_layers: 2, hidden_size: 8, heads: {num_heads: 1}}
  training: {length: {exposures: 100}, optimizer: {lr: 0.01, warmup_steps: 5}}
"""

Plan = Callable[..., list[PlannedTrial]]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    def planned(*overrides: str) -> list[PlannedTrial]:
        (tmp_path / "spec.yaml").write_text(SPEC)
        return expand(load_sweep(str(tmp_path / "spec.yaml"), overrides))

    return planned


@pytest.mark.parametrize(
    ("model", "scheme", "selection"),
    [
        ("model.hidden_size: [8, 12]", EncodingScheme.OPTIMAL, SelectionScheme.INDEPENDENT),
        ("model.num_params: [12_000, 20_000]", EncodingScheme.TWO_HOP_DOUBLE, SelectionScheme.SET),
    ],
)
def test_people_per_parameter_are_the_most_that_fit(
    plan: Plan, model: str, scheme: EncodingScheme, selection: SelectionScheme
) -> None:
    people = f"{{bits_per_param: 2.5, scheme: {scheme}, selection: {selection}}}"
    trials = plan(f"grid={{profiles: [{people}], {model}}}")
    assert trials[0].parameters.total < trials[1].parameters.total
    for trial in trials:
        names, num_profiles = trial.spec.profiles.names, trial.spec.profiles.num_profiles
        assert trial.solved["profiles.num_profiles"] == num_profiles == trial.populations[0].num_profiles
        schema = census_schema(names, 2, trial.spec.profiles.structure)
        less, more = (
            expected_bits(schema.facts(num), trial.spec.questions, scheme, selection)
            for num in (num_profiles, num_profiles + 1)
        )
        assert less <= 2.5 * trial.parameters.total < more
    stated = plan(
        f"trial.model.hidden_size={trials[0].spec.model.hidden_size}",
        f"trial.profiles.num_profiles={trials[0].solved['profiles.num_profiles']}",
    )
    assert [trial.trial_id for trial in stated] == [trials[0].trial_id]
    assert stated[0].solved == {}


def test_tokens_per_parameter_are_tokens(plan: Plan) -> None:
    trials = plan("grid.model.hidden_size=[8,16]", "trial.training.length={tokens_per_param: 3.5}")
    for trial in trials:
        assert trial.solved == {"training.length.tokens": round(3.5 * trial.parameters.total)}
        width, tokens = trial.spec.model.hidden_size, trial.solved["training.length.tokens"]
        (stated,) = plan(f"trial.model.hidden_size={width}", f"trial.training.length={{tokens: {tokens}}}")
        assert stated.trial_id == trial.trial_id
        assert stated.steps == trial.steps


def test_numbers_of_the_training_follow_a_size(plan: Plan) -> None:
    laws = (
        "trial.training.optimizer.lr={value: 0.01, of: hidden_size, at: 16, power: -1}",
        "trial.training.optimizer.weight_decay={matrices: {value: 0.1, of: num_params, at: 10_000, power: 0}}",
        "trial.training.batch_size={value: 64, of: num_profiles, at: 400, power: 0.5}",
    )
    trials = plan("grid={model.hidden_size: [8, 16, 32], profiles.num_profiles: [400, 900]}", *laws)
    for trial in trials:
        width, people = trial.spec.model.hidden_size, trial.populations[0].num_profiles
        rate, batch = 0.01 * 16 / width, {400: 64, 900: 96}[people]
        assert trial.spec.training.optimizer.lr == pytest.approx(rate)
        assert trial.spec.training.optimizer.weight_decay.matrices == 0.1
        assert trial.spec.training.batch_size == batch
        assert trial.solved["training.batch_size"] == batch
        assert trial.steps == -(-trial.spec.training.length.exposures * people * 6 // batch)
    stated = plan(
        "trial.model.hidden_size=32",
        "trial.profiles.num_profiles=900",
        "trial.training.optimizer.lr=0.005",
        "trial.training.batch_size=96",
    )
    assert stated[0].trial_id == trials[-1].trial_id


def test_the_fields_of_a_power_law_are_axes(plan: Plan) -> None:
    law = "trial.training.optimizer.lr={value: 0.01, of: hidden_size, at: 4}"
    trials = plan(law, "grid.training.optimizer.lr.power=[0,-1,-2]")
    assert [trial.spec.training.optimizer.lr for trial in trials] == pytest.approx([0.01, 0.005, 0.0025])
    assert len({trial.label for trial in trials}) == len(trials)


@pytest.mark.parametrize(
    ("overrides", "content"),
    [
        (("trial.training.batch_size={value: 8, of: width, at: 8, power: 1}",), "training.batch_size.of"),
        (("trial.training.batch_size={of: hidden_size, at: 8, power: 1}",), "training.batch_size.value"),
        (("trial.training.batch_size={value: 1.5, of: hidden_size, at: 8, power: 1}",), "training.batch_size"),
        (("trial.training.optimizer.lr={value: -1, of: hidden_size, at: 8, power: 1}",), "training.optimizer.lr"),
        (("trial.training.batch_size={value: 8, of: hidden_size, at: 1e-9, power: 9}",), "training.batch_size"),
        (("trial.profiles.bits_per_param=1e-4",), "profiles.bits_per_param"),
        (("trial.profiles.bits_per_param=900",), "profiles.bits_per_param"),
        (("trial.profiles={target_bits: 1e-4}",), "profiles.target_bits"),
        (("trial.profiles={bits_per_param: 3, num_profiles: 9}",), "bits_per_param"),
        (("trial.profiles.bits_per_param=1000", "trial.model.hidden_size=20_000"), "profiles.bits_per_param"),
        (("trial.training.curriculum=[{weights: [1], until: {tokens_per_param: 1}}]",), "tokens_per_param"),
    ],
)
def test_impossible_numbers_are_refused(plan: Plan, overrides: tuple[str, ...], content: str) -> None:
    with pytest.raises(SpecError) as caught:
        plan(*overrides)
    assert all(content in problem for problem in caught.value.problems), caught.value.problems


def test_the_suggested_names_keep_embeddings_small(plan: Plan) -> None:
    (default,) = plan("trial.profiles={num_relations: 2}", "trial.model.hidden_size=16")
    assert embedding_share(default.parameters) > MAX_EMBEDDING_SHARE
    assert any("embeddings" in warning for warning in default.warnings)
    names = suggested_names(1000)
    assert (names.first, names.middle, names.last) == (20, 20, 40)
    (small,) = plan(f"trial.profiles.names={names.model_dump_json()}", "trial.model.hidden_size=16")
    assert embedding_share(small.parameters) < MAX_EMBEDDING_SHARE
    assert not any("embeddings" in warning for warning in small.warnings)
    for num_profiles in (1, 7, 10_000, 10_000_000):
        assert suggested_names(num_profiles).num_names >= 16 * num_profiles
