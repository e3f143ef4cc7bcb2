"""Random key-value pairs and random strings, whose code length is the same under every encoding scheme."""

import numpy as np

from raycap.facts.profiles import Attribute, Profiles, Schema
from raycap.spec import RandomPairs, RandomStrings


def pairs(spec: RandomPairs) -> Profiles:
    """Generate N keys with R uniform values each: N R log2(num_values) bits.

    A key has three parts that count in base b, the smallest b with b^3 >= N, like the digits of a number.
    """
    rng = np.random.default_rng([spec.seed, *b"pairs"])
    base = next(b for b in range(1, spec.num_keys + 1) if b**3 >= spec.num_keys)
    pools = tuple(tuple(f"{part}{digit}" for digit in range(base)) for part in "ABC")
    keys = np.stack(np.unravel_index(np.arange(spec.num_keys), (base, base, base)), axis=1)
    values = tuple(f"V{value}" for value in range(spec.num_values))
    relations = tuple(Attribute.uniform(f"relation_{r + 1}", values) for r in range(spec.num_relations))
    drawn = rng.integers(spec.num_values, size=(spec.num_keys, spec.num_relations), dtype=np.int32)
    schema = Schema(pools, relations, (), names_given=True)
    return Profiles(schema, keys.astype(np.int32), drawn, np.empty((spec.num_keys, 0), np.int32))


def strings(spec: RandomStrings) -> Profiles:
    """Generate N names of S uniform parts each, without attributes and relations: N S log2 V bits."""
    rng = np.random.default_rng([spec.seed, *b"strings"])
    pool = tuple(f"T{token}" for token in range(spec.vocab_size))
    drawn = rng.integers(spec.vocab_size, size=(spec.num_strings, spec.length), dtype=np.int32)
    none = np.empty((spec.num_strings, 0), np.int32)
    return Profiles(Schema((pool,) * spec.length, (), ()), drawn, none, none)
