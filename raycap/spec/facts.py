"""Who there is and what is asked: the specs of populations and questions."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from raycap.spec.base import EncodingScheme, SelectionScheme, Spec, broken_rule

NUM_RELATIONS_KNOWN = 17
"""How many relations there are to choose from (`facts.names.RELATIONS`)."""
NUM_CENSUS_FIRST_NAMES = 5_163
NUM_CENSUS_LAST_NAMES = 88_799


class NamePools(Spec):
    """How many census names full names are drawn from; the defaults are the whole lists (log2 M = 41.11 bits)."""

    first: int = Field(default=NUM_CENSUS_FIRST_NAMES, ge=1, le=NUM_CENSUS_FIRST_NAMES)
    """Number of first names, the most frequent ones."""
    middle: int = Field(default=NUM_CENSUS_FIRST_NAMES, ge=1, le=NUM_CENSUS_FIRST_NAMES)
    """Number of middle names, from the same list as the first names."""
    last: int = Field(default=NUM_CENSUS_LAST_NAMES, ge=1, le=NUM_CENSUS_LAST_NAMES)
    """Number of last names."""

    @property
    def num_names(self) -> int:
        """M, the number of different full names."""
        return self.first * self.middle * self.last


class GeneratedProfiles(Spec):
    source: Literal["generate"] = "generate"
    """Draw the people here, from `seed`."""
    num_relations: int = Field(default=4, ge=0, le=NUM_RELATIONS_KNOWN)
    """R: how many of the 17 relations each person has, the first R in their fixed order."""
    structure: Literal["uniform"] = "uniform"
    """uniform: each relation of each person is an independent uniform draw over all people, self included."""
    names: NamePools = NamePools()
    """The pools the full names are drawn from."""
    seed: int = Field(default=0, ge=0)
    """Seed of the population: names, attributes and relations."""


class ProfilesByCount(GeneratedProfiles):
    """A generated population of a given size."""

    num_profiles: int = Field(default=1000, ge=1)
    """N: how many people."""

    @field_validator("num_profiles")
    @classmethod
    def _names_suffice(cls, num_profiles: int, info: Any) -> int:
        pools = info.data.get("names")
        if pools is not None and num_profiles > pools.num_names:
            raise broken_rule(
                "{n} people need {n} different full names, but the pools make only {m}; enlarge profiles.names or lower "
                "num_profiles",
                n=num_profiles,
                m=pools.num_names,
            )
        return num_profiles


class ProfilesByBits(GeneratedProfiles):
    """A generated population as large as a code length allows; the plan solves for num_profiles."""

    target_bits: float = Field(gt=0)
    """The number of people is the largest whose code length, one-hop, stays within this many bits."""
    scheme: EncodingScheme = EncodingScheme.OPTIMAL
    """The encoding scheme the target is counted in."""
    selection: SelectionScheme = SelectionScheme.ENUMERATE
    """The selection scheme the target is counted in."""


class ProfilesFromDisk(Spec):
    """A population in the hosted dataset schema, from a file or folder."""

    source: Literal["disk"]
    """Read the people from `path`."""
    path: str
    """A parquet file, or a folder written by datasets' save_to_disk."""


class ProfilesFromHub(Spec):
    """A population in the hosted dataset schema, from the Hugging Face hub."""

    source: Literal["hub"]
    """Read the people from the dataset `path` on the hub."""
    path: str
    """Dataset name, owner/name."""
    split: str = "train"
    """Split of the dataset."""
    revision: str = "main"
    """Commit or branch; a commit keeps the trial reproducible."""


def _profiles_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return {ProfilesByBits: "<bits>", ProfilesFromDisk: "<disk>", ProfilesFromHub: "<hub>"}.get(
            type(value), "<count>"
        )
    if not isinstance(value, dict):
        return "<count>"
    source = value.get("source", "generate")
    if source in ("disk", "hub"):
        return f"<{source}>"
    return "<bits>" if "target_bits" in value else "<count>"


ProfilesSpec = Annotated[
    Annotated[ProfilesByCount, Tag("<count>")]
    | Annotated[ProfilesByBits, Tag("<bits>")]
    | Annotated[ProfilesFromDisk, Tag("<disk>")]
    | Annotated[ProfilesFromHub, Tag("<hub>")],
    Discriminator(_profiles_kind),
]


def _default_one_hop_share(data: dict[str, Any]) -> float:
    return {(1,): 1.0, (2,): 0.0}.get(data.get("hops", (1,)), 1 / 11)


class QuestionsSpec(Spec):
    """Which questions are asked of the population."""

    hops: tuple[Literal[1, 2], ...] = (1,)
    """[1]: "What was A's employer?"; [2]: "What was A's parent's employer?"; [1, 2]: both."""
    one_hop_share: float = Field(default_factory=_default_one_hop_share, ge=0, le=1)
    """Share of one-hop questions among the trained ones. Default 1/11 where both are asked (the reference's 1 : 10)."""

    @field_validator("hops")
    @classmethod
    def _sorted_and_unique(cls, hops: tuple[int, ...]) -> tuple[int, ...]:
        if not hops or tuple(sorted(set(hops))) != hops:
            raise broken_rule("must be [1], [2] or [1, 2], got {got}", got=str(list(hops)))
        return hops

    @field_validator("one_hop_share")
    @classmethod
    def _share_fits_hops(cls, share: float, info: Any) -> float:
        hops = info.data.get("hops")
        if hops is None:
            return share
        if len(hops) == 1 and share != _default_one_hop_share(info.data):
            raise broken_rule(
                "has no effect when only {hops}-hop questions are asked; remove it or set hops: [1, 2]", hops=hops[0]
            )
        if len(hops) == 2 and not 0 < share < 1:
            raise broken_rule("must lie strictly between 0 and 1 when hops is [1, 2], got {got}", got=share)
        return share
