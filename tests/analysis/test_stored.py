"""What lies in the storage is read or refused with its reason; nothing is dropped silently."""

import json
from pathlib import Path
from typing import Any

import pytest

from raycap.analysis.analyse import analyse
from raycap.analysis.report import report_html
from raycap.analysis.stored import UnreadableResult, read_result, read_stored
from raycap.analysis.summary import summary
from raycap.results import Failure, TrialResult
from raycap.spec import HeldOut, Kind, QuestionsByShare
from raycap.storage import Storage, failure_path, result_path
from tests.planted import RUN, results, sweep


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
        lambda raw: raw.update(parameters=dict.fromkeys(raw["parameters"], 0)),
        "parameters: must be counted",
    ),
    "NaN": (
        lambda raw: raw["evaluations"][1]["losses"]["rows"][0].update(sum_bits=float("nan")),
        "evaluations.1.losses.rows.0.sum_bits: input should be a finite number",
    ),
    "no evaluation": (lambda raw: raw.update(evaluations=[]), "it holds no evaluation"),
    "losses of something else": (without_rows, "losses of trained one_hop texts about population 0 are missing"),
    "an evaluation with less": (one_row_less, "step 10: other losses were measured"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_result_is_told_with_its_reason(case: str) -> None:
    raw = tree(one_result())
    breaks, reason = BROKEN[case]
    breaks(raw)
    with pytest.raises(UnreadableResult) as error:
        read_result(json.dumps(raw))
    assert reason in str(error.value)


def test_text_that_is_no_result_is_told_too() -> None:
    for text in ("", "half a resu", "[]", "{}"):
        with pytest.raises(UnreadableResult):
            read_result(text)


def test_held_out_questions_must_have_been_measured() -> None:
    result = one_result()
    questions = QuestionsByShare(hops=(1, 2), held_out=HeldOut(tuples=0.1))
    spec = result.spec.model_copy(update={"questions": questions})
    rows = result.final.losses.rows
    both = (*rows, *(row.model_copy(update={"kind": Kind.TWO_HOP}) for row in rows))
    losses = result.final.losses.model_copy(update={"rows": both})
    evaluations = (result.final.model_copy(update={"losses": losses}),)
    broken = result.model_copy(update={"spec": spec, "evaluations": evaluations})
    with pytest.raises(UnreadableResult, match="no held-out split was measured"):
        read_result(broken.model_dump_json())


def test_a_whole_result_is_read_as_it_was_written() -> None:
    result = one_result()
    assert read_result(result.model_dump_json()) == result


def test_an_unreadable_trial_is_an_exclusion_with_its_reason_wherever_one_looks(tmp_path: Path) -> None:
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
            storage.write(result_path(trial_id), json.dumps(raw))
    stored = read_stored(record.trials, storage)
    assert set(stored.measured) == set(ids[2:])
    assert set(stored.failures) == {ids[1]}
    analysis = analyse(record, RUN, stored.measured, stored.failures, stored.unreadable)
    assert list(analysis.law.excluded) == [ids[0]]
    assert "unreadable: schema version 1" in analysis.law.excluded[ids[0]]
    told = summary(analysis)
    assert [trial["state"] for trial in told["trials"]] == ["unreadable", "failed", "finished", "finished", "finished"]
    assert told["laws"]["optimal"]["enumerate"]["num_trials"] == 3
    html = report_html(analysis, told["trials"], "")
    assert "schema version 1" in html
    assert record.trials[0].label in html
