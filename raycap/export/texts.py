"""Writing of all texts of a trial as JSON lines with a card, in a folder that `datasets.load_dataset` reads."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

import numpy as np

from raycap.export.hub import CARD_FILE, atomic_export
from raycap.facts.build import corpora_of, populations_of
from raycap.facts.corpus import END, SPLITS, TRAIN, VOID, Corpus, Ids, render_pieces, trained_mask
from raycap.spec import Kind, ProfilesFromTable, Split, TrialSpec

IDS_PER_CHUNK = 20_000
"""Number of texts that are rendered at a time, which limits memory."""

NumTexts = dict[tuple[Kind, Split], int]
"""Numbers of texts by kind and split."""


def save_texts(spec: TrialSpec, target: Path, *, description: str, force: bool = False) -> NumTexts:
    """Write every text of a resolved trial to a new folder, and return the numbers of texts.

    There is a file for every kind and split: `train` has the training texts, the others questions that are held out, by
    the component that is held out. A row has the number of the population (1 for the second one of `fill`), the id of the
    text, its beginning whose loss is not measured, `prompt`, and the rest, `completion`, both without end tokens.

    Args:
        spec: The resolved trial.
        target: The folder, which must not exist or be empty.
        description: Section of the card on how the texts were made.
        force: Replace an earlier export.

    Raises:
        FileExistsError: The folder is not empty.
        ValueError: The population cannot be loaded, or cannot yield the texts.
    """
    counts: Counter[tuple[Kind, Split]] = Counter()
    with atomic_export(target, force=force) as folder, ExitStack() as stack:
        files: dict[tuple[Kind, Split], TextIO] = {}
        for population, profiles in enumerate(populations_of(spec)):
            for corpus in corpora_of(profiles, spec.questions):
                for split, ids in _ids_by_split(corpus):
                    key = corpus.kind, split
                    if key not in files:
                        path = folder / _path(*key)
                        path.parent.mkdir(parents=True, exist_ok=True)
                        files[key] = stack.enter_context(path.open("w", encoding="utf-8"))
                    for text_id, (prompt, completion) in zip(ids.tolist(), _parts(corpus, ids), strict=True):
                        row = {"population": population, "id": text_id, "prompt": prompt, "completion": completion}
                        files[key].write(json.dumps(row, ensure_ascii=False) + "\n")
                    counts[key] += len(ids)
        stack.close()
        order = sorted(counts, key=lambda key: (list(Kind).index(key[0]), list(Split).index(key[1])))
        num_texts = {key: counts[key] for key in order}
        card = _card(num_texts, target.name, description, of_table=isinstance(spec.profiles, ProfilesFromTable))
        (folder / CARD_FILE).write_text(card, encoding="utf-8")
    return num_texts


def _path(kind: Kind, split: Split) -> str:
    return f"{kind}/{split}.jsonl"


def _ids_by_split(corpus: Corpus) -> Iterator[tuple[Split, Ids]]:
    """Yield the ids of a corpus in chunks of one split each, in ascending order within a split."""
    for begin in range(0, corpus.num_ids, IDS_PER_CHUNK):
        ids = np.arange(begin, min(begin + IDS_PER_CHUNK, corpus.num_ids))
        if corpus.split_codes is None:
            yield Split.TRAIN, ids
            continue
        codes = corpus.split_codes[ids]
        codes = np.where(trained_mask(corpus.kind, codes), TRAIN, codes)
        for code in np.unique(codes[codes != VOID]).tolist():
            yield SPLITS[code], ids[codes == code]


def _parts(corpus: Corpus, ids: Ids) -> Iterator[tuple[str, str]]:
    """Yield the prompt and the completion of some texts."""
    pieces, is_measured = render_pieces(corpus, ids)
    first = is_measured.argmax(axis=0).tolist()
    for number, text in zip(first, zip(*pieces, strict=True), strict=True):
        prompt, completion = ("".join(part).replace(END, "") for part in (text[:number], text[number:]))
        yield prompt, completion


def _card(num_texts: NumTexts, name: str, description: str, *, of_table: bool) -> str:
    """Return the README.md of the folder, whose first section lets `load_dataset` find the files of every kind.

    `of_table` states that the facts are those of a table, which has a license and a language of its own.
    """
    metadata, title, origin = "license: mit\nlanguage:\n- en\ntags:\n- synthetic", "Texts about synthetic people", ""
    if of_table:
        metadata, title = "tags:", "Texts about the facts of a table"
    else:
        origin = " All people and facts are synthetic."
    kinds = list(dict.fromkeys(kind for kind, _ in num_texts))
    configs = [
        "\n".join(
            [f"- config_name: {kind}", "  data_files:"]
            + [f"  - split: {split}\n    path: {_path(kind, split)}" for each, split in num_texts if each is kind]
        )
        for kind in kinds
    ]
    rows = "\n".join(f"| `{kind}` | `{split}` | {num:,} |" for (kind, split), num in num_texts.items())
    return f"""---
{metadata}
- raycap
configs:
{chr(10).join(configs)}
---
# {title}

All texts of one trial of raycap, one JSON object per line.{origin}

| kind | split | texts |
|---|---|---|
{rows}

| field | content |
|---|---|
| `population` | 0, or 1 for the second population of a `fill` trial |
| `id` | id of the text among those of its kind and population |
| `prompt` | the beginning of the text, whose loss is not measured |
| `completion` | the rest of the text |

`train` has the training texts. Other splits have questions that are never trained, because the component of which they are
named is held out. A text is `prompt` and `completion` without a space between them. In training, an end token follows.

```python
from datasets import load_dataset

texts = load_dataset({json.dumps(name)}, {json.dumps(str(kinds[-1]))}, split="train")
```

## How they were made

```
{description.strip()}
```
"""
