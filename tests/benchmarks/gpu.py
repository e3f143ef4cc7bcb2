"""What a GPU makes of raycap: speed and model FLOP utilisation by size, replicas, and a real law. One command:

    python tests/benchmarks/gpu.py --device cuda --out gpu.json

The learner runs without ray and mlflow, so nothing but torch, transformers, numpy, pydantic and tokenizers is needed.

- speed: questions, tokens and FLOPs per second at 1M, 10M and 100M parameters in bf16, eager and compiled (compile time
  aside, it is told), against the rate of a bf16 product of 8192 x 8192 matrices measured in the same process. FLOPs are
  counted as in flops.py, `needed`. Targets: 10, 30, 50 %.
- replicas: 16 models of 1M parameters in one stack against one by itself. Target: 8x.
- law: the one-hop cells of SCIENCE's T1 (25k, 30k and 50k people, 0.89 to 1.48M parameters) at `--exposures`, as many
  as fit into a stack together; bits per parameter under each reading of the names.

Everything measured so far is kept in `--out`, and is not measured again. `--scale` shrinks models, people and products,
to try the script itself: `--device cpu --scale 0.02 --exposures 2 --seconds 1`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import progress, table
from flops import flops_of

if TYPE_CHECKING:
    import torch

    from raycap.results import PlannedTrial

SIZES = {"1M": (1_000_000, 4, 0.10), "10M": (10_000_000, 8, 0.30), "100M": (100_000_000, 12, 0.50)}
"""Parameters, layers, and the target for the share of the machine's rate."""
T1_CELLS = [(25_000, 1.17e6), (25_000, 1.48e6), (30_000, 0.89e6)] + [
    (50_000, size) for size in (0.89e6, 1.17e6, 1.48e6)
]
BATCH_SIZE, NUM_REPLICAS = 4096, 16
PRODUCT = 8192
LAW = {"lr": 0.003, "warmup_steps": 500, "weight_decay": 0.01}


def batch_size(scale: float) -> int:
    """Questions of a step."""
    return max(32, round(BATCH_SIZE * scale))


def plan(
    num_params: float, num_layers: int, num_people: int, training: dict[str, Any], *, scale: float, seed: int = 0
) -> PlannedTrial:
    """A one-hop trial as in T1: four relations, all census names, a BPE of 3000; people, tokens and model scaled."""
    from raycap.plan.expand import expand
    from raycap.spec import SweepSpec, TrialSpec
    from raycap.spec.file import GridPoint, LoadedSweep

    tree = {
        "profiles": {"num_profiles": max(200, round(num_people * scale)), "num_relations": 4},
        "tokenizer": {"kind": "bpe", "vocab_size": max(300, round(3000 * scale))},
        "model": {
            "num_layers": num_layers,
            "num_params": round(num_params * scale),
            "heads": {"head_size": 16 if scale == 1 else 2},
        },
        "training": {
            "batch_size": batch_size(scale),
            "precision": "bf16",
            "num_evaluations": 1,
            "seed": seed,
            **training,
        },
    }
    trial = TrialSpec.model_validate_json(json.dumps(tree))
    sweep = SweepSpec(name="gpu")
    (planned,) = expand(LoadedSweep(sweep, [GridPoint({}, trial, "gpu.py")], "", ""))
    return planned


def trained(trials: list[PlannedTrial], device: torch.device, *, compiled: bool = False) -> list[Any]:
    """The results of trials in one stack."""
    from raycap.learner.replica import Place
    from raycap.learner.trial import run_trials

    specs = tuple(trial.spec for trial in trials)
    outcomes = run_trials(specs, source_commit="benchmark", place=Place(device=device), compiled=compiled)
    return [outcome.result for outcome in outcomes]


def product_rate(device: torch.device, size: int) -> float:
    """FLOP/s of the fastest bf16 product of random matrices."""
    import torch

    left, right = torch.randn(2, size, size, device=device, dtype=torch.bfloat16).unbind()
    times = []
    for _ in range(10):
        _wait(device)
        began = time.perf_counter()
        torch.mm(left, right)
        _wait(device)
        times.append(time.perf_counter() - began)
    return 2 * size**3 / min(times)


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize()


def flops_per_question(trial: PlannedTrial) -> float:
    """FLOPs that a question needs, as flops.py counts them."""
    from raycap.facts.build import populations_of
    from raycap.tokens.training_data import Material

    material = Material.of(trial.spec, populations_of(trial.spec))
    (composer,) = material.composers
    rows = composer.compose(np.linspace(0, len(composer.trained) - 1, 2048).astype(np.int64), composer.row_length)
    shape = trial.spec.model.hidden_size, trial.spec.model.num_layers, material.vocab_size
    return flops_of(rows, *shape)["needed"] / len(rows)


