"""The data path on one core: people, and rows composed from pieces against rows tokenised from text.

    python tests/benchmarks/data_path.py [--json]

Both sides make the same rows of the same questions in this process. Medians of five runs.
"""

import json
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import END, num_questions, render, unpack
from raycap.learner.tokens import Composer, build_tokenizer
from raycap.spec import BpeTokenizer, NamePools

NUM_ROWS, NUM_ROWS_TEXT, REPEATS = 200_000, 4_000, 5


def seconds(work: Callable[[], object]) -> float:
    """Median time of some work."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Measure and print."""
    schema = census_schema(NamePools(), 17)
    found = {"100,000 profiles with 17 relations (s)": seconds(lambda: generate(schema, 100_000, seed=0))}
    people = generate(schema, 10_000, seed=0)
    tokenizer = build_tokenizer(BpeTokenizer(kind="bpe"), people)
    composer = Composer.build(people, tokenizer)
    rng = np.random.default_rng(0)
    for hops in (1, 2):
        ids = rng.integers(num_questions(people, hops), size=NUM_ROWS)
        few, length = ids[:NUM_ROWS_TEXT], composer.row_length(hops)
        tokens_per_row = composer.mean_tokens(hops)[0]

        def composed(hops: int = hops, ids: np.ndarray = ids, length: int = length) -> None:
            composer.compose(unpack(people, hops, ids), length)

        def tokenised(hops: int = hops, few: np.ndarray = few) -> None:
            tokenizer.encode_batch([p + a + END for p, a in render(people, unpack(people, hops, few))])

        ours = NUM_ROWS * tokens_per_row / seconds(composed)
        text = NUM_ROWS_TEXT * tokens_per_row / seconds(tokenised)
        found |= {
            f"{hops}-hop rows composed (tokens/s)": ours,
            f"{hops}-hop rows from text (tokens/s)": text,
            f"{hops}-hop ratio": ours / text,
        }
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:45} {value:>16,.2f}")


if __name__ == "__main__":
    main()
