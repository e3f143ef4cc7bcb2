"""What MLflow is told of trials and sweeps: params, metrics, a description."""

from typing import Any

from raycap.analysis.analyse import Analysis
from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.measurements import Curve, Floats, Losses
from raycap.analysis.readings import headline
from raycap.analysis.report import answer
from raycap.analysis.summary import LAW_NUMBERS, summary, trial_entries
from raycap.results import Part, PlannedTrial
from raycap.spec import AnalysisSpec, Split

MAX_ROWS = 40
"""Of the table in a description: MLflow keeps 8000 characters."""


def flat_params(planned: PlannedTrial) -> dict[str, Any]:
    """The trial's spec and what the plan knows of it as flat, scalar params."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict):
            for key, child in node.items():
                walk(f"{prefix}.{key}" if prefix else key, child)
        else:
            flat[prefix] = ",".join(map(str, node)) if isinstance(node, list) else node

    walk("", planned.spec.model_dump(mode="json"))
    flat |= {"plan.num_params": planned.parameters.total, "plan.num_steps": planned.steps}
    return flat | {f"plan.dataset_bits.{selection}": round(bits, 1) for selection, bits in planned.dataset_bits.items()}


def trial_metrics(
    planned: PlannedTrial, analysis: AnalysisSpec, curve: Curve, losses: Losses
) -> list[dict[str, float]]:
    """Evaluations of a trial as MLflow metrics, capacities under the sweep's first scheme."""
    metrics: dict[str, Floats] = {
        "train/loss_bits": curve.train_loss_bits,
        "train/exposures": curve.exposures,
        "train/tokens": curve.tokens.astype(float),
        "train/tokens_per_s": curve.tokens / curve.train_seconds,
        "train/learning_rate": curve.learning_rate,
        "train/parameter_norm": curve.parameter_norm,
    }
    metrics |= loss_metrics(losses)
    first = headline(analysis)
    for capacity in capacities(losses, analysis):
        if capacity.subject != TOTAL or not capacity.is_headline(losses, analysis):
            continue
        if capacity.reading.scheme is not first.scheme:
            continue
        per_param = capacity.learned_bits / planned.parameters.total
        metrics[f"capacity/{capacity.reading.selection}_bits_per_param"] = per_param
        if capacity.reading == first:
            metrics["capacity/learned_bits"] = capacity.learned_bits
            metrics["capacity/bits_per_param"] = per_param
            non_embedding = capacity.learned_bits / planned.parameters.non_embedding
            metrics["capacity/bits_per_non_embedding_param"] = non_embedding
    names = list(metrics)
    return [dict(zip(names, map(float, values), strict=True)) for values in zip(*metrics.values(), strict=True)]


def loss_metrics(losses: Losses) -> dict[str, Floats]:
    """Mean losses by kind and subject; chains of thought, held-out splits and the second population by themselves."""
    metrics = {}
    for number, about in enumerate(("", "second_")[: len(losses.populations)]):
        for kind in losses.kinds:
            metrics[f"loss/{about}{kind}_bits"] = losses.mean_bits(losses.columns(kind, population=number))
            for subject in losses.subjects(kind, number):
                columns = losses.columns(kind, population=number, subject=subject)
                metrics[f"loss_{about}{kind}/{subject}_bits"] = losses.mean_bits(columns)
            chain = losses.columns(kind, population=number, part=Part.CHAIN)
            if chain:
                metrics[f"loss/{about}{kind}_chain_bits"] = losses.mean_bits(chain)
            for split in Split:
                held_out = losses.columns(kind, population=number, split=split)
                if held_out and split is not Split.TRAIN:
                    metrics[f"held_out_{about}{kind}/{split}_bits"] = losses.mean_bits(held_out)
    return metrics


def law_metrics(analysis: Analysis) -> dict[str, float]:
    """The laws so far as metrics of the sweep."""
    laws = summary(analysis)["laws"]
    return {
        f"law/{scheme}/{selection}/{name}": value
        for scheme, by_selection in laws.items()
        for selection, law in by_selection.items()
        for name in LAW_NUMBERS
        if (value := law[name]) is not None
    }


def description(analysis: Analysis) -> str:
    """The parent run's description in Markdown: question, law, the figure as a file of the sweep's folder, trials."""
    scheme, selection = analysis.headline
    entries = trial_entries(analysis)
    lines = [
        f"**{analysis.sweep.question}**" if analysis.sweep.question else f"**{analysis.sweep.spec.name}**",
        "",
        answer(analysis),
        "",
        "![Learned bits against parameters](capacity.svg)",
        "",
        f"| trial | parameters | learned bits ({selection}) | bits/param | state |",
        "|---|---:|---:|---:|---|",
    ]
    for trial in entries[:MAX_ROWS]:
        bits = ("", "")
        if trial["state"] == "finished":
            values = [trial[column][str(scheme)][str(selection)] for column in ("learned_bits", "bits_per_param")]
            bits = (f"{values[0]:,.0f}", f"{values[1]:.3f}")
        lines.append(f"| {trial['label']} | {trial['num_params']:,} | {bits[0]} | {bits[1]} | {trial['state']} |")
    more = f"{len(entries) - MAX_ROWS:,} more trials, " if len(entries) > MAX_ROWS else ""
    return "\n".join([*lines, "", f"{more}all figures and `report.html` are among the artifacts.".capitalize()])
