"""Draw the figures of docs/analysis.md into docs/figures/.

Run from the root of the repository:

    python docs/make_figures.py             # the figures of synthetic sweeps
    python docs/make_figures.py runs/depth  # these, and the figures of the tutorial's sweep, which must have run

Synthetic sweeps are made by `raycap.analysis.planted`: trial results that follow a known law under a known reading.
No model is trained for them. The tutorial's sweep is `depth.yaml` of docs/tutorial.md; its models are trained.
"""

import io
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

import raycap
from raycap.analysis.analyse import Analysis, analyse
from raycap.analysis.capacity import uniform_bits
from raycap.analysis.figures.all import FIGURES
from raycap.analysis.figures.style import image
from raycap.analysis.figures.two_sweeps import two_sweeps
from raycap.analysis.measurements import Measured, cells
from raycap.analysis.planted import Truth, plant, with_mean_losses
from raycap.analysis.readings import Reading
from raycap.plan.expand import expand
from raycap.results import LossRow, RunRecord, SweepRecord, TrialResult
from raycap.spec import EncodingScheme, Kind, SelectionScheme, Split, TrialSpec
from raycap.spec.file import load_sweep

ROOT = Path(__file__).resolve().parents[1]
FIGURE_DIR = ROOT / "docs" / "figures"
GRID = str(ROOT / "sweeps" / "specs" / "grid.yaml")
ENUMERATE = Reading(EncodingScheme.OPTIMAL, SelectionScheme.ENUMERATE)
DOUBLE = Reading(EncodingScheme.TWO_HOP_DOUBLE, SelectionScheme.ENUMERATE)

TRAINED_FIGURES = (
    "law",
    "schemes",
    "exposures",
    "loss_derivatives",
    "subjects",
    "loss_vs_content",
    "histograms",
    "capacity_vs_norm",
)
HELD_OUT_FIGURES = (
    "capacity_by_scheme",
    "hops",
    "generalisation",
    "generalisation_gap",
    "gap_vs_size",
    "held_out_vs_learned",
    "steps_to_minimum",
)
PEOPLE = ("grid.training.seed=[0,1]", "grid.profiles.num_profiles=[300,1000,3000]")
RELATIONS = (
    "grid.training.seed=[0]",
    "grid.profiles.num_profiles=[1000,2000]",
    "grid.profiles.num_relations=[0,1,4,17]",
)
HOPS = (
    "trial.questions.hops=[1,2]",
    "trial.questions.held_out={first_people: 0.05, tuples: 0.1}",
    "analysis.schemes=[2-hop-double,optimal,2-hop-big-hash]",
    "analysis.selections=[enumerate]",
    "grid.training.seed=[0,1]",
    "grid.questions.one_hop_share=[0.05,0.1,0.2,0.5]",
    "grid.profiles.num_profiles=[400]",
    "grid.model.hidden_size=[14,16,18,20]",
)
CHAIN = (
    "trial.questions.hops=[1,2]",
    "trial.questions.held_out={first_people: 0.05, tuples: 0.1}",
    "analysis.selections=[enumerate]",
    "grid.questions.chain_of_thought=[false,true]",
    "grid.training.seed=[0,1,2]",
    "grid.profiles.num_profiles=[500]",
    "grid.model.hidden_size=[14,18]",
)


def synthetic(
    name: str, overrides: Sequence[str], truth: Truth, *, unlearned: Callable[[TrialSpec, LossRow], bool] | None = None
) -> Analysis:
    """Analysis of the demo's sweep with overrides, its results planted from `truth`.

    Losses of the rows for which `unlearned` is true are set to at least 90 % of uniform.
    """
    loaded = load_sweep(GRID, (f"name={name}", *overrides))
    trials = tuple(expand(loaded))
    record = SweepRecord(spec=loaded.spec, question=loaded.question, spec_yaml=loaded.text, trials=trials)
    numbers = cells(trials)
    of_trial = np.array([numbers[trial.trial_id] for trial in trials])
    results = plant(trials, truth, loaded.spec.analysis, of_trial, rng=np.random.default_rng(0))
    if unlearned:
        results = [without_learning(result, unlearned) for result in results]
    measured = {result.trial_id: Measured.of(result) for result in results}
    return analyse(record, RunRecord(wall_seconds=1.0, slots=1), measured, {})


def without_learning(result: TrialResult, unlearned: Callable[[TrialSpec, LossRow], bool]) -> TrialResult:
    """The result with the losses of some rows at 90 % of uniform or more in every evaluation."""
    uniform = uniform_bits(result.populations[0])

    def mean_bits(spec: TrialSpec, row: LossRow) -> float | None:
        return max(row.mean_bits, 0.9 * uniform[row.subject]) if unlearned(spec, row) else None

    return with_mean_losses(result, mean_bits)


def is_trapped(spec: TrialSpec, row: LossRow) -> bool:
    """One-hop questions where their share is below 1 / (1 + R)."""
    share = dict(zip(spec.questions.kinds, spec.questions.shares, strict=True))[Kind.ONE_HOP]
    return row.kind is Kind.ONE_HOP and share < 1 / (1 + spec.profiles.num_relations)


def is_new_without_a_chain(spec: TrialSpec, row: LossRow) -> bool:
    """Two-hop questions about new combinations, where no chain of thought is trained."""
    return row.kind is Kind.TWO_HOP and row.split is Split.TUPLES and not spec.questions.chain_of_thought


def is_about_an_unseen_person(spec: TrialSpec, row: LossRow) -> bool:
    """Two-hop questions about people who are never asked about in training."""
    return row.kind is Kind.TWO_HOP and row.split is Split.FIRST_PEOPLE


def save(analysis: Analysis, figure: str, name: str | None = None) -> None:
    """Write one figure of an analysis as FIGURE_DIR/NAME.png."""
    drawn = FIGURES[figure](analysis)
    if drawn is None:
        raise ValueError(f"the figure {figure!r} shows nothing for the sweep {analysis.sweep.spec.name!r}")
    write(name or figure, image(drawn, "png"))


def write(name: str, png: bytes) -> None:
    """Store a figure with a palette of 256 colours, which takes a third of the space."""
    path = FIGURE_DIR / f"{name}.png"
    Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}  {path.stat().st_size / 1000:.0f} kB")


def main(folder: str | None) -> None:
    FIGURE_DIR.mkdir(exist_ok=True)
    people = synthetic("people", PEOPLE, Truth(ENUMERATE))
    save(people, "law", "law_with_exhausted_trials")
    save(people, "capacity_by_profiles")
    save(people, "capacity_vs_profiles")
    write(
        "two_sweeps",
        image(two_sweeps(people, synthetic("weaker", PEOPLE, Truth(ENUMERATE, bits_per_param=1.6))), "png"),
    )
    save(synthetic("relations", RELATIONS, Truth(ENUMERATE)), "schemes", "schemes_decided")
    truth = Truth(DOUBLE, bits_per_param=1.8)
    hops = synthetic("hops", HOPS, truth, unlearned=is_about_an_unseen_person)
    for figure in HELD_OUT_FIGURES:
        save(hops, figure)
    chain = synthetic("chain", CHAIN, Truth(ENUMERATE), unlearned=is_new_without_a_chain)
    save(chain, "contrasts")
    save(chain, "loss_by_kind")
    save(synthetic("trap", HOPS, truth, unlearned=is_trapped), "phase_map")
    if folder:
        trained = raycap.load(folder).analysis
        for figure in TRAINED_FIGURES:
            save(trained, figure)


if __name__ == "__main__":
    main(*sys.argv[1:2] or [None])
