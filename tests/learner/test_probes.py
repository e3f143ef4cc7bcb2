"""Probes read known information within 2 %, and interchanges distinguish composition from a table."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raycap.facts.corpus import TRAIN
from raycap.facts.probing import probe_task
from raycap.learner import model as llama
from raycap.learner.inspections import Inspection, inspect_models
from raycap.learner.interchange import interchanges, spliced
from raycap.learner.probed_questions import ProbedQuestions
from raycap.learner.probes import clustered_error, code_length_bits, read_bits
from raycap.learner.probing import TaskReader, probe, read_task
from raycap.learner.residuals import text_losses
from raycap.results.probes import ProbeReadings, Space
from raycap.spec import Kind, ModelAnalysis, QuestionsByShare, Steps
from raycap.spec.probes import ProbeFamily, ProbeSite, ProbesSpec, ProbeTarget
from raycap.storage import Storage, model_folder
from raycap.storage.inspections import read_inspections
from raycap.storage.kept_models import final_moment
from tests.support.planted_models import planted_model, population, questions_about
from tests.support.tiny import TINY, trained

SPEC = ProbesSpec(num_folds=3, num_pairs=100)
SITES = (ProbeSite.PERSON, ProbeSite.RELATION, ProbeSite.ANSWER)


def gaussian_code(noise: float, num: int = 4000) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Return residuals, labels and means of classes, and the information of the residuals in bits."""
    generator = torch.Generator().manual_seed(0)
    means = torch.linalg.qr(torch.randn(12, 8, generator=generator))[0].mT  # (C, H)
    labels = torch.randint(8, (num,), generator=generator)
    x = means[labels] + noise * torch.randn(num, 12, generator=generator)
    log_posterior = (-(torch.cdist(x, means) ** 2) / (2 * noise**2)).log_softmax(dim=1)
    known = 3 + log_posterior[torch.arange(num), labels].mean() / np.log(2)
    return x, labels, means, float(known)


@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_usable_information_of_gaussian_codes_is_known_and_below_the_entropy(noise: float) -> None:
    x, labels, means, known = gaussian_code(noise)
    folds = torch.arange(len(labels)) % 3
    usable = {}
    for family, own in ((ProbeFamily.LINEAR, torch.zeros(8, 12)), (ProbeFamily.OWN, means)):
        entropy, loss = read_bits(x, labels, folds, own, family)
        usable[family] = (entropy - loss).mean()
        assert entropy.mean() == pytest.approx(3.0, abs=0.01)
        assert usable[family] <= entropy.mean()
        assert usable[family] == pytest.approx(known, rel=0.02, abs=0.01)
    order = (torch.arange(len(labels)) * 0.618034) % 1
    length = code_length_bits(x, labels, order, torch.zeros(8, 12), ProbeFamily.LINEAR) / len(labels)
    assert 3.0 - known - 0.02 <= length <= 3.0 - 0.8 * usable[ProbeFamily.LINEAR]


def test_noise_and_labels_of_the_control_task_are_not_read() -> None:
    x, labels, _, _ = gaussian_code(0.35, 3000)
    rng = np.random.default_rng(0)
    types = rng.integers(1500, size=3000)
    codes = torch.from_numpy(rng.normal(size=(1500, 12)).astype(np.float32))[types]
    control = torch.from_numpy(rng.integers(8, size=1500)[types])
    folds = torch.from_numpy(rng.permutation(3000) % 4)
    for inputs, targets in ((torch.randn_like(x), labels), (codes, control)):
        entropy, loss = read_bits(inputs, targets, folds, torch.zeros(8, 12), ProbeFamily.LINEAR)
        assert abs((entropy - loss).mean()) < 0.1


def test_the_error_of_clustered_values_is_that_of_the_means_of_clusters() -> None:
    means = np.random.default_rng(0).normal(size=50)
    assert clustered_error(np.repeat(means, 4), np.repeat(np.arange(50), 4)) == pytest.approx(
        means.std(ddof=1) / np.sqrt(50)
    )
    assert clustered_error(means, np.zeros(50)) == 0.0


@pytest.fixture(scope="module", params=[True, False], ids=["composes", "looks up"])
def planted(request: pytest.FixtureRequest) -> tuple[bool, ProbedQuestions, object]:
    people = population()
    composer, tokenizer, ids = questions_about(people)
    model = planted_model(people, tokenizer, composes=request.param)
    assert (
        text_losses(model, composer.compose(ids, composer.row_length)).max() < 25
    )  # most of it is that of the end token
    return request.param, ProbedQuestions.of(model, composer, ids, SITES), tokenizer


