"""A saved view of MLflow's page: which settings brought the most gain?

MLflow keeps a saved view as a tag of the experiment: name, times and a compressed state of the page
(columns, order, filter, charts). The page lists it under `Views`, and an address with
`viewStateShareKey` opens it. The format is that of MLflow 3.17; a page of another version that
cannot read it shows its own view.
"""

import base64
import json
import zlib
from typing import Any

GAINS_VIEW = "replenishgains"
GAINS_NAME = "Which settings brought the most gain"
_TAG = "mlflow.sharedViewState."
_GAIN = "evaluate/gain_points"
_SECTION = "replenish-gain"
_SETTINGS = ("synthesize.guidance", "synthesize.sampler_steps", "train.steps")
_COLUMNS = (
    f"metrics.`{_GAIN}`",
    "metrics.`evaluate/gain_low_points`",
    "metrics.`evaluate/winning_share`",
    *(f"params.`{name}`" for name in _SETTINGS),
    "tags.`decision`",
)


def view_tags() -> dict[str, str]:
    """Return the tags that make the view of an experiment."""
    state = base64.b64encode(zlib.compress(json.dumps(_state()).encode())).decode()
    # The times are shown in the list alone; a fixed one keeps the tag equal everywhere.
    times = {"createdAt": 1_750_000_000_000, "updatedAt": 1_750_000_000_000}
    view = {"name": GAINS_NAME, **times, "state": f"deflate;{state}"}
    return {f"{_TAG}{GAINS_VIEW}": json.dumps(view)}


def _state() -> dict[str, Any]:
    return {
        # Arms are runs as well, but have no driver.
        "searchFilter": 'tags.driver != ""',
        "orderByKey": f"metrics.`{_GAIN}`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(_COLUMNS),
        "columnOrder": [],
        "columnWidths": {},
        "runsHiddenMode": "FIRST_20_RUNS",
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "compareRunSections": [
            {
                "uuid": _SECTION,
                "name": "Gain and settings",
                "display": True,
                "isReordered": True,
                "columns": 2,
            }
        ],
        "compareRunCharts": [
            _chart("lines", "PARALLEL", selectedParams=list(_SETTINGS), selectedMetrics=[_GAIN]),
            _chart("gain", "BAR", metricKey=_GAIN, displayName="gain_points"),
            *(
                _chart(f"by-{name}", "SCATTER", xaxis=_axis(name, "PARAM"), yaxis=_axis(_GAIN))
                for name in ("synthesize.guidance", "train.steps")
            ),
        ],
        "globalLineChartConfig": {
            "xAxisKey": "step",
            "lineSmoothness": 0,
            "selectedXAxisMetricKey": "",
        },
    }


def _chart(name: str, kind: str, **settings: Any) -> dict[str, Any]:
    return {
        "uuid": f"{_SECTION}-{name}",
        "type": kind,
        "metricSectionId": _SECTION,
        "runsCountToCompare": 100,
        "deleted": False,
        "isGenerated": False,
        **settings,
    }


def _axis(key: str, kind: str = "METRIC") -> dict[str, str]:
    return {"key": key, "type": kind}
