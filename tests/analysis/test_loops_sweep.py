"""The laptop sweep of looped models has laws from which the code that each model uses can be read."""

import pytest

from raycap.analysis.analyse import analyse
from raycap.analysis.planted import Truth
from raycap.analysis.readings import Reading
from raycap.analysis.tidy import law_frame
from raycap.plan.expand import expand
from raycap.results import SweepRecord
from raycap.spec import EncodingScheme, SelectionScheme, TrialSpec
from raycap.spec.file import load_sweep
from tests.support.synthetic import RUN, SPEC, results

ONCE, TWICE = EncodingScheme.OPTIMAL, EncodingScheme.TWO_HOP_DOUBLE


def predicted(spec: TrialSpec) -> Truth:
    """Return one bit per parameter; plain models store relations twice if they answer two-hop questions."""
    scheme = TWICE if len(spec.questions.kinds) > 1 and spec.model.loop is None else ONCE
    return Truth(Reading(scheme, SelectionScheme.ENUMERATE), bits_per_param=1.0, noise=0.03)


@pytest.mark.slow
def test_the_code_of_plain_and_of_looped_models_is_recovered() -> None:
    loaded = load_sweep(SPEC.replace("grid.yaml", "laptop/loops.yaml"), ())
    record = SweepRecord(spec=loaded.spec, question="", spec_yaml=loaded.text, trials=tuple(expand(loaded)))
    laws = law_frame(analyse(record, RUN, results(record, predicted), {}))
    assert list(laws["status"]) == ["ok"] * 12
    two_hops, looped = laws["arm"].str.contains("[1, 2]", regex=False), laws["arm"].str.contains("times 2")

    def alpha(arm: object, scheme: EncodingScheme) -> float:
        (found,) = laws[arm & (laws["scheme"] == scheme)]["alpha"]
        return float(found)

    for arm, right, wrong, factor in ((two_hops & ~looped, TWICE, ONCE, 0.6), (two_hops & looped, ONCE, TWICE, 1.6)):
        assert alpha(arm, right) == pytest.approx(1.0, rel=0.1)
        assert alpha(arm, wrong) == pytest.approx(factor, rel=0.1)
    for arm in (~two_hops & ~looped, ~two_hops & looped):
        assert alpha(arm, ONCE) == pytest.approx(1.0, rel=0.05)
