"""Who there is: the specs of populations, and of random data that stand in for one."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from raycap.spec.base import EncodingScheme, RelationStructure, Seed, SelectionScheme, Spec, Text, broken_rule

NUM_RELATIONS_KNOWN = 17
"""How many relations there are to choose from (`facts.names.RELATIONS`)."""
NUM_ATTRIBUTES = 4
"""What is told of everybody beside relations (`facts.profiles.census_schema`)."""
NUM_CENSUS_FIRST_NAMES = 5_163
NUM_CENSUS_LAST_NAMES = 88_799
MAX_PEOPLE = 10_000_000
"""In a population."""
MAX_DRAWN = 100_000_000
"""Random values or tokens in all: the plan draws them."""


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
    structure: RelationStructure = RelationStructure.UNIFORM
    """How relations are drawn: uniform or bipartite."""
    self_relations: bool = True
    """Whether a uniform relation may lead from a person to themselves."""
    names: NamePools = NamePools()
    """The pools the full names are drawn from."""
    seed: Seed = 0
    """Seed of the population: names, attributes and relations."""


class ProfilesByCount(GeneratedProfiles):
    """A generated population of a given size."""

    num_profiles: int = Field(default=1000, ge=1, le=MAX_PEOPLE)
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
        if num_profiles % 2 and info.data.get("structure") is RelationStructure.BIPARTITE:
            raise broken_rule(
                "bipartite relations pair people up, so their number must be even, got {n}; take {m}",
                n=num_profiles,
                m=num_profiles + 1,
            )
        if num_profiles == 1 and not info.data.get("self_relations", True):
            raise broken_rule("one person alone can only be related to themselves; allow self_relations or add people")
        return num_profiles


class ProfilesByBits(GeneratedProfiles):
    """A generated population as large as a code length allows; the plan solves for num_profiles."""

    target_bits: float = Field(gt=0, le=1e9)
    """The number of people is the largest (even, if bipartite) whose code length, as the questions ask for it, stays
    within this many bits."""
    scheme: EncodingScheme = EncodingScheme.OPTIMAL
    """The encoding scheme the target is counted in."""
    selection: SelectionScheme = SelectionScheme.ENUMERATE
    """The selection scheme the target is counted in."""


class LoadedProfiles(Spec):
    names: NamePools | None = None
    """The pools the names were drawn from, which no column tells. By default the whole census lists if all names are in
    them, else just the parts that occur."""
    structure: RelationStructure = RelationStructure.UNIFORM
    """How the relations were drawn; what bipartite means is checked against the data."""
    self_relations: bool = True
    """Whether relations could lead to oneself; false is checked against the data."""
    fingerprint: str | None = None
    """SHA-256 of the population's content. The plan fills it in, so that a trial is known by its data and not by where
    they lay; given, it must be met."""


class ProfilesFromDisk(LoadedProfiles):
    """A population in the hosted dataset schema, from a file or folder."""

    source: Literal["disk"]
    """Read the people from `path`."""
    path: Text
    """A parquet file, or a folder written by datasets' save_to_disk; file:///... says that every machine of a cluster has
    it there."""


class ProfilesFromHub(LoadedProfiles):
    """A population in the hosted dataset schema, from the Hugging Face hub."""

    source: Literal["hub"]
    """Read the people from the dataset `path` on the hub."""
    path: Text
    """Dataset name, owner/name."""
    split: Text = "train"
    """Split of the dataset."""
    revision: Text = "main"
    """Commit or branch."""


class RandomPairs(Spec):
    """Random key -> value pairs: "people" whose keys are given and cost nothing, so that no scheme is assumed."""

    source: Literal["pairs"]
    """Draw the values here, from `seed`."""
    num_keys: int = Field(default=1000, ge=1, le=10_000_000)
    """N: how many keys there are; all keys up to it exist, so knowing them is worth nothing."""
    num_relations: int = Field(default=4, ge=1, le=100)
    """R: values per key."""
    num_values: int = Field(default=256, ge=2, le=65_536)
    """Values a pair may have, each equally likely: log2 of this many bits a pair."""
    seed: Seed = 0
    """Seed of the values."""

    @field_validator("num_relations")
    @classmethod
    def _can_be_drawn(cls, num_relations: int, info: Any) -> int:
        num_keys = info.data.get("num_keys", 0)
        if num_keys * num_relations > MAX_DRAWN:
            raise broken_rule(
                "{n} keys of {r} values are more than {most} values in all; take fewer of either",
                n=f"{num_keys:,}",
                r=num_relations,
                most=f"{MAX_DRAWN:,}",
            )
        return num_relations


class RandomStrings(Spec):
    """Random strings (Morris): tokens drawn uniformly and independently."""

    source: Literal["strings"]
    """Draw the strings here, from `seed`."""
    num_strings: int = Field(default=1000, ge=1, le=10_000_000)
    """N: how many strings."""
    vocab_size: int = Field(default=2048, ge=2, le=65_536)
    """V: different tokens; log2 V bits each."""
    length: int = Field(default=64, ge=1, le=511)
    """S: tokens per string."""
    seed: Seed = 0
    """Seed of the strings."""

    @field_validator("length")
    @classmethod
    def _strings_differ(cls, length: int, info: Any) -> int:
        num_strings, vocab_size = info.data.get("num_strings"), info.data.get("vocab_size")
        if num_strings and num_strings * length > MAX_DRAWN:
            raise broken_rule(
                "{n} strings of {s} tokens are more than {most} in all; take fewer, or shorter ones",
                n=f"{num_strings:,}",
                s=length,
                most=f"{MAX_DRAWN:,}",
            )
        if num_strings and vocab_size and vocab_size**length < 1_000_000 * num_strings:
            raise broken_rule(
                "{n} strings of {s} tokens out of {v} would repeat each other; make them longer, or draw from more tokens",
                n=num_strings,
                s=length,
                v=vocab_size,
            )
        return length


_TAGS: dict[type, str] = {
    ProfilesByCount: "<generate>",
    ProfilesByBits: "<generate/bits>",
    ProfilesFromDisk: "<disk>",
    ProfilesFromHub: "<hub>",
    RandomPairs: "<pairs>",
    RandomStrings: "<strings>",
}


def _profiles_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return _TAGS.get(type(value), "<none>")
    fields = value if isinstance(value, dict) else {}
    source = fields.get("source", "generate")
    return "<generate/bits>" if source == "generate" and "target_bits" in fields else f"<{source}>"


ProfilesSpec = Annotated[
    Annotated[ProfilesByCount, Tag("<generate>")]
    | Annotated[ProfilesByBits, Tag("<generate/bits>")]
    | Annotated[ProfilesFromDisk, Tag("<disk>")]
    | Annotated[ProfilesFromHub, Tag("<hub>")]
    | Annotated[RandomPairs, Tag("<pairs>")]
    | Annotated[RandomStrings, Tag("<strings>")],
    Discriminator(_profiles_kind),
]
