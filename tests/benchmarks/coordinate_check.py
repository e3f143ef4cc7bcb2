"""Coordinate check: change of the last hidden features and the logits in a few steps as a function of width.

    python tests/benchmarks/coordinate_check.py [--optimizer adamw|schedule_free|muon] [--json] [--figure PATH]

Under muP the changes do not depend on the width, so one learning rate is the best at all widths; under the standard
parametrisation they grow with the width (docs/science.md#mup). Slopes are those of log(change) over log(width) and are 0
under muP. All widths train on the same random tokens. Takes ten seconds on one core.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap.learner import model as llama
from raycap.learner import optim
from raycap.learner.fused_ops import cross_entropy
from raycap.spec import AdamW, ModelByWidth, Muon, MuP, NumHeads, OptimizerSpec, Schedule, ScheduleFree, Standard
from tests.support.whole_rows import whole_rows

WIDTHS = (16, 32, 64, 128, 256)
PARAMETRIZATIONS = {"standard": Standard(), "muP": MuP(kind="mup", base_width=16)}
NUM_STEPS, NUM_SEEDS = 8, 3
NUM_ROWS, LENGTH = 16, 16
VOCAB_SIZE = 8
"""Small, so that most logits belong to tokens that occur in the batch, whose gradients have a consistent sign. The change
of any other logit is a sum of H terms of random sign and falls as width^-1/2; with 64 tokens it would dominate the mean at
these widths."""
QUANTITIES = {"hidden": "last block's output", "logits": "logits"}
_CONSTANT: dict[str, Any] = {"schedule": Schedule.CONSTANT}
_PLAIN: dict[str, Any] = {"lr": 0.004, "warmup_steps": 0, "weight_decay": 0.0}
OPTIMIZERS: dict[str, OptimizerSpec] = {
    "adamw": AdamW(**_PLAIN, **_CONSTANT),
    "schedule_free": ScheduleFree(kind="schedule_free", **_PLAIN),
    "muon": Muon(kind="muon", muon_lr=0.02, **_PLAIN, **_CONSTANT),
}


@dataclass(frozen=True)
class Change:
    """Mean absolute change of a model's outputs on fixed tokens between step 0 and a later step."""

    parametrization: str
    width: int
    seed: int
    step: int
    hidden: float
    """Change of the residual stream after the last block, before the final norm."""
    logits: float


def changes(
    parametrization: str,
    optimizer: OptimizerSpec,
    *,
    num_steps: int = NUM_STEPS,
    seeds: Iterable[int] = range(NUM_SEEDS),
    tie_embeddings: bool = False,
) -> list[Change]:
    """Train two-layer models of all widths on the same random tokens, and measure the change after each step."""
    found = []
    for width in WIDTHS:
        shape = ModelByWidth(
            hidden_size=width,
            num_layers=2,
            heads=NumHeads(num_heads=2),  # the head size grows with the width, so that the attention scale matters
            tie_embeddings=tie_embeddings,
            parametrization=PARAMETRIZATIONS[parametrization],
        )
        for seed in seeds:
            states = _states(shape, optimizer, num_steps, seed)
            for step in range(1, num_steps + 1):
                hidden, logits = (float((a - b).abs().mean()) for a, b in zip(states[step], states[0], strict=True))
                found.append(Change(parametrization, width, seed, step, hidden, logits))
    return found


def _states(
    shape: ModelByWidth, optimizer: OptimizerSpec, num_steps: int, seed: int
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Last hidden features and logits at all positions before the first step and after each step."""
    generator = torch.Generator().manual_seed(seed)
    batch = whole_rows(torch.randint(VOCAB_SIZE, (NUM_ROWS, LENGTH + 1), generator=generator), VOCAB_SIZE)
    model = llama.build_model(shape, VOCAB_SIZE, generators=(generator,))
    descent = optim.build_optimizer((optimizer,), model)
    hidden: list[torch.Tensor] = []
    model.layers[-1].register_forward_hook(lambda block, arguments, output: hidden.append(output.detach()))
    all_logits = []
    for step in range(num_steps + 1):
        read = model(batch)
        all_logits.append((read @ model.unembedding.mT).detach())
        descent.set_rate(step, num_steps + 1)
        descent.take_gradients(cross_entropy(read, model.unembedding, batch.targets).mean())
        descent.step()
    return list(zip(hidden, all_logits, strict=True))


def slope(found: Iterable[Change], quantity: str, step: int) -> float:
    """Slope of log(change) over log(width) after a step, by least squares over all seeds."""
    logs = np.log([(change.width, getattr(change, quantity)) for change in found if change.step == step])
    return float(np.polyfit(logs[:, 0], logs[:, 1], 1)[0])


def means_by_width(found: list[Change], quantity: str, step: int) -> list[float]:
    """Mean change over all seeds after a step, in the order of WIDTHS."""
    return [
        float(np.mean([getattr(change, quantity) for change in found if (change.width, change.step) == (width, step)]))
        for width in WIDTHS
    ]


def draw(sides: dict[str, list[Change]], path: Path) -> None:
    """Draw change against width, one column per parametrisation and one line per step (mean over seeds)."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(8.2, 6.2), layout="constrained", dpi=150)
    panels = figure.subplots(len(QUANTITIES), len(sides), sharex=True, sharey="row", squeeze=False)
    steps = [2**i for i in range(NUM_STEPS.bit_length())]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(steps)))
    for row, (quantity, words) in zip(panels, QUANTITIES.items(), strict=True):
        for axes, (side, found) in zip(row, sides.items(), strict=True):
            for step, shade in zip(steps, shades, strict=True):
                means = means_by_width(found, quantity, step)
                label = f"{step} step{'s' if step > 1 else ''}: slope {slope(found, quantity, step):+.2f}"
                axes.loglog(WIDTHS, means, marker="o", markersize=4, color=shade, label=label)
            axes.set_title(f"{words}, {side}", loc="left", fontsize=11)
            axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS], minor=False)
            axes.set_xticks([], minor=True)
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("")
            axes.grid(color="#e6e6e6")
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(fontsize=8, frameon=False)
        row[0].set_ylabel("mean absolute change since step 0")
    for axes in panels[-1]:
        axes.set_xlabel("width")
    figure.savefig(path)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adamw")
    parser.add_argument("--json", action="store_true", help="print every measurement")
    parser.add_argument("--figure", type=Path, help="path of the figure to draw")
    options = parser.parse_args()
    sides = {side: changes(side, OPTIMIZERS[options.optimizer]) for side in PARAMETRIZATIONS}
    if options.figure:
        draw(sides, options.figure)
    if options.json:
        print(json.dumps([asdict(change) for found in sides.values() for change in found], indent=2))
        return
    print(
        f"{'':9} {'step':>4} {'quantity':>9}" + "".join(f"{f'width {width}':>11}" for width in WIDTHS) + f"{'slope':>8}"
    )
    for side, found in sides.items():
        for step in range(1, NUM_STEPS + 1):
            for quantity in QUANTITIES:
                means = means_by_width(found, quantity, step)
                numbers = "".join(f"{mean:11.4f}" for mean in means)
                print(f"{side:9} {step:>4} {quantity:>9}{numbers}{slope(found, quantity, step):+8.2f}")


if __name__ == "__main__":
    main()
