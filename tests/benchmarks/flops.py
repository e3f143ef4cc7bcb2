"""Model FLOP utilisation of training at 1M and 5M parameters: the share of the machine's matmul rate that it reaches.

    python tests/benchmarks/flops.py [--sizes 1M 5M] [--threads 1 2] [--repeats 3] [--seconds 10] [--json]

The rate of the machine is that of the fastest of several torch.mm calls on two fp32 matrices of 2048 x 2048, in the same
process with the same threads. FLOPs per question are counted by three conventions. Let H be the hidden size, L the layers,
V the vocabulary, n the input tokens of a row (all but the last), and A those of them whose next token is measured. A weight
takes 6 FLOPs per token: 2 forward, 4 backward.

    dense     6 x 16 L H^2 x n  +  6 V H x A
              The usual convention: non-embedding matrices at every token that is not padding, logits at measured tokens,
              no attention scores.
    needed    6 x [16 H^2 (L - 1) x n  +  2 H^2 x n  +  14 H^2 x A  +  V H x A]  +  12 H x K
              Only what the loss depends on: the last layer needs keys and values at every token, but queries, the output
              projection and the MLP (14 H^2) only where the next token is measured. K is the number of (query, key) pairs
              under the causal mask, summed over layers, with A queries in the last layer. Each pair takes 2 H FLOPs for
              the score and 2 H for the weighted value, times three with the backward pass.
    distinct  As `needed`, but a prefix that several rows of a batch share counts once, because its features are the same
              in all of them.

Norms, softmax, activations and the optimizer are not counted. The target of 60 % refers to `needed`, which is less than
`dense`. An implementation that computes shared prefixes once does fewer FLOPs than `needed`; `distinct` is its minimum.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from common import child, machine, medians, our_steps, planned, progress, seconds_of, set_threads, show, speed, table

if TYPE_CHECKING:
    from raycap.tokens.composer import Rows

TARGET = 0.6
MATRIX, NUM_PRODUCTS = 2048, 5
COUNTED_STEPS = 32
"""Steps whose rows are counted: about one epoch of the demo at its batch size."""
CONVENTIONS = ("dense", "needed", "distinct")


def matmul_rate() -> float:
    """FLOP/s of the fastest of several matrix products."""
    import torch

    left, right = torch.randn(2, MATRIX, MATRIX).unbind()
    out = torch.empty(MATRIX, MATRIX)
    torch.mm(left, right, out=out)
    return 2 * MATRIX**3 / min(seconds_of(lambda: torch.mm(left, right, out=out)) for _ in range(NUM_PRODUCTS))


def flops_per_question(size: str) -> dict[str, float]:
    """Mean FLOPs of a question by convention, forward and backward."""
    from raycap.facts.build import populations_of
    from raycap.facts.order import Mix
    from raycap.tokens.rows import RowSource
    from raycap.tokens.training_data import TrainingData

    spec = planned(size).spec
    data = TrainingData.of(spec, populations_of(spec))
    source = RowSource(data.composers, data.order((Mix(0, data.shares()),)), COUNTED_STEPS, 0, 1)
    shape = spec.model.hidden_size, spec.model.depth, data.vocab_size
    sums = dict.fromkeys(CONVENTIONS, 0.0)
    for rows in source.rows_from(0):
        for convention, flops in flops_of(rows, *shape).items():
            sums[convention] += flops
    return {convention: flops / (COUNTED_STEPS * spec.training.batch_size) for convention, flops in sums.items()}


def flops_of(rows: Rows, hidden_size: int, depth: int, vocab_size: int) -> dict[str, float]:
    """FLOPs of one batch by convention."""
    h, layers = hidden_size, depth
    columns = np.arange(rows.input_ids.shape[1] - 1)
    inputs = columns < rows.lengths[:, None] - 1
    measured = (rows.labels[:, 1:] > 0) & inputs

    def needed(inputs: np.ndarray, measured: np.ndarray) -> float:
        n, a = float(inputs.sum()), float(measured.sum())
        keys = (layers - 1) * float((inputs * (columns + 1)).sum()) + float((measured * (columns + 1)).sum())
        weights = 16 * h * h * (layers - 1) * n + 2 * h * h * n + (14 * h * h + vocab_size * h) * a
        return 6 * weights + 12 * h * keys

    # first[row, column]: this row is the first of those whose tokens up to and including this column are equal. Column by
    # column, a prefix is identified by its number in the column before and its next token.
    first = np.zeros_like(inputs)
    prefix = np.zeros(len(inputs), np.int64)
    for column in columns:
        _, indices, prefix = np.unique(
            np.stack([prefix, rows.input_ids[:, column]]), axis=1, return_index=True, return_inverse=True
        )
        first[indices, column] = True
    n, a = float(inputs.sum()), float(measured.sum())
    return {
        "dense": 6 * (16 * layers * h * h * n + vocab_size * h * a),
        "needed": needed(inputs, measured),
        "distinct": needed(inputs & first, measured & first),
    }


def utilisation(size: str, threads: int, seconds: float) -> dict[str, float]:
    """Rates of the machine and of training in this process, and the utilisation by convention."""
    set_threads(threads)
    before = matmul_rate()
    found = speed(size, seconds, lambda num_steps: our_steps(size, num_steps))
    peak = max(before, matmul_rate())
    rate = found["questions_per_s"]
    numbers = {"matmul_gflops": peak / 1e9, "questions_per_s": rate, "seconds": found["seconds"]}
    for convention, flops in flops_per_question(size).items():
        numbers |= {f"{convention}_mflop_per_question": flops / 1e6, convention: rate * flops / peak}
    return numbers


def main() -> None:
    """Measure each size and number of threads in separate processes, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("demo", "1M", "5M"), default=["1M", "5M"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long each run trains")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(utilisation(options.sizes[0], options.threads[0], options.seconds)))
        return
    found: dict[str, Any] = {"machine": machine(), "results": []}
    for size in options.sizes:
        for threads in options.threads:
            arguments = ("--one", "--sizes", size, "--threads", str(threads), "--seconds", str(options.seconds))
            runs = []
            for _ in range(options.repeats):
                runs.append(child(__file__, threads, *arguments))
                progress(f"{size}, {threads} thread(s): needed {runs[-1]['needed']:.1%}")
            found["results"].append({"size": size, "threads": threads, "target": TARGET, **medians(runs), "runs": runs})
    header = ("size", "threads", "questions/s", "matmul, GFLOP/s", *CONVENTIONS, "target for needed")
    rows = [
        (
            row["size"],
            row["threads"],
            row["questions_per_s"],
            row["matmul_gflops"],
            *(f"{row[c]:.1%} ({row[f'{c}_mflop_per_question']:.1f} MFLOP each)" for c in CONVENTIONS),
            f">= {TARGET:.0%}",
        )
        for row in found["results"]
    ]
    show(found, table(header, rows), as_json=options.json)


if __name__ == "__main__":
    main()
