"""Trials by what somebody typed."""

import pytest

from raycap.plan.lookup import lookup_trials
from raycap.spec.file import SpecError
from tests.support.planted import sweep

RECORD = sweep([10, 12, 14], seeds=(0, 1))


def labels(asked: str) -> list[str]:
    return [trial.label for trial in lookup_trials(RECORD.trials, asked)]


def test_ids_labels_and_their_beginnings_choose_in_the_order_of_the_sweep() -> None:
    last, first = RECORD.trials[5], RECORD.trials[0]
    assert labels(f"{last.trial_id}, {first.label}") == [first.label, last.label]
    assert labels(f"{last.trial_id[:8]},{last.label}") == [last.label]
    assert labels("d14-L2-N1000-s1") == ["d14-L2-N1000-s1"]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("d12", "'d12' begins 2 trials: d12-L2-N1000-s0 ("),
        ("d12-L2-N1000-s7", "did you mean 'd12-L2-N1000-s"),
        ("zzz", "'zzz' is no id or label of this sweep, nor the beginning of one; there are: d10-L2-N1000-s0 ("),
        (" , ", "names no trial, got ' , '"),
        ("", "names no trial, got ''"),
    ],
)
def test_what_means_none_or_several_is_told(asked: str, told: str) -> None:
    with pytest.raises(SpecError) as raised:
        lookup_trials(RECORD.trials, asked)
    (problem,) = raised.value.problems
    assert problem.startswith("--trials: ")
    assert told in problem


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(SpecError) as raised:
        lookup_trials(RECORD.trials, "d10,zzz,d14-L2-N1000-s0")
    assert len(raised.value.problems) == 2
