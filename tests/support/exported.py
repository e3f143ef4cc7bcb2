"""A small muP model that knows its people by heart."""

from functools import cache

from raycap.learner.trial import TrainedTrial
from raycap.spec import (
    Exposures,
    MuP,
    NamePools,
    NumHeads,
    ProfilesByCount,
)
from tests.support.tiny import TINY, trained

PEOPLE = ProfilesByCount(num_profiles=20, num_relations=2, names=NamePools(first=8, middle=8, last=8))

MUP = MuP(kind="mup", base_width=16)

TOLD = TINY.model_copy(
    update={
        "profiles": PEOPLE,
        "model": TINY.model.model_copy(
            update={"hidden_size": 32, "heads": NumHeads(num_heads=2), "parametrization": MUP}
        ),
        "training": TINY.training.model_copy(update={"length": Exposures(exposures=150)}),
    }
)
"""Twenty people whom a muP model with tied embeddings knows by heart after three seconds."""


@cache
def told() -> TrainedTrial:
    return trained(TOLD)
