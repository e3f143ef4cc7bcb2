"""Time of an evaluation of the whole population against an epoch of training on the same questions.

    python tests/benchmarks/evaluation.py [--sizes demo 1M] [--threads 1 2] [--repeats 5] [--json]

Each repeat trains a trial of two epochs with `run_trial` and evaluates the trained model on every question. The time of an
epoch is the trial's training time per step times the steps of an epoch. Each size and number of threads is measured in a
separate process; the first repeat is a warm-up, and medians are taken over the others. Target: at most half the time of an
epoch.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from typing import Any

from common import child, machine, medians, planned, progress, seconds_of, set_threads, show, table

TARGET = 0.5
EPOCHS = 2


def measure(size: str, threads: int, repeats: int) -> dict[str, Any]:
    """Median seconds of an epoch and of an evaluation in this process."""
    set_threads(threads)
    from raycap.facts.build import populations_of
    from raycap.learner.evaluation import Sample, losses
    from raycap.learner.trial import run_trial
    from raycap.spec import Precision
    from raycap.tokens.training_data import TrainingData

    spec = planned(size, f"trial.training.length={{exposures: {EPOCHS}}}").spec
    (composer,) = TrainingData.of(spec, populations_of(spec)).composers
    sample = Sample.of(composer, 0, size=spec.training.evaluation_sample, seed=0)
    runs = []
    for _ in range(1 + repeats):
        trained = run_trial(spec, source_commit="benchmark")
        final = trained.result.final
        steps_per_epoch = len(sample.ids) / spec.training.batch_size
        evaluate = partial(losses, trained.model, sample, precision=Precision.FP32)
        times = [seconds_of(evaluate) for _ in range(2)]
        runs.append(
            {"epoch_s": final.train_seconds / final.step * steps_per_epoch, "evaluation_s": sum(times) / len(times)}
        )
    return {"questions": len(sample.ids), **medians(runs[1:]), "runs": runs[1:]}


def main() -> None:
    """Measure each size and number of threads, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=("demo", "1M", "5M"), default=["demo", "1M"])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.sizes[0], options.threads[0], options.repeats)))
        return
    found: dict[str, Any] = {"machine": machine(), "results": []}
    for size in options.sizes:
        for threads in options.threads:
            arguments = ("--one", "--sizes", size, "--threads", str(threads), "--repeats", str(options.repeats))
            row = child(__file__, threads, *arguments)
            row |= {"size": size, "threads": threads, "ratio": row["evaluation_s"] / row["epoch_s"], "target": TARGET}
            found["results"].append(row)
            progress(f"{size}, {threads} thread(s): {row['ratio']:.2f}")
    header = ("size", "threads", "questions", "epoch, s", "evaluation, s", "ratio", "target")
    rows = [
        (
            *(row[key] for key in ("size", "threads", "questions", "epoch_s", "evaluation_s")),
            f"{row['ratio']:.2f}",
            f"<= {TARGET:g}",
        )
        for row in found["results"]
    ]
    show(found, table(header, rows), as_json=options.json)


if __name__ == "__main__":
    main()
