"""A small muP model that has memorised its people, for tests of exports."""

from functools import cache

from raycap.learner.trial import TrainedTrial
from raycap.spec import Exposures, MuP, NamePools, NumHeads, ProfilesByCount
from tests.support.tiny import TINY, trained

PEOPLE = ProfilesByCount(num_profiles=20, num_relations=2, names=NamePools(first=8, middle=8, last=8))

MUP = MuP(kind="mup", base_width=16)

MEMORIZED = TINY.model_copy(
    update={
        "profiles": PEOPLE,
        "model": TINY.model.model_copy(
            update={"hidden_size": 32, "heads": NumHeads(num_heads=2), "parametrization": MUP}
        ),
        "training": TINY.training.model_copy(update={"length": Exposures(exposures=150)}),
    }
)
"""Twenty people, which a muP model with tied embeddings memorises in three seconds of training."""


@cache
def memorized() -> TrainedTrial:
    """Train the trial once per process."""
    return trained(MEMORIZED)
