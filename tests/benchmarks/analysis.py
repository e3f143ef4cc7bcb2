"""Time and memory of the analysis of large sweeps: reading results, capacities, laws, comparison, figures.

    python tests/benchmarks/analysis.py [--trials 100 1000 10000] [--json]

The results are synthetic: one-hop questions, three seeds per cell, 20 evaluations per trial, three readings. Each number
of trials is measured in a separate process, so that the peak memory belongs to it alone. Targets: 10,000 trials within
30 s and 2 GB on two cores, and time proportional to the number of trials from 100 trials on.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np

TARGET_SECONDS, TARGET_GB = 30.0, 2.0


def measure(num_trials: int) -> dict[str, float]:
    """Seconds of each part and peak memory in GB for one synthetic sweep."""
    from raycap.analysis.analyse import analyse
    from raycap.analysis.measurements import cells
    from raycap.analysis.planted import Truth, plant
    from raycap.analysis.readings import headline
    from raycap.analysis.report import files
    from raycap.analysis.stored import read_stored
    from raycap.plan.expand import expand
    from raycap.results import RunRecord, SweepRecord
    from raycap.spec import ModelByWidth, NamePools, NumHeads, ProfilesByCount, SweepSpec, TrainingSpec, TrialSpec
    from raycap.spec.build_points import GridPoint
    from raycap.spec.file import LoadedSweep
    from raycap.storage import Storage, result_path
    from raycap.storage.checksum import with_checksum

    seeds, people = 3, (500, 1000, 2000, 4000)
    num_sizes = max(1, num_trials // (seeds * len(people)))
    points = [
        GridPoint(
            {"model.hidden_size": width, "model.num_layers": layers, "profiles.num_profiles": n, "training.seed": seed},
            TrialSpec(
                profiles=ProfilesByCount(num_profiles=n, names=NamePools(first=20, middle=20, last=40)),
                model=ModelByWidth(
                    hidden_size=width, num_layers=layers, tie_embeddings=True, heads=NumHeads(num_heads=1)
                ),
                training=TrainingSpec(seed=seed),
            ),
            "planted",
        )
        for width, layers in ((8 + 2 * (i % 60), 1 + i // 60) for i in range(num_sizes))
        for n in people
        for seed in range(seeds)
    ][:num_trials]
    spec = SweepSpec(name="planted")
    trials = expand(LoadedSweep(spec, points, "", ""))
    record = SweepRecord(spec=spec, question="", spec_yaml="", trials=tuple(trials))
    numbers = cells(trials)
    of_cell = np.array([numbers[trial.trial_id] for trial in trials])
    truth = Truth(headline(spec.analysis), noise=0.05)
    with tempfile.TemporaryDirectory() as folder:
        storage = Storage.at(folder)
        rng = np.random.default_rng(0)
        for begin in range(0, len(trials), 500):  # in parts, so that writing results does not set the peak memory
            part = slice(begin, begin + 500)
            for result in plant(trials[part], truth, spec.analysis, of_cell[part], rng=rng, num_evaluations=20):
                storage.write(result_path(result.trial_id), with_checksum(result.model_dump_json()))
        began = time.perf_counter()
        stored = read_stored(trials, storage)
        read = time.perf_counter()
        analysis = analyse(record, RunRecord(wall_seconds=1, slots=1), stored.measured, {})
        analysed = time.perf_counter()
        contents = dict(files(analysis))
        drawn = time.perf_counter()
    return {
        "trials": len(trials),
        "reading_s": read - began,
        "capacities_and_laws_s": analysed - read,
        "figures_and_tables_s": drawn - analysed,
        "without_reading_s": drawn - read,
        "total_s": drawn - began,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "files": len(contents),
        "alpha": analysis.law.alpha.estimate,
    }


def main() -> None:
    """Measure each number of trials in a separate process, and print the result and the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one)))
        return
    rows = []
    for num_trials in options.trials:
        command = [sys.executable, __file__, "--one", str(num_trials)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(
            f"{row['trials']:>6,} trials: reading {row['reading_s']:.1f} s, capacities, laws and comparison "
            f"{row['capacities_and_laws_s']:.1f} s, figures and tables {row['figures_and_tables_s']:.1f} s; "
            f"{row['without_reading_s']:.1f} s after reading (target at 10,000: {TARGET_SECONDS:g} s), "
            f"peak {row['peak_gb']:.2f} GB (target {TARGET_GB:g} GB)"
        )
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        times, sizes = last["without_reading_s"] / first["without_reading_s"], last["trials"] / first["trials"]
        print(f"{sizes:.0f} times the trials take {times:.1f} times as long")


if __name__ == "__main__":
    main()
