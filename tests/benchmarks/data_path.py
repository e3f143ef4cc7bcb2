"""The data path on one core: people, splits, and rows composed from pieces against rows tokenised from text.

    python tests/benchmarks/data_path.py [--json]

Both sides of a ratio make the same rows of the same texts in this process. Medians of five runs.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

from raycap.facts.biographies import Biographies
from raycap.facts.corpus import SPLITS, TRAIN, Corpus, render
from raycap.facts.order import Mix, Order
from raycap.facts.profiles import census_schema, generate
from raycap.facts.questions import Questions
from raycap.facts.splits import codes
from raycap.learner.tokenizers import build_tokenizer
from raycap.learner.tokens import Composer
from raycap.spec import Biographies as BiographiesSpec
from raycap.spec import BpeTokenizer, HeldOut, NamePools, Split

NUM_ROWS, NUM_ROWS_TEXT, REPEATS = 200_000, 4_000, 5
EVERY_KIND = HeldOut(
    first_people=0.02, relations=0.06, first_pairs=0.02, second_people=0.02, second_subjects=0.05, second_pairs=0.02,
    tuples=0.1,
)  # fmt: skip


def seconds(work: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median time of some work."""
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def splits() -> dict[str, float]:
    """All seven kinds of held-out questions at N = 50,000 and R = 17: time, memory, and leaks."""
    people = generate(census_schema(NamePools(), 17), 50_000, seed=0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    took = seconds(lambda: codes(people, EVERY_KIND, 2), 3)
    more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    corpus = Questions(people, 2, held_out=EVERY_KIND)
    trained = np.flatnonzero(corpus.split_codes == TRAIN)
    order = Order((len(trained),), (2,), (Mix(0, (1.0,)),), 65_536, 0)
    asked = np.concatenate([trained[order.step_places(step)[0]] for step in range(len(trained) // 65_536)])
    found = {
        "splits of 17,850,000 two-hop tuples (s)": took,
        "splits: most memory beside the population (GB)": more / 2**20,
        "splits: held-out questions among one epoch of training": float((corpus.split_codes[asked] != TRAIN).sum()),
    }
    shares = np.bincount(corpus.split_codes, minlength=len(SPLITS)) / corpus.num_ids
    return found | {f"splits: share of {split}": float(shares[SPLITS.index(split)]) for split in Split}


def mix() -> dict[str, float]:
    """Shares of one-, two- and three-hop questions that really come, against the declared ones."""
    declared = (1 / 11, 6 / 11, 4 / 11)
    order = Order((100_000, 700_000, 900_000), (1, 2, 3), (Mix(0, declared),), 512, 0)
    counts = np.sum([[len(places) for places in order.step_places(step)] for step in range(1_000)], axis=0)
    return {
        f"mix: {k}-hop share {name}": float(value)
        for k, (want, got) in enumerate(zip(declared, counts / counts.sum(), strict=True), start=1)
        for name, value in (("declared", want), ("sampled", got))
    }


def rows(name: str, corpus: Corpus) -> dict[str, float]:
    """Rows of one kind of text, composed and tokenised."""
    tokenizer = build_tokenizer(BpeTokenizer(kind="bpe"), (corpus,))
    composer = Composer.build(corpus, tokenizer)
    ids = np.random.default_rng(0).integers(corpus.num_ids, size=NUM_ROWS)
    few, tokens = ids[:NUM_ROWS_TEXT], composer.token_counts.mean
    ours = NUM_ROWS * tokens / seconds(lambda: composer.compose(ids, composer.row_length))
    text = NUM_ROWS_TEXT * tokens / seconds(lambda: tokenizer.encode_batch(render(corpus, few)))
    return {f"{name} composed (tokens/s)": ours, f"{name} from text (tokens/s)": text, f"{name} ratio": ours / text}


def main() -> None:
    """Measure and print."""
    schema = census_schema(NamePools(), 17)
    found = {"100,000 profiles with 17 relations (s)": seconds(lambda: generate(schema, 100_000, seed=0))}
    found |= splits() | mix()
    people = generate(schema, 10_000, seed=0)
    found |= rows("one-hop rows", Questions(people, 1)) | rows("two-hop rows", Questions(people, 2))
    found |= rows("two-hop rows with chains", Questions(people, 2, chain_of_thought=True))
    few = generate(census_schema(NamePools(), 4), 10_000, seed=0)
    found |= rows("biographies", Biographies(few, BiographiesSpec(kind="biographies", per_person=3)))
    if "--json" in sys.argv:
        print(json.dumps(found, indent=2))
    else:
        for name, value in found.items():
            print(f"{name:60} {value:>16,.4g}" if value < 100 else f"{name:60} {value:>16,.0f}")


if __name__ == "__main__":
    main()
