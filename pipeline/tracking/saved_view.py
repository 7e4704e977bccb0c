"""The view with which MLflow's table of runs opens: our columns, and charts that answer whether the protection holds.

MLflow keeps the state of its page as JSON in a tag of the experiment, which the address of the page names. That is not documented: a
browser test holds it.
"""

from __future__ import annotations

import json
from typing import Any

from pipeline.results.mlflow_address import VIEW

TAG = f"mlflow.sharedViewState.{VIEW}"
SECTION = "Does the protection hold?"
COLUMNS = (
    "tags.`method`",
    "tags.`budget`",
    "metrics.`clean_accuracy`",
    "metrics.`protected_accuracy`",
    "metrics.`protected_relabelled_accuracy`",
    "metrics.`psnr_db`",
)
WIDTHS = {"tags": 90, "metrics": 125}  # pixels
BARS = {  # metric -> title of its chart
    "clean_accuracy": "Trained on the originals: accuracy, %",
    "protected_accuracy": "Trained on the release: accuracy, %",
    "protected_relabelled_accuracy": "... and the answers renamed: accuracy, %",
    "psnr_db": "How little is to be seen: PSNR, dB",
}
LINES = {"test_accuracy": "Victims: accuracy after each epoch, %", "train_accuracy": "Surrogate: training accuracy, %"}


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
        "selectedColumns": COLUMNS,
        "columnOrder": COLUMNS,
        "columnWidths": {column: WIDTHS[column.partition(".")[0]] for column in COLUMNS},
        "runsHiddenMode": "FIRST_20_RUNS",
        "isAccordionReordered": True,
        "compareRunSections": [
            {"uuid": key, "name": name, "display": True, "isReordered": True, "deleted": False, "isGenerated": False}
            for key, name in sections.items()
        ],
        "compareRunCharts": [
            *(_chart("BAR", "protection", metric, title) for metric, title in BARS.items()),
            *(_chart("LINE", "training", metric, title) | _line(metric) for metric, title in LINES.items()),
        ],
    }
    return {TAG: json.dumps(state)}


def _chart(kind: str, section: str, metric: str, title: str) -> dict[str, Any]:
    chart = {"uuid": f"{kind}-{metric}", "type": kind, "metricSectionId": section, "metricKey": metric, "displayName": title}
    return chart | {"deleted": False, "isGenerated": False, "runsCountToCompare": 20}


def _line(metric: str) -> dict[str, Any]:
    scales = {"xAxisKey": "step", "yAxisKey": "metric", "scaleType": "linear", "xAxisScaleType": "linear", "lineSmoothness": 0}
    return scales | {"selectedMetricKeys": [metric], "selectedXAxisMetricKey": "", "selectedYAxisMetricKey": metric, "range": {}}
