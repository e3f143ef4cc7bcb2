"""The dataset card (README.md) of a saved table: its columns, how each is priced, and how to load it."""

import json

from raycap.export.dataset_card import size_category
from raycap.facts.prices import priced_subjects
from raycap.facts.profiles import Profiles
from raycap.spec import ProfilesFromTable

NAME_COLUMN = "name"
"""Column of the names in a saved table. No subject may have this name."""


def table_card(profiles: Profiles, spec: ProfilesFromTable, *, path: str, fingerprint: str) -> str:
    """Return the README.md of a table that is saved as a Parquet file at `path`."""
    rows = [
        f"| `{row.subject}` | {row.distribution} | {row.num_facts:,} | {row.bits_per_fact:.3f} | {row.total_bits:,.1f} | "
        f"{f'{row.frequencies_bits:,.1f}' if row.frequencies_bits else '–'} |"
        for row in priced_subjects(profiles.facts)
    ]
    loaded = spec.model_dump(mode="json", exclude_defaults=True) | {
        "path": path,
        "name": NAME_COLUMN,
        "relations": {relation: relation for relation in spec.relations},
        "fingerprint": fingerprint,
    }
    return f"""---
task_categories:
- question-answering
size_categories:
- {size_category(profiles.num_profiles)}
tags:
- raycap
---
# A table of {profiles.num_profiles:,} names

Facts with a declared code length, for measuring how many bits a language model stores. The column `{NAME_COLUMN}` has the
names, and every other column the facts about one subject. A relation holds the name of another row. Missing values are
null.

## Code length

| subject | distribution | facts | bits per fact | bits | bits to state the frequencies |
|---|---|---:|---:|---:|---:|
{chr(10).join(rows)}

The bits of the names are those of a list. An empirical distribution consists of the frequencies in the table, which are
taken as known; the bits that state them are not part of the code length.

## How to load it

In a raycap spec:

```yaml
profiles: {json.dumps(loaded, indent=2, ensure_ascii=False)}
```
"""
