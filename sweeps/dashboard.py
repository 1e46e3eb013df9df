"""What MLflow's runs page shows of a sweep: colours, saved views and links, as plain values. No MLflow here.

A saved view is one experiment tag holding the page's own state, deflated. The format is MLflow's internal one (captured
from 3.17), so it lives in this file alone, and a page that cannot read it falls back to its default.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
LADDER_VIEW, RUNG_VIEW = "ladder", "rungs"
SECTIONS = {"scaling": "Scaling", "subsets": "By subset", "health": "Training health"}
FOLDED = ("val", "final", "train", "perf")  # the page adds a section for each prefix of metrics that have no chart yet
COLUMNS = {  # of the run table, with widths in pixels: the page cuts numbers that do not fit
    "metrics.`final/val_loss`": 160,
    "metrics.`final/val_bpb`": 160,
    "metrics.`final/log10_flops`": 160,
    "metrics.`final/train_seconds`": 160,
    "params.`model.n_params_nonemb`": 180,
    "params.`train.tokens`": 110,
    "params.`optim.lr`": 90,
}

Json = dict[str, Any]


def rung_color(rung: str, rungs: Sequence[str]) -> str:
    """One colour a rung, in ladder order, readable with every kind of colour vision."""
    return OKABE_ITO[list(rungs).index(rung) % len(OKABE_ITO)] if rung in rungs else OKABE_ITO[-1]


def dashboard_url(base: str, experiment_id: str) -> str:
    """Link that opens the finished dashboard in a fresh browser (which would otherwise land on another kind of page)."""
    query = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={LADDER_VIEW}"
    return f"{base.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def view_tags(subsets: Sequence[str], now_ms: int) -> dict[str, str]:
    """Experiment tags of the two saved views: every run, and the mean of each rung."""
    ladder, by_rung = view_state(subsets), view_state(subsets)
    by_rung |= {
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "model.name"}]},
        "useGroupedValuesInCharts": True,
    }
    return {
        f"mlflow.sharedViewState.{LADDER_VIEW}": packed("Scaling ladder", ladder, now_ms),
        f"mlflow.sharedViewState.{RUNG_VIEW}": packed("Mean of each rung", by_rung, now_ms),
    }


def packed(name: str, state: Json, now_ms: int) -> str:
    raw = zlib.compress(json.dumps(state, separators=(",", ":")).encode())
    view = {
        "name": name,
        "createdAt": now_ms,
        "updatedAt": now_ms,
        "state": "deflate;" + base64.b64encode(raw).decode(),
    }
    return json.dumps(view, separators=(",", ":"))


def view_state(subsets: Sequence[str]) -> Json:
    charts = [
        line("val/loss", "val/log10_flops", "scaling", "Validation loss vs log10 training FLOPs"),
        line("val/loss", "val/tokens", "scaling", "Validation loss vs tokens"),
        scatter(
            "final/log10_params_nonemb", "final/val_loss", "scaling", "Final loss vs log10 non-embedding parameters"
        ),
        scatter("final/log10_flops", "final/val_loss", "scaling", "Final loss vs log10 training FLOPs"),
        line("val/bpb", "val/log10_flops", "subsets", "Bits per byte of the mixture vs log10 FLOPs"),
        *(line(f"val/bpb_{s}", "val/log10_flops", "subsets", f"Bits per byte on {s} vs log10 FLOPs") for s in subsets),
        line("train/loss", "train/log10_flops", "health", "Training loss vs log10 FLOPs"),
        line("train/grad_norm", "train/tokens", "health", "Gradient norm vs tokens"),
        line("train/lr", "train/tokens", "health", "Learning rate vs tokens"),
        line("perf/tokens_per_s", "train/tokens", "health", "Tokens per second"),
    ]
    return {
        "searchFilter": "tags.kind = 'train'",
        "orderByKey": "metrics.`final/val_loss`",  # sorting by a metric flattens the tree, else children hide in their parent
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": list(COLUMNS),
        "columnOrder": list(COLUMNS),
        "columnWidths": COLUMNS,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOW_ALL",
        "viewMaximized": False,
        "runListHidden": False,
        "compareRunCharts": [chart | {"uuid": f"chart-{i}"} for i, chart in enumerate(charts)],
        "compareRunSections": [
            *(section(uuid, name) for uuid, name in SECTIONS.items()),
            *(section(name, name) | {"display": False} for name in FOLDED),
        ],
        "isAccordionReordered": True,
        "hideEmptyCharts": True,
        "useGroupedValuesInCharts": False,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def section(uuid: str, name: str) -> Json:
    """A heading with its charts, two in a row: three are too narrow beside the run list and an open side pane."""
    shown = {"uuid": uuid, "name": name, "display": True, "columns": 2, "cardHeight": 300}
    return shown | {"isReordered": True, "deleted": False, "isGenerated": False}


def line(y: str, x: str, section: str, title: str) -> Json:
    """A line chart of one metric over another; both must be logged at the same steps, or the page drops points."""
    return {
        **common("LINE", section, title),
        "metricKey": y,
        "selectedMetricKeys": [y],
        "lineSmoothness": 0,
        "scaleType": "linear",
        "xAxisScaleType": "linear",
        "range": {},
        "xAxisKey": "metric",
        "selectedXAxisMetricKey": x,
        "yAxisKey": "metric",
        "selectedYAxisMetricKey": "metric",
        "yAxisExpressions": [],
        "ignoreOutliers": False,
        "useGlobalXaxisKey": False,
        "useGlobalLineSmoothing": True,
    }


def scatter(x: str, y: str, section: str, title: str) -> Json:
    return {
        **common("SCATTER", section, title),
        "xaxis": {"key": x, "type": "METRIC"},
        "yaxis": {"key": y, "type": "METRIC"},
    }


def common(kind: str, section: str, title: str) -> Json:
    shown = {"displayName": title, "metricSectionId": section, "runsCountToCompare": 100}
    return {"type": kind, **shown, "deleted": False, "isGenerated": False}
