"""Tests of reading stored results: each is read, or refused with a reason and reported as an exclusion."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.analysis.analyse import analyse
from raycap.analysis.checks import UnreadableResult
from raycap.analysis.planted import Truth, plant
from raycap.analysis.readings import headline
from raycap.analysis.report import report_html
from raycap.analysis.stored import read_result, read_stored
from raycap.analysis.summary import summary
from raycap.learner.trial import run_trial
from raycap.pipeline import prepare
from raycap.results import Failure, LossTable, Part, TrialResult
from raycap.spec import AnalysisSpec, HeldOut, Kind, QuestionsByShare, Split
from raycap.storage import Storage, failure_path, result_path
from raycap.storage.checksum import with_checksum
from tests.support.planted import RUN, results, sweep


def tree(result: TrialResult) -> dict[str, Any]:
    return json.loads(result.model_dump_json())


def one_result() -> TrialResult:
    record = sweep([16])
    (result,) = results(record, 1.8).values()
    return result


def without_rows(raw: dict[str, Any]) -> None:
    for evaluation in raw["evaluations"]:
        evaluation["losses"]["rows"] = [{**row, "kind": "two_hop"} for row in evaluation["losses"]["rows"]]


def one_row_less(raw: dict[str, Any]) -> None:
    raw["evaluations"][0]["losses"]["rows"].pop()


BROKEN = {
    "another schema": (lambda raw: raw.update(schema_version=2), "schema version 2, but this raycap reads"),
    "an older schema with other fields": (
        lambda raw: (raw.update(schema_version=1), raw.pop("populations")),
        "schema version 1, but this raycap reads",
    ),
    "no parameter counts": (lambda raw: raw.pop("parameters"), "parameters: field required"),
    "no parameters": (
        lambda raw: raw.update(parameters=dict.fromkeys(raw["parameters"], 0) | {"base": None}),
        "parameters: must be positive",
    ),
    "NaN": (
        lambda raw: raw["evaluations"][1]["losses"]["rows"][0].update(sum_bits=float("nan")),
        "evaluations.1.losses.rows.0.sum_bits: input should be a finite number",
    ),
    "no evaluation": (lambda raw: raw.update(evaluations=[]), "evaluations: "),
    "losses of something else": (without_rows, "one_hop losses (answer) about birth_date of population 0 are missing"),
    "an evaluation with less": (one_row_less, "step 10: "),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_result_is_refused_with_its_field(case: str) -> None:
    raw = tree(one_result())
    breaks, reason = BROKEN[case]
    breaks(raw)
    with pytest.raises(UnreadableResult) as error:
        read_result(json.dumps(raw))
    assert reason in str(error.value)


def test_text_that_is_not_a_result_is_refused() -> None:
    for text in ("", "half a resu", "[]", "{}"):
        with pytest.raises(UnreadableResult):
            read_result(text)


def two_hop_result(held_out: HeldOut, *, chained: bool) -> TrialResult:
    """A complete synthetic result of one- and two-hop questions."""
    (trial,) = sweep([16]).trials
    questions = QuestionsByShare(hops=(1, 2), held_out=held_out, chain_of_thought=chained)
    spec = trial.spec.model_copy(update={"questions": questions})
    planned = trial.model_copy(update={"spec": spec, "trial_id": spec.trial_id})
    truth = Truth(headline(AnalysisSpec()), 1.0)
    (result,) = plant([planned], truth, AnalysisSpec(), np.zeros(1, np.int64), rng=np.random.default_rng(0))
    return result


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        (lambda row: row.split is Split.TUPLES, "two_hop losses (answer, tuples) about"),
        (lambda row: row.split is Split.FIRST_PEOPLE and row.subject == "child", "first_people) about child"),
        (lambda row: row.part is Part.CHAIN, "two_hop losses (chain, train) about"),
        (lambda row: row.kind is Kind.ONE_HOP and row.subject == "parent", "one_hop losses (answer) about parent"),
    ],
)
def test_a_result_without_losses_that_its_spec_requires_is_refused(missing: Any, reason: str) -> None:
    result = two_hop_result(HeldOut(tuples=0.1, first_people=0.1), chained="chain" in reason)
    assert read_result(result.model_dump_json()) == result
    evaluations = tuple(
        e.model_copy(update={"losses": LossTable(rows=tuple(row for row in e.losses.rows if not missing(row)))})
        for e in result.evaluations
    )
    with pytest.raises(UnreadableResult) as error:
        read_result(result.model_copy(update={"evaluations": evaluations}).model_dump_json())
    assert reason in str(error.value)
    assert "missing" in str(error.value)


@pytest.mark.parametrize("num_evaluated", [0, 1])
def test_a_row_with_fewer_than_two_evaluated_texts_is_refused(num_evaluated: int) -> None:
    raw = tree(one_result())
    raw["evaluations"][1]["losses"]["rows"][0]["num_evaluated"] = num_evaluated
    with pytest.raises(UnreadableResult, match=f"{num_evaluated} of 1,000 texts"):
        read_result(json.dumps(raw))


def test_a_result_of_another_trial_or_size_is_refused(tmp_path: Path) -> None:
    record = sweep([12, 16])
    storage = Storage.at(str(tmp_path))
    first, second = results(record, 1.8).values()
    storage.write(result_path(first.trial_id), with_checksum(second.model_dump_json()))
    bigger = second.parameters.model_copy(update={"mlp": 1 + second.parameters.mlp})
    other = second.model_copy(update={"parameters": bigger})
    storage.write(result_path(second.trial_id), with_checksum(other.model_dump_json()))
    stored = read_stored(record.trials, storage)
    assert stored.measured == {}
    assert stored.unreadable[first.trial_id].startswith("trial_id: ")
    assert second.trial_id in stored.unreadable[first.trial_id]
    assert stored.unreadable[second.trial_id].startswith("parameters: ")
    assert f"{bigger.total:,}" in stored.unreadable[second.trial_id]


def test_a_complete_result_is_read_unchanged() -> None:
    result = one_result()
    assert read_result(result.model_dump_json()) == result


def test_an_unreadable_trial_is_excluded_with_its_reason_in_law_summary_and_report(tmp_path: Path) -> None:
    record = sweep([12, 14, 16, 20, 24])
    storage = Storage.at(str(tmp_path))
    ids = [trial.trial_id for trial in record.trials]
    for trial_id, result in results(record, 1.8).items():
        raw = tree(result)
        if trial_id == ids[0]:
            raw["schema_version"] = 1
        if trial_id == ids[1]:
            storage.write(
                failure_path(trial_id), Failure(trial_id=trial_id, cause="boom", traceback="").model_dump_json()
            )
        else:
            storage.write(result_path(trial_id), with_checksum(json.dumps(raw)))
    stored = read_stored(record.trials, storage)
    assert set(stored.measured) == set(ids[2:])
    assert set(stored.failures) == {ids[1]}
    analysis = analyse(record, RUN, stored.measured, stored.failures, stored.unreadable)
    assert list(analysis.law.excluded) == [ids[0]]
    assert "unreadable: schema version 1" in analysis.law.excluded[ids[0]]
    entries = summary(analysis)
    assert [trial["state"] for trial in entries["trials"]] == [
        "unreadable",
        "failed",
        "finished",
        "finished",
        "finished",
    ]
    assert entries["laws"]["optimal"]["enumerate"]["num_trials"] == 3
    html = report_html(analysis, entries["trials"], "")
    assert "schema version 1" in html
    assert record.trials[0].label in html


SMALL = {"names": {"first": 10, "middle": 10, "last": 10}, "num_profiles": 40, "num_relations": 3}
TRAINED: dict[str, dict[str, Any]] = {
    "held out": {"profiles": SMALL, "questions": {"hops": [1, 2], "held_out": {"tuples": 0.1, "relations": 0.34}}},
    "chain": {"profiles": SMALL, "questions": {"hops": [1, 2], "chain_of_thought": True}},
    "bipartite": {"profiles": SMALL | {"structure": "bipartite"}, "questions": {"hops": [1, 2]}},
    "biographies": {"profiles": SMALL, "questions": {"kind": "biographies", "per_person": 2}},
    "pairs": {"profiles": {"source": "pairs", "num_keys": 30, "num_relations": 2, "num_values": 16}},
    "strings": {
        "profiles": {"source": "strings", "num_strings": 30, "vocab_size": 64, "length": 8},
        "questions": {"kind": "names"},
    },
}


@pytest.mark.parametrize("case", TRAINED)
def test_the_result_of_a_trained_trial_passes_all_checks(case: str, tmp_path: Path) -> None:
    training = {"length": {"steps": 4}, "batch_size": 16, "num_evaluations": 2}
    tree = {"training": training, "model": {"hidden_size": 16, "num_layers": 1}, **TRAINED[case]}
    spec = tmp_path / "small.yaml"
    spec.write_text(json.dumps({"trial": tree, "storage": str(tmp_path / "runs")}))
    record, storage = prepare(str(spec), ())
    (trial,) = record.trials
    result = run_trial(trial.spec, source_commit="test", storage=storage).result
    storage.write(result_path(trial.trial_id), with_checksum(result.model_dump_json()))
    stored = read_stored(record.trials, storage)
    assert stored.unreadable == {}
    assert set(stored.measured) == {trial.trial_id}
