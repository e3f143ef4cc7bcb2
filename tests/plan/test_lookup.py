"""Tests of the lookup of trials by id, label or prefix."""

import pytest

from raycap.plan.lookup import lookup_trials
from raycap.spec.file import SpecError
from tests.support.planted import sweep

RECORD = sweep([10, 12, 14], seeds=(0, 1))


def labels(names: str) -> list[str]:
    return [trial.label for trial in lookup_trials(RECORD.trials, names)]


def test_ids_labels_and_unique_prefixes_select_in_the_order_of_the_sweep() -> None:
    last, first = RECORD.trials[5], RECORD.trials[0]
    assert labels(f"{last.trial_id}, {first.label}") == [first.label, last.label]
    assert labels(f"{last.trial_id[:8]},{last.label}") == [last.label]
    assert labels("d14-L2-N1000-s1") == ["d14-L2-N1000-s1"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("d12", "2 trials: d12-L2-N1000-s0 ("),
        ("d12-L2-N1000-s7", "'d12-L2-N1000-s"),
        ("zzz", "'zzz'"),
        (" , ", "got ' , '"),
        ("", "got ''"),
    ],
)
def test_names_that_match_none_or_several_are_refused(names: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        lookup_trials(RECORD.trials, names)
    (problem,) = raised.value.problems
    assert problem.startswith("--trials: ")
    assert message in problem


def test_all_problems_are_reported_together() -> None:
    with pytest.raises(SpecError) as raised:
        lookup_trials(RECORD.trials, "d10,zzz,d14-L2-N1000-s0")
    assert len(raised.value.problems) == 2
