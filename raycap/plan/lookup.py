"""Which trials of a sweep are meant by what somebody typed."""

import difflib
from collections.abc import Iterable

from raycap.results import PlannedTrial
from raycap.spec.file import SpecError

FEW = 6
"""Trials that are named in an error; the others are counted."""


def lookup_trials(trials: Iterable[PlannedTrial], asked: str) -> list[PlannedTrial]:
    """The trials of a sweep that a list such as `3f2a,d10-L2-N1000-s0` names, by ids, labels or unique beginnings of these.

    In the sweep's order. Raises SpecError with every name that means none or several.
    """
    known = list(trials)
    found: set[str] = set()
    problems = []
    for name in filter(None, (part.strip() for part in asked.split(","))):
        exact = [trial for trial in known if name in (trial.trial_id, trial.label)]
        meant = exact or [trial for trial in known if trial.trial_id.startswith(name) or trial.label.startswith(name)]
        if len(meant) == 1:
            found.add(meant[0].trial_id)
        elif meant:
            problems.append(f"--trials: {name!r} begins {len(meant)} trials: {_named(meant)}; give more of one")
        else:
            words = [word for trial in known for word in (trial.label, trial.trial_id)]
            close = difflib.get_close_matches(name, words, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are: {_named(known)}"
            problems.append(f"--trials: {name!r} is no id or label of this sweep, nor the beginning of one; {hint}")
    if not found and not problems:
        problems.append(f"--trials: names no trial, got {asked!r}; there are: {_named(known)}")
    if problems:
        raise SpecError(problems)
    return [trial for trial in known if trial.trial_id in found]


def _named(trials: list[PlannedTrial]) -> str:
    named = ", ".join(f"{trial.label} ({trial.trial_id})" for trial in trials[:FEW])
    return named + (f" and {len(trials) - FEW} more" if len(trials) > FEW else "")
