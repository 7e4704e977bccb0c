"""The view with which MLflow's table of runs opens: our columns, and charts that answer whether the protection holds.

MLflow keeps the state of its page as JSON in a tag of the experiment, which the address of the page names. That is not documented: a
browser test holds it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from pipeline.results.mlflow_address import VIEW

TAG = f"mlflow.sharedViewState.{VIEW}"
SECTION = "Does the protection hold?"
COLUMNS = {  # -> width in pixels, with which all fit beside the name and the date on a page of 1400
    "tags.`method`": 75,
    "tags.`budget`": 75,
    "metrics.`clean_accuracy`": 110,
    "metrics.`protected_accuracy`": 130,
    "metrics.`protected_relabelled_accuracy`": 190,
    "metrics.`psnr_db`": 80,
}
BARS = (  # metrics of each chart, which MLflow names after them
    ("clean_accuracy", "protected_accuracy", "protected_relabelled_accuracy"),
    ("psnr_db",),
)
LINES = ("test_accuracy", "train_accuracy")


def saved_view() -> dict[str, str]:
    """Return the tags of the experiment that hold the view."""
    sections = {"protection": SECTION, "training": "How was it trained?"}
    state = {
        "searchFilter": "",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "modelVersionFilter": "All Runs",
        "datasetsFilter": [],
        "selectedColumns": [*COLUMNS],
        "columnOrder": [*COLUMNS],
        "columnWidths": COLUMNS,
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False, "columns": 2}
            for key, name in sections.items()
        ],
        "compareRunCharts": [
            *(_chart("BAR", "protection", metrics) for metrics in BARS),
            *(_chart("LINE", "training", (metric,)) | _line(metric) for metric in LINES),
        ],
    }
    return {TAG: json.dumps(state)}


def _chart(kind: str, section: str, metrics: Sequence[str]) -> dict[str, Any]:
    chart = {"uuid": f"{kind}-{metrics[0]}", "type": kind, "metricSectionId": section, "metricKey": metrics[0]}
    return chart | {"selectedMetricKeys": metrics, "deleted": False, "isGenerated": False, "runsCountToCompare": 20}


def _line(metric: str) -> dict[str, Any]:
    scales = {"xAxisKey": "step", "yAxisKey": "metric", "scaleType": "linear", "xAxisScaleType": "linear", "lineSmoothness": 0}
    return scales | {"selectedXAxisMetricKey": "", "selectedYAxisMetricKey": metric, "range": {}}
