"""MLflow's pages on a sweep: their addresses, and how they look when they open.

What MLflow calls a shared view is how its page of runs looks, as JSON in a tag of the experiment; a link names the tag. The
words are those of the page itself, as of MLflow 3.17, which passes over what it does not know.
"""

import base64
import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from raycap.analysis.figures.groups import grouped
from raycap.results import PlannedTrial, SweepRecord
from raycap.tracking.metrics import flat_params

VIEW_TAG = "mlflow.sharedViewState."
"""Followed by what the link says after viewStateShareKey; here the id of the sweep's run."""
MOST_PER_PARAM = 3.0
"""Bits per parameter that a chart has room for; two are usual."""
SORTED_BY = "metrics.`capacity/bits_per_param`"
"""MLflow folds nested runs under their parent unless they are sorted by something other than their date."""


@dataclass(frozen=True)
class Pages:
    """Where MLflow shows a sweep."""

    experiment_id: str
    parent_id: str
    has_view: bool
    """Whether the experiment knows how the comparison is to look."""

    def comparison(self, base_url: str) -> str:
        """Address of the page that shows a sweep's trials side by side, with charts."""
        looks = {"viewStateShareKey": self.parent_id} if self.has_view else _search(self.parent_id)
        query = looks | {"compareRunsMode": "CHART", "workflowType": "machine_learning"}
        return f"{base_url}/#/experiments/{self.experiment_id}/runs?{urlencode(query, quote_via=quote)}"

    def sweep(self, base_url: str) -> str:
        """Address of the page of the sweep itself: its law, figures and report."""
        return f"{base_url}/#/experiments/{self.experiment_id}/runs/{self.parent_id}?workflowType=machine_learning"


def _search(parent_id: str) -> dict[str, str]:
    """Which runs are shown, in which order; MLflow hides nested runs without a filter."""
    return {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent_id}'",
        "orderByKey": SORTED_BY,
        "orderByAsc": "false",
    }


def shared_view(sweep: SweepRecord, parent_id: str) -> str:
    """How the comparison of a sweep's trials looks, as MLflow keeps it: what was varied and what came of it in columns,
    capacities and losses in charts.
    """
    first = sweep.trials[0]
    loss = f"loss/{first.spec.questions.kinds[-1]}_bits"
    final = ("final/capacity/bits_per_param", "final/capacity/learned_bits", f"final/{loss}")
    section = {"uuid": "raycap", "name": sweep.spec.name, "display": True, "isReordered": True, "deleted": False}
    columns = [f"params.`{name}`" for name in (*_varied(first), "plan.num_params")]
    columns += [f"metrics.`{name}`" for name in final]
    view = _search(parent_id) | {
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: 7 * len(column) for column in columns},  # pixels: the names are read whole
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [section | {"isGenerated": False, "columns": 2, "cardHeight": 400}],
        "compareRunCharts": [
            _chart(
                "learned",
                "SCATTER",
                xaxis={"key": "plan.num_params", "type": "PARAM"},
                yaxis={"key": "final/capacity/learned_bits", "type": "METRIC"},
            ),
            _chart("per_param", "BAR", metricKey="final/capacity/bits_per_param"),
            # What a model that begins worse than chance has "learned" would press all that follows into a line.
            _over_exposures("capacity/learned_bits", {"yMin": 0, "yMax": _most_bits(sweep.trials)}),
            _over_exposures(loss, {}),
        ],
        "isAccordionReordered": True,
    }
    packed = zlib.compress(json.dumps(view).encode())  # the tag of an experiment holds 5000 characters
    return f"deflate;{base64.b64encode(packed).decode()}"


def _varied(trial: PlannedTrial) -> list[str]:
    """Params that belong to what the grid varies."""
    axes = tuple(trial.coordinates)
    return [name for name in flat_params(trial) if name in axes or name.startswith(tuple(f"{axis}." for axis in axes))]


def _chart(name: str, kind: str, **options: Any) -> dict[str, Any]:
    own = {"uuid": f"raycap-{name}", "metricSectionId": "raycap", "type": kind, "runsCountToCompare": 100}
    return own | {"deleted": False, "isGenerated": False} | options


def _most_bits(trials: Iterable[PlannedTrial]) -> float:
    """What the trials of a sweep may be expected to learn, at most."""
    return max(min(MOST_PER_PARAM * trial.parameters.total, *trial.dataset_bits.values()) for trial in trials)


def _over_exposures(metric: str, shown: dict[str, float]) -> dict[str, Any]:
    """A line for each trial; `shown` is what of the axes, empty for all."""
    return _chart(
        metric,
        "LINE",
        metricKey=metric,
        selectedMetricKeys=[metric],
        displayName=metric,
        xAxisKey="metric",
        selectedXAxisMetricKey="train/exposures",
        useGlobalXaxisKey=False,
        useGlobalLineSmoothing=True,
        lineSmoothness=0,
        scaleType="linear",
        xAxisScaleType="linear",
        range=shown,
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
    )


def colours(widths: Iterable[int]) -> dict[int, str]:
    """A colour for every width, darker where they are smaller, as in the figures."""
    distinct = sorted(set(widths))
    groups = grouped(distinct, "wide", most=len(distinct))
    return {
        width: group.look.colour
        for group in groups
        for width, is_in in zip(distinct, group.members, strict=True)
        if is_in
    }


def with_artifacts(markdown: str, run_id: str) -> str:
    """Markdown whose images are files of a sweep's folder, with the addresses that MLflow serves them at."""
    return re.sub(r"(!\[[^\]]*\])\(([\w.]+)\)", rf"\1(get-artifact?path=\2&run_uuid={run_id})", markdown)
