"""The data path: populations, splits, composed rows against tokenised text, memory, and the stream of Ray Data.

    python tests/benchmarks/data_path.py [--only people rows memory stream wait] [--json]

Each part runs in a separate process with one thread, tokenizers included. The two sides of a ratio run in turns and
produce the same rows, which is checked: token ids and positions of labels are equal. Composing produces 200,000 rows, in
batches of the size that training reads, because a CPU cache would hold the 8,192 rows that are tokenised from text. From
text means: render the texts, tokenise them in one call, copy the ids into an array, and search all rows for the tokens of
"? Answer:" to find the measured tokens. Times are CPU seconds, those of the stream wall seconds; medians of REPEATS runs.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import child, machine, planned, set_threads, show, table

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

    from raycap.facts.corpus import Corpus, Ids
    from raycap.tokens.rows import RowSource

SPECS = Path(__file__).resolve().parents[2] / "sweeps" / "specs"
REPEATS = 7
NUM_ROWS, NUM_ROWS_TEXT = 200_000, 8_192
STREAM_STEPS, STREAM_WARM_UP = 40_000, 8_000
MEMORY_STEPS = 300
WAIT_STEPS, WAIT_WARM_UP = 4_000, 400


def measured(what: str, unit: str, value: float, text: float | None = None, target: str = "") -> dict[str, Any]:
    """One line of the result. `target`, such as ">= 500", refers to the ratio if there are two sides."""
    ratio = None if text is None else value / text
    return {"what": what, "unit": unit, "value": value, "from_text": text, "ratio": ratio, "target": target}


def seconds(*sides: Callable[[], object]) -> list[float]:
    """Median CPU time of each function; the functions run in turns."""
    times: list[list[float]] = [[] for _ in sides]
    for _ in range(REPEATS):
        for side, took in zip(sides, times, strict=True):
            began = time.process_time()
            side()
            took.append(time.process_time() - began)
    return [statistics.median(took) for took in times]


def peak_gb() -> float:
    """Peak memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def people() -> list[dict[str, Any]]:
    """Time of profiles and of all seven splits at N = 50,000 and R = 17; leaks into training; accuracy of the mix."""
    from raycap.facts.corpus import SPLITS, TRAIN
    from raycap.facts.order import Mix, Order
    from raycap.facts.profiles import census_schema, generate
    from raycap.facts.questions import Questions
    from raycap.facts.splits import codes
    from raycap.spec import NamePools
    from raycap.spec.file import load_sweep

    schema = census_schema(NamePools(), 17)
    held_out = load_sweep(str(SPECS / "two_hop.yaml")).points[0].trial.questions.held_out
    (took,) = seconds(lambda: generate(schema, 100_000, seed=0))
    found = [measured("100,000 profiles with 17 relations", "s", took)]
    profiles, before = generate(schema, 50_000, seed=0), peak_gb()
    (took,) = seconds(lambda: codes(profiles, held_out, 2))
    found.append(measured("splits of 17,850,000 two-hop tuples", "s", took))
    found.append(measured("splits, most memory", "GB", peak_gb() - before))
    corpus = Questions(profiles, 2, held_out=held_out)
    assert corpus.split_codes is not None
    trained = np.flatnonzero(corpus.split_codes == TRAIN)
    epoch, _ = Order((len(trained),), (2,), (Mix(0, (1.0,)),), 1, 0).indices(range(len(trained)))
    leaked = int(np.count_nonzero(corpus.split_codes[trained[epoch[0]]] != TRAIN))
    found.append(measured("held-out questions in one epoch of training", "", leaked, target="<= 0"))
    shares = np.bincount(corpus.split_codes, minlength=len(SPLITS)) / corpus.num_ids
    found += [measured(f"share of {split}", "", share) for split, share in zip(SPLITS, shares.tolist(), strict=True)]
    declared = (1 / 11, 6 / 11, 4 / 11)
    _, counts = Order((100_000, 700_000, 900_000), (1, 2, 3), (Mix(0, declared),), 512, 0).indices(range(1_000))
    worst = float(np.abs(counts.sum(axis=0) / counts.sum() - declared).max())
    return [*found, measured("mix 1 : 6 : 4 of hops, largest difference in 512,000 rows", "", worst, target="<= 1e-5")]


