"""Specs of the data: generated and loaded populations, random pairs and random strings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator

from raycap.spec.base import EncodingScheme, RelationStructure, Seed, SelectionScheme, Spec, Text, broken_rule
from raycap.spec.frequencies import Population
from raycap.spec.locations import HubName, LocalLocation
from raycap.spec.tables import LoadedProfiles, ProfilesFromTable

NUM_RELATIONS_KNOWN = 17
"""Length of `facts.names.RELATIONS`."""
NUM_ATTRIBUTES = 4
"""Number of attributes of every generated person (`facts.profiles.census_schema`)."""
NUM_CENSUS_FIRST_NAMES = 5_163
NUM_CENSUS_LAST_NAMES = 88_799
MAX_PEOPLE = 10_000_000
"""Largest number of people in a population."""
MAX_DRAWN = 100_000_000
"""Largest total number of random values or tokens, because `plan` already draws them."""


class NamePools(Spec):
    """Sizes of the pools of first, middle and last names that full names are drawn from.

    A pool consists of the most frequent names of the 1990 US census. The number of possible names M is the product of
    the three sizes. It sets the bits per name, log2 M, which is 41.11 for the default of all names. Smaller pools make
    names cheaper and give the word tokenizer a smaller vocabulary.
    """

    first: int = Field(default=NUM_CENSUS_FIRST_NAMES, ge=1, le=NUM_CENSUS_FIRST_NAMES)
    """Number of first names."""
    middle: int = Field(default=NUM_CENSUS_FIRST_NAMES, ge=1, le=NUM_CENSUS_FIRST_NAMES)
    """Number of middle names. They come from the list of first names."""
    last: int = Field(default=NUM_CENSUS_LAST_NAMES, ge=1, le=NUM_CENSUS_LAST_NAMES)
    """Number of last names."""

    @property
    def num_names(self) -> int:
        """M, the number of possible full names."""
        return self.first * self.middle * self.last


class GeneratedProfiles(Population):
    """Fields of all generated populations."""

    source: Literal["generate"] = "generate"
    """Generate the people from `seed`."""
    num_relations: int = Field(default=4, ge=0, le=NUM_RELATIONS_KNOWN)
    """R, the number of relations of each person. The first R of a fixed list of 17 are used: parent, child,
    best_friend, worst_enemy, sibling, spouse, and so on. More relations mean more facts per person and, with two-hop
    questions, R times as many questions."""
    structure: RelationStructure = RelationStructure.UNIFORM
    """Distribution of the relations."""
    self_relations: bool = True
    """Whether a uniform relation may lead from a person to that same person. False reduces the entropy of an answer
    from log2 N to log2(N - 1) bits."""
    names: NamePools = NamePools()
    """Pools that full names are drawn from, uniformly and without replacement."""
    seed: Seed = 0
    """Random seed of the names, attributes and relations. Vary it to measure the spread over populations."""


class ProfilesByCount(GeneratedProfiles):
    """A generated population with a given number of people."""

    num_profiles: int = Field(default=1000, ge=1, le=MAX_PEOPLE)
    """N, the number of people. It sets the amount of information to learn: capacities can only be read from trials
    whose population is too large for the model to learn completely."""

    @field_validator("num_profiles")
    @classmethod
    def _names_suffice(cls, num_profiles: int, info: Any) -> int:
        pools = info.data.get("names")
        if pools is not None and num_profiles > pools.num_names:
            raise broken_rule(
                "{n} people need {n} distinct full names, but the pools allow only {m}; increase profiles.names or "
                "decrease num_profiles",
                n=num_profiles,
                m=pools.num_names,
            )
        if num_profiles % 2 and info.data.get("structure") is RelationStructure.BIPARTITE:
            raise broken_rule(
                "bipartite relations need an even number of people, got {n}; use {m}",
                n=num_profiles,
                m=num_profiles + 1,
            )
        if num_profiles == 1 and not info.data.get("self_relations", True):
            raise broken_rule(
                "a single person can only be related to themselves; set self_relations: true or increase num_profiles"
            )
        return num_profiles


class SolvedProfiles(GeneratedProfiles):
    """Fields of the generated populations whose size `plan` solves for."""

    scheme: EncodingScheme = EncodingScheme.OPTIMAL
    """Encoding scheme in which the code length is computed."""
    selection: SelectionScheme = SelectionScheme.ENUMERATE
    """Selection scheme in which the code length is computed."""


class ProfilesByBits(SolvedProfiles):
    """A generated population whose size is chosen to reach a given code length."""

    target_bits: float = Field(gt=0, le=1e9)
    """Largest code length of the population in bits. `plan` solves for the largest number of people (an even number if
    structure is bipartite) whose facts, as far as the questions ask for them, have at most this code length."""


class ProfilesByBitsPerParam(SolvedProfiles):
    """A generated population whose size follows the number of parameters of the model."""

    bits_per_param: float = Field(gt=0, le=1000)
    """Largest code length of the population in bits per parameter of the model, embeddings included. `plan` solves for the
    largest number of people as with target_bits. Larger models get more people to learn."""


class HostedProfiles(Population, LoadedProfiles):
    """Fields of populations in the schema of hosted datasets."""

    names: NamePools | None = None
    """Pools that the names were drawn from, which the data do not state. The default is the complete census lists if the
    names may have been drawn from them, otherwise the name parts that occur (docs/science.md#loaded). Set it if the data
    were generated from smaller pools."""
    structure: RelationStructure = RelationStructure.UNIFORM
    """Distribution that the relations were drawn from. The data are checked to be possible under it."""
    self_relations: bool = True
    """Whether a relation may lead from a person to that same person. If false, the data are checked to contain no such
    relation."""


class ProfilesFromDisk(HostedProfiles):
    """A population loaded from a file or folder in the schema of hosted datasets."""

    source: Literal["disk"]
    """Load the people from `path`."""
    path: LocalLocation
    """Path of a Parquet file or of a folder written by `datasets.Dataset.save_to_disk`. A path in the form file:///...
    states that every machine of the cluster has the file at that path."""


class ProfilesFromHub(HostedProfiles):
    """A population loaded from a dataset on the Hugging Face Hub."""

    source: Literal["hub"]
    """Load the people from the dataset `path` on the Hugging Face Hub."""
    path: HubName
    """Name of the dataset on the Hub, in the form owner/name. A local folder of that name is not read."""
    split: Text = "train"
    """Split of the dataset to load."""
    revision: Text = "main"
    """Commit, tag or branch of the dataset. Set a commit to make the data reproducible."""


class RandomPairs(Population):
    """Random key-value pairs: N R log2(num_values) bits that every encoding scheme counts equally.

    Keys take the role of names. All possible keys occur, so storing them costs no bits. Use pairs to measure a model's
    capacity without assuming an encoding scheme. See docs/science.md#random-data.
    """

    source: Literal["pairs"]
    """Generate random pairs from `seed`."""
    num_keys: int = Field(default=1000, ge=1, le=10_000_000)
    """N, the number of keys."""
    num_relations: int = Field(default=4, ge=1, le=100)
    """R, the number of values of each key."""
    num_values: int = Field(default=256, ge=2, le=65_536)
    """Number of possible values, all equally likely. Each pair carries log2 of this number of bits."""
    seed: Seed = 0
    """Random seed of the values."""

    @field_validator("num_relations")
    @classmethod
    def _can_be_drawn(cls, num_relations: int, info: Any) -> int:
        num_keys = info.data.get("num_keys", 0)
        if num_keys * num_relations > MAX_DRAWN:
            raise broken_rule(
                "{n} keys with {r} values each exceed {most} values in total; decrease num_keys or num_relations",
                n=f"{num_keys:,}",
                r=num_relations,
                most=f"{MAX_DRAWN:,}",
            )
        return num_relations


class RandomStrings(Population):
    """Random strings of tokens that are drawn independently and uniformly: N S log2 V bits (arXiv 2505.24832, section
    3)."""

    source: Literal["strings"]
    """Generate random strings from `seed`."""
    num_strings: int = Field(default=1000, ge=1, le=10_000_000)
    """N, the number of strings."""
    vocab_size: int = Field(default=2048, ge=2, le=65_536)
    """V, the number of different tokens. Each token carries log2 V bits."""
    length: int = Field(default=64, ge=1, le=511)
    """S, the number of tokens in each string."""
    seed: Seed = 0
    """Random seed of the strings."""

    @field_validator("length")
    @classmethod
    def _strings_differ(cls, length: int, info: Any) -> int:
        num_strings, vocab_size = info.data.get("num_strings"), info.data.get("vocab_size")
        if num_strings and num_strings * length > MAX_DRAWN:
            raise broken_rule(
                "{n} strings of {s} tokens exceed {most} tokens in total; decrease num_strings or length",
                n=f"{num_strings:,}",
                s=length,
                most=f"{MAX_DRAWN:,}",
            )
        if num_strings and vocab_size and vocab_size**length < 1_000_000 * num_strings:
            raise broken_rule(
                "{n} strings of {s} tokens out of {v} are too likely to repeat; increase length or vocab_size",
                n=num_strings,
                s=length,
                v=vocab_size,
            )
        return length


_TAGS: dict[type, str] = {
    ProfilesByCount: "<generate>",
    ProfilesByBits: "<generate/bits>",
    ProfilesByBitsPerParam: "<generate/bits_per_param>",
    ProfilesFromDisk: "<disk>",
    ProfilesFromHub: "<hub>",
    ProfilesFromTable: "<table>",
    RandomPairs: "<pairs>",
    RandomStrings: "<strings>",
}


def _profiles_kind(value: Any) -> str:
    if isinstance(value, BaseModel):
        return _TAGS.get(type(value), "<none>")
    fields = value if isinstance(value, dict) else {}
    source = fields.get("source", "generate")
    if source == "generate" and "target_bits" in fields:
        return "<generate/bits>"
    return "<generate/bits_per_param>" if source == "generate" and "bits_per_param" in fields else f"<{source}>"


ProfilesSpec = Annotated[
    Annotated[ProfilesByCount, Tag("<generate>")]
    | Annotated[ProfilesByBits, Tag("<generate/bits>")]
    | Annotated[ProfilesByBitsPerParam, Tag("<generate/bits_per_param>")]
    | Annotated[ProfilesFromDisk, Tag("<disk>")]
    | Annotated[ProfilesFromHub, Tag("<hub>")]
    | Annotated[ProfilesFromTable, Tag("<table>")]
    | Annotated[RandomPairs, Tag("<pairs>")]
    | Annotated[RandomStrings, Tag("<strings>")],
    Discriminator(_profiles_kind),
]