def test_interchange_distinguishes_composition_from_a_table(planted: tuple[bool, ProbedQuestions, object]) -> None:
    composes, questions, tokenizer = planted
    rows = {
        (row.site, row.layer, row.space): row
        for row in interchanges(questions, tokenizer, SPEC, np.random.default_rng(0))
    }
    bridge = rows[ProbeSite.RELATION, 1.0, Space.WHOLE]
    assert rows[ProbeSite.ANSWER, 2.0, Space.WHOLE].moved_share == 1.0
    assert (rows[ProbeSite.ANSWER, 1.0, Space.WHOLE].moved_share < 0.05) == composes  # the table's key is read there
    assert rows[ProbeSite.PERSON, 1.0, Space.WHOLE].moved_share < 0.05
    assert (bridge.moved_share > 0.9, bridge.gained_bits > 5) == (composes, composes)
    assert composes or bridge.moved_share < 0.05
    assert (rows[ProbeSite.RELATION, 1.0, Space.PROBE].moved_share > 0.9) == composes
    assert rows[ProbeSite.RELATION, 1.0, Space.RANDOM].moved_share < 0.5


def test_probes_read_the_bridge_where_it_is_planted() -> None:
    people = population()
    composer, tokenizer, ids = questions_about(people)
    model = planted_model(people, tokenizer, composes=True)
    random = llama.build_model(model.spec, model.vocab_size, generators=(torch.Generator().manual_seed(0),))
    questions, untrained = (ProbedQuestions.of(each, composer, ids, SITES[:2]) for each in (model, random))

    def reader(target: ProbeTarget) -> TaskReader:
        rng = np.random.default_rng(1)
        return TaskReader.of(probe_task(composer.corpus, ids, target, rng), tokenizer, SPEC, rng)

    codes = np.full(len(ids), TRAIN, np.uint8)
    rows = {(row.site, row.layer): row for row in read_task(questions, untrained, codes, reader(ProbeTarget.BRIDGE))}
    bridge = rows[ProbeSite.RELATION, 1.0]
    assert 0.9 * bridge.entropy_bits < bridge.usable_bits <= bridge.entropy_bits
    assert max(row.usable_bits for (site, _), row in rows.items() if site is ProbeSite.PERSON) < 0.1
    assert bridge.untrained_bits < 0.1
    assert set(bridge.parts_bits) == {"name 1"}  # the other parts are the same for all people
    relation = reader(ProbeTarget.RELATION)
    usable = {site: relation.read(questions, 4, site).usable.sum(axis=0).mean() for site in SITES[:2]}
    assert usable[ProbeSite.PERSON] < 0.1
    assert usable[ProbeSite.RELATION] > 1.8


def test_spliced_rows_continue_with_the_other_text() -> None:
    composer, _, ids = questions_about(population())
    first, second = (composer.compose(each, composer.row_length) for each in (ids[:20], ids[20:40]))
    ends = np.full(20, 6, np.int32)
    rows = spliced(first, second, ends, ends)
    assert np.array_equal(rows.input_ids[:, :7], first.input_ids[:, :7])
    assert np.array_equal(rows.input_ids[:, 7:], second.input_ids[:, 7:])
    assert np.array_equal(rows.labels, second.labels)
    shifted = spliced(first, second, ends, ends - 1)
    assert np.array_equal(shifted.input_ids[:, 7:], second.input_ids[:, 6:])


def test_a_stored_model_is_probed_with_the_settings_of_the_spec(tmp_path: Path) -> None:
    storage = Storage.at(str(tmp_path))
    few_steps = TINY.training.model_copy(update={"length": Steps(steps=2)})
    spec = TINY.model_copy(update={"questions": QuestionsByShare(hops=(1, 2)), "training": few_steps})
    trial = trained(spec)
    trial.save_model(storage, model_folder(spec.trial_id))
    settings = ProbesSpec(
        targets=(ProbeTarget.RELATION,), sites=(ProbeSite.RELATION,), num_texts=100, num_folds=3, num_pairs=20
    )
    options = settings.model_dump(mode="json")
    due = [(final_moment(trial.result), Inspection(ModelAnalysis.PROBE, probe, options))]
    inspect_models(trial.result, storage, due, source_commit="test", device="cpu", num_threads=1)
    (record,) = read_inspections(storage, spec.trial_id, ModelAnalysis.PROBE, ProbeReadings)
    assert [row.layer for row in record.body.probes] == [0.0, 1.0, 2.0]
    assert {row.kind for row in record.body.probes} == {Kind.TWO_HOP}
    assert len(record.body.interchanges) == 3 * 3  # one-hop questions have no relation to interchange at
