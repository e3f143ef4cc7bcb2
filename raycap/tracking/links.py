"""URLs of MLflow's pages of a sweep, and the initial view of its page that compares trials.

MLflow stores a shared view, the state of its page of runs, as JSON in a tag of the experiment. A URL refers to it by the
name of the tag. The keys are those that the page of MLflow 3.17 uses; it ignores keys that it does not know.
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
"""Prefix of the tag's name. It is followed by the value of viewStateShareKey in the URL, here the id of the sweep's run."""
MAX_BITS_PER_PARAM = 3.0
"""Upper limit of a chart in bits per parameter; models store about 2 (arXiv 2404.05405)."""
SORTED_BY = "metrics.`capacity/bits_per_param`"
"""Order of the runs. MLflow collapses nested runs under their parent if runs are sorted by date."""


@dataclass(frozen=True)
class Pages:
    """MLflow's pages of a sweep."""

    experiment_id: str
    parent_id: str
    has_view: bool
    """Whether the experiment has a shared view of the sweep."""

    def comparison(self, base_url: str) -> str:
        """Return the URL of the page that compares the trials of the sweep in charts."""
        # The page ignores the shared view if the URL also has a filter.
        view = {"viewStateShareKey": self.parent_id} if self.has_view else _search(self.parent_id)
        query = view | {"compareRunsMode": "CHART", "workflowType": "machine_learning"}
        return f"{base_url}/#/experiments/{self.experiment_id}/runs?{urlencode(query, quote_via=quote)}"

    def sweep(self, base_url: str) -> str:
        """Return the URL of the page of the sweep's run, which has its law, figures and report."""
        return f"{base_url}/#/experiments/{self.experiment_id}/runs/{self.parent_id}?workflowType=machine_learning"


def _search(parent_id: str) -> dict[str, str]:
    """Return the filter and order of a sweep's trials. MLflow hides nested runs unless there is a filter."""
    return {
        "searchFilter": f"tags.mlflow.parentRunId = '{parent_id}'",
        "orderByKey": SORTED_BY,
        "orderByAsc": "false",
    }


def shared_view(sweep: SweepRecord, parent_id: str) -> str:
    """Return the shared view of a sweep's trials, as the value of the experiment's tag.

    The table has the varied params and the final metrics as columns. The charts show capacities and losses.
    """
    first = sweep.trials[0]
    loss = f"loss/{first.spec.questions.kinds[-1]}_bits"
    final = ("final/capacity/bits_per_param", "final/capacity/learned_bits", f"final/{loss}")
    section = {"uuid": "raycap", "name": sweep.spec.name, "display": True, "isReordered": True, "deleted": False}
    columns = [f"params.`{name}`" for name in (*_varied_params(first), "plan.num_params")]
    columns += [f"metrics.`{name}`" for name in final]
    view = _search(parent_id) | {
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": columns,
        "columnWidths": {column: 7 * len(column) for column in columns},  # in pixels: wide enough for the full name
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
            # Learned bits can be very negative before training. The range excludes them to keep later values readable.
            _line_chart("capacity/learned_bits", {"yMin": 0, "yMax": _max_bits(sweep.trials)}),
            _line_chart(loss, {}),
        ],
        "isAccordionReordered": True,
    }
    # Tags of experiments are limited to 5000 characters in older versions of MLflow.
    packed = zlib.compress(json.dumps(view).encode())
    return f"deflate;{base64.b64encode(packed).decode()}"


def _varied_params(trial: PlannedTrial) -> list[str]:
    """Return the names of the params that the grid varies."""
    axes = tuple(trial.coordinates)
    return [name for name in flat_params(trial) if name in axes or name.startswith(tuple(f"{axis}." for axis in axes))]


def _chart(name: str, kind: str, **options: Any) -> dict[str, Any]:
    common = {"uuid": f"raycap-{name}", "metricSectionId": "raycap", "type": kind, "runsCountToCompare": 100}
    return common | {"deleted": False, "isGenerated": False} | options


def _max_bits(trials: Iterable[PlannedTrial]) -> float:
    """Return an upper limit for the learned bits of a sweep's trials, from their parameters and their data."""
    return max(min(MAX_BITS_PER_PARAM * trial.parameters.total, *trial.dataset_bits.values()) for trial in trials)


def _line_chart(metric: str, axis_range: dict[str, float]) -> dict[str, Any]:
    """Return a chart of a metric over exposures, with a line for each trial. An empty `axis_range` shows all points."""
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
        range=axis_range,
        yAxisKey="metric",
        yAxisExpressions=[],
        ignoreOutliers=False,
    )


def colours(widths: Iterable[int]) -> dict[int, str]:
    """Return a colour for each width. Smaller widths are darker, as in the figures."""
    distinct = sorted(set(widths))
    groups = grouped(distinct, "wide", most=len(distinct))
    return {
        width: group.look.colour
        for group in groups
        for width, is_in in zip(distinct, group.members, strict=True)
        if is_in
    }


def with_artifact_urls(markdown: str, run_id: str) -> str:
    """Replace file names of images in Markdown by the URLs at which MLflow serves these artifacts of a run."""
    return re.sub(r"(!\[[^\]]*\])\(([\w.]+)\)", rf"\1(get-artifact?path=\2&run_uuid={run_id})", markdown)