def from_text(
    corpus: Corpus, tokenizer: Tokenizer, ids: Ids, length: int
) -> tuple[NDArray[np.uint16], NDArray[np.bool_]]:
    """Token ids and mask of measured tokens, each (n, length). A row without "? Answer:" has no measured tokens."""
    from raycap.facts.corpus import render_texts
    from raycap.facts.wordings import PROMPT_END

    encodings = tokenizer.encode_batch_fast(render_texts(corpus, ids), add_special_tokens=False)
    tokens = [encoding.ids for encoding in encodings]
    lengths = np.fromiter(map(len, tokens), np.int32, len(tokens))
    columns = np.arange(length)
    is_token = columns < lengths[:, None]
    input_ids = np.zeros(is_token.shape, np.uint16)
    input_ids[is_token] = np.fromiter(chain.from_iterable(tokens), np.uint16, lengths.sum())
    marker = tokenizer.encode(PROMPT_END, add_special_tokens=False).ids
    shifted = [input_ids[:, offset : length - len(marker) + offset] == token for offset, token in enumerate(marker)]
    matches = np.logical_and.reduce(shifted)
    begins = np.where(matches.any(axis=1), matches.argmax(axis=1) + len(marker), length)
    return input_ids, is_token & (columns >= begins[:, None])


def compared(name: str, corpus: Corpus, target: str = "") -> list[dict[str, Any]]:
    """Speed of composing rows of a corpus against tokenising its texts, after checking that the rows are equal."""
    from raycap.facts.questions import Questions
    from raycap.spec import BpeTokenizer
    from raycap.tokens.composer import Composer
    from raycap.tokens.rows import ROWS_AT_ONCE
    from raycap.tokens.tokenizers import build_tokenizer

    tokenizer = build_tokenizer(BpeTokenizer(kind="bpe", vocab_size=3000), (corpus,))
    composer = Composer.build(corpus, tokenizer)
    length, began = composer.row_length, time.process_time()
    composer.compose(np.arange(1), length)  # the first call joins the tokens of all pieces
    joining = time.process_time() - began
    ids = np.random.default_rng(0).integers(corpus.num_ids, size=NUM_ROWS)
    parts = [ids[begin : begin + ROWS_AT_ONCE] for begin in range(0, NUM_ROWS, ROWS_AT_ONCE)]
    few = ids[:NUM_ROWS_TEXT]
    rows, (tokens, mask) = composer.compose(few, length), from_text(corpus, tokenizer, few, length)
    assert np.array_equal(rows.input_ids, tokens)
    assert not isinstance(corpus, Questions) or np.array_equal(rows.labels > 0, mask)

    def compose_all() -> None:
        for part in parts:
            composer.compose(part, length)

    composed, text = seconds(compose_all, lambda: from_text(corpus, tokenizer, few, length))
    num, num_text = (int(composer.lengths(some)[0].sum()) for some in (ids, few))
    return [
        measured(f"{name}, rows", "tokens/s", num / composed, num_text / text, target),
        measured(f"{name}, joining their pieces, once", "s", joining),
    ]


def rows() -> list[dict[str, Any]]:
    """Composing against text for 10,000 people with 17 relations (4 for biographies) and all names of the census."""
    from raycap.facts.biographies import BiographyCorpus
    from raycap.facts.profiles import census_schema, generate
    from raycap.facts.questions import Questions
    from raycap.spec import Biographies, NamePools

    many, few = (generate(census_schema(NamePools(), relations), 10_000, seed=0) for relations in (17, 4))
    return [
        *compared("one-hop", Questions(many, 1), ">= 1000"),
        *compared("two-hop", Questions(many, 2), ">= 500"),
        *compared("three-hop", Questions(many, 3)),
        *compared("two-hop with chains", Questions(many, 2, chain_of_thought=True)),
        *compared("biographies", BiographyCorpus(few, Biographies(kind="biographies", per_person=3))),
    ]


def source_of(spec_name: str, num_steps: int, *overrides: str) -> RowSource:
    """Rows of the first trial of a spec in training order."""
    from raycap.facts.build import populations_of
    from raycap.facts.order import Mix
    from raycap.spec.file import load_sweep
    from raycap.tokens.rows import RowSource
    from raycap.tokens.training_data import TrainingData

    spec = load_sweep(str(SPECS / spec_name), overrides).points[0].trial
    data = TrainingData.of(spec, populations_of(spec))
    return RowSource(data.composers, data.order((Mix(0, data.shares()),)), num_steps, 0, 1)


