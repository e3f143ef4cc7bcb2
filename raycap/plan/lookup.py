"""Lookup of trials by id, label, or a unique prefix of these, as given to `--trials`."""

import difflib
from collections.abc import Iterable

from raycap.results import PlannedTrial
from raycap.spec.document import SpecError

MAX_NAMED = 6
"""Maximum number of trials that an error names; the others are counted."""


def lookup_trials(trials: Iterable[PlannedTrial], names: str) -> list[PlannedTrial]:
    """Return the trials that a comma-separated list such as `3f2a,d10-L2-N1000-s0` names, in the order of the sweep.

    A name is an id, a label, or a unique prefix of one. Raises SpecError with every name that matches none or several.
    """
    known = list(trials)
    found: set[str] = set()
    problems = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        exact = [trial for trial in known if name in (trial.trial_id, trial.label)]
        matches = exact or [trial for trial in known if trial.trial_id.startswith(name) or trial.label.startswith(name)]
        if len(matches) == 1:
            found.add(matches[0].trial_id)
        elif matches:
            problems.append(
                f"--trials: {name!r} is a prefix of {len(matches)} trials: {_describe(matches)}; give a longer one"
            )
        else:
            candidates = [word for trial in known for word in (trial.label, trial.trial_id)]
            close = difflib.get_close_matches(name, candidates, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"the trials are: {_describe(known)}"
            problems.append(f"--trials: {name!r} is not an id or label of this sweep, nor a prefix of one; {hint}")
    if not found and not problems:
        problems.append(f"--trials: must name a trial, got {names!r}; the trials are: {_describe(known)}")
    if problems:
        raise SpecError(problems)
    return [trial for trial in known if trial.trial_id in found]


def _describe(trials: list[PlannedTrial]) -> str:
    named = ", ".join(f"{trial.label} ({trial.trial_id})" for trial in trials[:MAX_NAMED])
    return named + (f" and {len(trials) - MAX_NAMED} more" if len(trials) > MAX_NAMED else "")
