"""The dataset card (README.md) of a saved population: schema, code length in bits, and how to load it."""

import json

from raycap.facts.entropy import fact_bits, name_set_bits
from raycap.facts.profiles import Profiles, Schema, census_schema
from raycap.spec import NUM_CENSUS_FIRST_NAMES, NUM_CENSUS_LAST_NAMES, NamePools, RelationStructure, SelectionScheme

SIZE_CATEGORIES = {10**3: "n<1K", 10**4: "1K<n<10K", 10**5: "10K<n<100K", 10**6: "100K<n<1M", 10**7: "1M<n<10M"}


def size_category(num_rows: int) -> str:
    """Return the category of the number of rows of a dataset on the hub."""
    return next((name for bound, name in SIZE_CATEGORIES.items() if num_rows < bound), "n>10M")


def card(profiles: Profiles, *, source: str, path: str, fingerprint: str, description: str) -> str:
    """Return the README.md of a dataset.

    `source` and `path` are the fields of `profiles` in a spec that loads it; `description` is the section on its origin.
    """
    schema, num_profiles = profiles.schema, profiles.num_profiles
    pools = " x ".join(f"{len(pool):,}" for pool in schema.name_pools)
    bio = "\n| `bio` | string | a text about the person |" if profiles.bios is not None else ""
    relations = ", ".join(f"`{relation}`" for relation in schema.relations)
    relation_rows = (
        f"\n| {relations} | struct of name and index | the related person; null if there is none |" if relations else ""
    )
    return f"""---
license: mit
language:
- en
task_categories:
- question-answering
size_categories:
- {size_category(num_profiles)}
tags:
- synthetic
- raycap
---
# {num_profiles:,} synthetic people

Random facts of known code length, for measuring how many bits a language model stores. All people and facts are synthetic.

- **N = {num_profiles:,}** people with distinct full names: first, middle and last names from pools of {pools}.
- **R = {len(schema.relations)}** relations, {_how_drawn(schema.structure, schema.self_relations)}.

| column | type | content |
|---|---|---|
| `name` | string | first, middle and last name |
| `index` | int32 | row number, from 0 |
{_attribute_rows(schema)}{relation_rows}{bio}

## Code length

{_code_length(profiles)}

## How it was made

```
{description.strip()}
```

## How to load it

In a raycap spec:

```yaml
profiles:
  source: {source}
  path: {json.dumps(path)}
  structure: {schema.structure}
  self_relations: {json.dumps(schema.self_relations)}{_pools(schema)}
  fingerprint: {fingerprint}
```
"""


def _attribute_rows(schema: Schema) -> str:
    """Return the rows of the table that describe the attributes."""
    rows = []
    for attribute, known in zip(schema.attributes, census_schema(NamePools(), 0).attributes, strict=True):
        kind, content = "string", f"drawn uniformly from {len(known.values)} values"
        if attribute.name == "birth_date":
            kind, content = (
                "timestamp[s]",
                "uniform over the days from 1900-01-01 to 2099-12-30; days above 28 become 28",
            )
        if attribute.values != known.values or (attribute.weights != known.weights).any():
            content = f"{len(attribute.values):,} values with an entropy of {attribute.entropy_bits:.2f} bits"
        rows.append(f"| `{attribute.name}` | {kind} | {content} |")
    return "\n".join(rows)


def _pools(schema: Schema) -> str:
    """Return the line `names: {...}` of the spec if the pools are prefixes of the census lists, else ""."""
    first, middle, last = map(len, schema.name_pools)
    if max(first, middle) > NUM_CENSUS_FIRST_NAMES or last > NUM_CENSUS_LAST_NAMES:
        return ""
    pools = NamePools(first=first, middle=middle, last=last)
    if pools == NamePools() or census_schema(pools, 0).name_pools != schema.name_pools:
        return ""
    return f"\n  names: {pools.model_dump_json()}"


def _how_drawn(structure: RelationStructure, self_relations: bool) -> str:
    uniform = f"an independent uniform draw over all {'people' if self_relations else 'other people'}"
    if structure is RelationStructure.UNIFORM:
        return f"each {uniform}"
    return (
        f"bipartite: parent and child are inverse bijections between two halves of the people, best_friend and "
        f"worst_enemy are perfect matchings, every other relation is {uniform}"
    )


def _code_length(profiles: Profiles) -> str:
    """Return a table of the bits of the names (as a set and as a list), of each subject, and of the whole dataset."""
    names = {selection: name_set_bits(profiles.facts, selection) for selection in SelectionScheme}
    as_set, as_list = names[SelectionScheme.SET], names[SelectionScheme.ENUMERATE]
    subjects = fact_bits(profiles.facts, SelectionScheme.SET)
    facts = sum(subjects.values())
    rows = {
        "names as a set, log2 C(M, N)": as_set,
        "names as a list, N log2 M": as_list,
        **{f"`{subject}`": bits for subject, bits in subjects.items()},
        "total, names as a set": as_set + facts,
        "total, names as a list": as_list + facts,
    }
    return "\n".join(["| part | bits |", "|---|---:|", *(f"| {part} | {bits:,.1f} |" for part, bits in rows.items())])
