"""Random key-value pairs and random strings, whose code length is the same under every encoding scheme."""

import numpy as np

from raycap.facts.profiles import Attribute, Profiles, Schema
from raycap.spec import RandomPairs, RandomStrings


def pairs(spec: RandomPairs) -> Profiles:
    """Generate N keys with R uniform values each: N R log2(num_values) bits.

    A key has three parts that count in base b, the smallest b with b^3 >= N, like the digits of a number.
    """
    rng = np.random.default_rng([spec.seed, *b"pairs"])
    schema = pairs_schema(spec)
    keys = np.stack(np.unravel_index(np.arange(spec.num_keys), [len(pool) for pool in schema.name_pools]), axis=1)
    drawn = rng.integers(spec.num_values, size=(spec.num_keys, spec.num_relations), dtype=np.int32)
    return Profiles(schema, keys.astype(np.int32), drawn, np.empty((spec.num_keys, 0), np.int32))


def pairs_schema(spec: RandomPairs) -> Schema:
    """Return the schema of random key-value pairs."""
    base = next(b for b in range(1, spec.num_keys + 1) if b**3 >= spec.num_keys)
    pools = tuple(tuple(f"{part}{digit}" for digit in range(base)) for part in "ABC")
    values = tuple(f"V{value}" for value in range(spec.num_values))
    relations = tuple(Attribute.uniform(f"relation_{r + 1}", values) for r in range(spec.num_relations))
    return Schema(pools, relations, (), names_given=True)


def strings(spec: RandomStrings) -> Profiles:
    """Generate N names of S uniform parts each, without attributes and relations: N S log2 V bits."""
    rng = np.random.default_rng([spec.seed, *b"strings"])
    drawn = rng.integers(spec.vocab_size, size=(spec.num_strings, spec.length), dtype=np.int32)
    none = np.empty((spec.num_strings, 0), np.int32)
    return Profiles(strings_schema(spec), drawn, none, none)


def strings_schema(spec: RandomStrings) -> Schema:
    """Return the schema of random strings."""
    pool = tuple(f"T{token}" for token in range(spec.vocab_size))
    return Schema((pool,) * spec.length, (), ())