def speed(name: str, options: argparse.Namespace, *, compiled: bool, num_replicas: int = 1) -> dict[str, float]:
    """One size, timed over about so many seconds after a warm-up."""
    num_params, num_layers, target = SIZES[name]
    device, scale, num_people = options.torch_device, options.scale, 25_000

    def run(steps: int) -> float:
        """Seconds of so many steps."""
        length = {"length": {"steps": steps}}
        trials = [
            plan(num_params, num_layers, num_people, length, scale=scale, seed=seed) for seed in range(num_replicas)
        ]
        return sum(result.final.train_seconds for result in trained(trials, device, compiled=compiled))

    first = run(2)
    per_step = run(10) / 10
    steps = max(10, round(options.seconds / per_step))
    seconds = run(steps)
    trial = plan(num_params, num_layers, num_people, {"length": {"steps": steps}}, scale=scale)
    questions = num_replicas * steps * batch_size(scale) / seconds
    rate = product_rate(device, max(64, round(PRODUCT * options.scale**0.5)))
    return {
        "parameters": trial.parameters.total,
        "first_steps_s": first,
        "questions_per_s": questions,
        "tokens_per_s": questions * trial.tokens / (steps * batch_size(scale)),
        "product_tflops": rate / 1e12,
        "utilisation": questions * flops_per_question(trial) / rate,
        "target": target,
    }


def law(options: argparse.Namespace, cell: tuple[int, float]) -> list[dict[str, float]]:
    """One cell of T1: bits per parameter of every seed, all seeds in one stack."""
    from common import bits_by_selection

    num_people, num_params = cell
    training = {"length": {"exposures": options.exposures}, "optimizer": LAW}
    trials = [plan(num_params, 4, num_people, training, scale=options.scale, seed=s) for s in range(options.seeds)]
    rows = []
    for result in trained(trials, options.torch_device):
        bits = bits_by_selection(result.spec, result.populations, result.final.losses)
        row = {
            "people": result.populations[0].num_profiles,
            "parameters": result.parameters.total,
            "seed": result.spec.training.seed,
        }
        row |= {f"{name}_bits_per_param": value / result.parameters.total for name, value in bits.items()}
        rows.append(row | {"seconds": result.final.train_seconds})
    return rows


def main() -> None:
    """Measure what is missing in the file, and print it all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument(
        "--parts", nargs="+", choices=("speed", "replicas", "law"), default=["speed", "replicas", "law"]
    )
    parser.add_argument("--sizes", nargs="+", choices=tuple(SIZES), default=list(SIZES))
    parser.add_argument("--exposures", type=float, default=1000.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long each speed is measured")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()

    import torch

    options.torch_device = torch.device(options.device)
    found = json.loads(options.out.read_text()) if options.out.exists() else {}

    def keep(key: str, measure: Any) -> Any:
        if key not in found:
            found[key] = measure()
            options.out.write_text(json.dumps(found, indent=1))
            progress(f"{key}: {found[key]}")
        return found[key]

    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}\n")
    if "speed" in options.parts:
        rows = []
        for size in options.sizes:
            for compiled in (False,) if options.no_compile else (False, True):
                key = f"speed {size}{' compiled' if compiled else ''}"
                row = keep(key, lambda size=size, compiled=compiled: speed(size, options, compiled=compiled))
                share = f"{row['utilisation']:.1%} (target {row['target']:.0%})"
                rows.append(
                    (key, *(row[n] for n in ("parameters", "first_steps_s", "questions_per_s", "tokens_per_s")), share)
                )
        print(table(("", "parameters", "first steps, s", "questions/s", "tokens/s", "utilisation"), rows), "\n")
    if "replicas" in options.parts:
        one = keep("one model", lambda: speed("1M", options, compiled=False))
        many = keep("replicas", lambda: speed("1M", options, compiled=False, num_replicas=NUM_REPLICAS))
        ratio = many["questions_per_s"] / one["questions_per_s"]
        print(f"{NUM_REPLICAS} replicas of 1M: {ratio:.1f}x the questions/s of one (target 8x)\n")
    if "law" in options.parts:
        cells = [
            row
            for cell in T1_CELLS
            for row in keep(f"law {cell[0]} {cell[1]:.3g} {options.exposures:g}", lambda cell=cell: law(options, cell))
        ]
        names = list(cells[0])
        print(table(names, [[row[name] for name in names] for row in cells]))


if __name__ == "__main__":
    main()
