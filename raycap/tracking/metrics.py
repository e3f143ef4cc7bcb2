"""Conversion of trials and sweeps to params, metrics and a description for MLflow."""

import re
from typing import Any

from raycap.analysis.analyse import Analysis
from raycap.analysis.answer import answer
from raycap.analysis.capacity import TOTAL, capacities
from raycap.analysis.measurements import Curve, Floats, Losses
from raycap.analysis.readings import headline
from raycap.analysis.summary import LAW_NUMBERS, summary, trial_entries
from raycap.results import Part, PlannedTrial
from raycap.results.texts import bits_per_param_text
from raycap.spec import AnalysisSpec, Split

MAX_ROWS = 40
"""Maximum number of rows of the table in a description, because MLflow limits tags to 8000 characters."""


def flat_params(planned: PlannedTrial) -> dict[str, Any]:
    """Return the trial's spec, and sizes that the plan has computed, as scalar params with dotted names."""
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
    """Return the metrics of each evaluation of a trial, with capacities under the sweep's first scheme.

    All evaluations have the same metrics. `curve` and `losses` have one entry for each evaluation.
    """
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
    """Return mean losses in bits by kind, and by kind and subject, each as an array with one entry for each evaluation.

    Chains of thought, held-out splits and the second population have metrics of their own.
    """
    metrics = {}
    for population, prefix in enumerate(("", "second_")[: len(losses.populations)]):
        for kind in losses.kinds:
            metrics[f"loss/{prefix}{kind}_bits"] = losses.mean_bits(losses.columns(kind, population=population))
            for index, subject in enumerate(losses.subjects(kind, population)):
                columns = losses.columns(kind, population=population, subject=subject)
                name = f"loss_{prefix}{kind}/{_metric_name(subject)}"
                unique = f"{name}_{index}" if f"{name}_bits" in metrics else name
                metrics[f"{unique}_bits"] = losses.mean_bits(columns)
            chain = losses.columns(kind, population=population, part=Part.CHAIN)
            if chain:
                metrics[f"loss/{prefix}{kind}_chain_bits"] = losses.mean_bits(chain)
            for split in Split:
                held_out = losses.columns(kind, population=population, split=split)
                if held_out and split is not Split.TRAIN:
                    metrics[f"held_out_{prefix}{kind}/{split}_bits"] = losses.mean_bits(held_out)
    return metrics


def law_metrics(analysis: Analysis) -> dict[str, float]:
    """Return the numbers of the laws, of each arm if values are compared, as metrics; undefined numbers are left out."""
    record = summary(analysis)
    groups = [(f"{_metric_name(arm['arm'])}/", arm["laws"]) for arm in record["arm_laws"]] or [("", record["laws"])]
    return {
        f"law/{scheme}/{selection}/{arm}{name}": value
        for arm, laws in groups
        for scheme, by_selection in laws.items()
        for selection, law in by_selection.items()
        for name in LAW_NUMBERS
        if (value := law[name]) is not None
    }


def _metric_name(text: str) -> str:
    """Return a text with "_" for each character that MLflow does not take in the name of a metric."""
    return re.sub(r"[^\w\-. /:]", "_", text, flags=re.ASCII)


def description(analysis: Analysis) -> str:
    """Return the description of the sweep's run in Markdown: question, law, figure and a table of trials.

    The figure is referenced by its file name in the sweep's folder.
    """
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
            bits = (f"{values[0]:,.0f}", bits_per_param_text(values[1]))
        lines.append(f"| {trial['label']} | {trial['num_params']:,} | {bits[0]} | {bits[1]} | {trial['state']} |")
    more = f"{len(entries) - MAX_ROWS:,} more trials, " if len(entries) > MAX_ROWS else ""
    return "\n".join([*lines, "", f"{more}all figures and `report.html` are among the artifacts.".capitalize()])