def memory() -> list[dict[str, Any]]:
    """Memory and time of one- and two-hop questions about 50,000 people with 17 relations and all seven splits."""
    import raycap.spec.file
    import raycap.tokens.rows
    import raycap.tokens.training_data  # noqa: F401

    before, began = peak_gb(), time.process_time()
    people = ("trial.profiles.num_profiles=50000", "trial.training.batch_size=512")
    source = source_of("two_hop.yaml", MEMORY_STEPS, *people)
    (num_rows,) = {len(step) for step in source.rows_from(0)}
    what = f"50,000 people, all held out, {MEMORY_STEPS} steps of {num_rows}"
    return [
        measured(f"{what}: memory", "GB", peak_gb() - before, target="<= 1"),
        measured(f"{what}: time", "s", time.process_time() - began),
    ]


def stream() -> list[dict[str, Any]]:
    """Speed of the demo's rows in process and through Ray Data, where one consumer converts token ids to 64 bits."""
    from dataclasses import replace

    from raycap.cluster.connection import ray_session
    from raycap.cluster.data_stream import ray_rows
    from raycap.tokens.rows import rows_of

    source = source_of("grid.yaml", STREAM_STEPS)
    other = replace(source, order=replace(source.order, seed=1))
    tokens = source.composers[0].token_counts.mean * source.rows_per_step
    list(source.rows_from(STREAM_STEPS - STREAM_WARM_UP))
    (took,) = seconds(lambda: sum(1 for _ in rows_of((source,), STREAM_STEPS - STREAM_WARM_UP)))
    found = [measured("demo, rows of a step of 256, plain", "us", took / STREAM_WARM_UP * 1e6)]

    def steady(*sources: RowSource) -> tuple[float, float]:
        """Tokens per second of all sources after the warm-up, and CPU time per step in the consuming process."""
        for step, rows in enumerate(ray_rows(sources, 0, num_cpus=0.25)):
            if step == STREAM_WARM_UP:
                began, cpu_began = time.perf_counter(), time.process_time()
            for of_source in rows:
                of_source.input_ids.astype(np.int64)
        num, wall, cpu = step - STREAM_WARM_UP, time.perf_counter() - began, time.process_time() - cpu_began
        return num * tokens * len(sources) / wall, cpu / num

    with ray_session():
        for name, sources, target in (
            ("demo, Ray Data's stream", (source,), ">= 2e7"),
            ("demo, two replicas of one order", (source, source), ""),
            ("demo, two replicas", (source, other), ""),
        ):
            rates, costs = zip(*(steady(*sources) for _ in range(REPEATS)), strict=True)
            found.append(measured(name, "tokens/s", statistics.median(rates), target=target))
            found.append(measured(f"{name}, a step in the consumer", "us", statistics.median(costs) * 1e6))
    return found


def wait() -> list[dict[str, Any]]:
    """Share of a training step of the demo's largest model that is spent waiting for Ray Data, after the warm-up."""
    from raycap.cluster.connection import ray_session
    from raycap.cluster.data_stream import ray_rows
    from raycap.learner.trial import run_trial
    from raycap.tokens.composer import Rows

    set_threads(1)
    waits: list[float] = []

    def timed(sources: tuple[RowSource, ...], start_step: int) -> Iterator[list[Rows]]:
        stream = ray_rows(sources, start_step, num_cpus=0.25)
        while True:
            began = time.perf_counter()
            rows = next(stream, None)
            waits.append(time.perf_counter() - began)
            if rows is None:
                return
            yield rows

    spec = planned("demo", f"trial.training.length={{steps: {WAIT_STEPS}}}").spec
    with ray_session():
        final = run_trial(spec, source_commit="benchmark", open_rows=timed).result.final
    steady = waits[WAIT_WARM_UP:]
    share = sum(steady) / len(steady) / (final.train_seconds / WAIT_STEPS)
    name = f"demo, waiting for Ray Data, steps {WAIT_WARM_UP:,} to {WAIT_STEPS:,}"
    return [measured(name, "% of a step", 100 * share, target="<= 5")]


PARTS = {part.__name__: part for part in (people, rows, memory, stream, wait)}


def main() -> None:
    """Measure each part in a separate process, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(PARTS[arguments.part]()))
        return
    found: dict[str, Any] = {"machine": machine()}
    found["measured"] = [line for part in arguments.only for line in child(__file__, 1, "--part", part)]
    columns = ("what", "unit", "value", "from_text", "ratio", "target")
    lines = [["" if line[column] is None else line[column] for column in columns] for line in found["measured"]]
    show(found, table(("what", "unit", "value", "from text", "ratio", "target"), lines), as_json=arguments.json)


if __name__ == "__main__":
    main()
