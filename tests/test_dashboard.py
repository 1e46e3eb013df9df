"""The saved views show what training logs, in sections and colours for people; one slow test draws them in a real browser."""

import base64
import html
import json
import re
import shutil
import socket
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from logged_study import SHAPES, SUBSETS, finished_folder, study_spec

from sweeps.dashboard import (
    COLUMNS,
    FOLDED,
    LADDER_VIEW,
    OKABE_ITO,
    RUNG_VIEW,
    SECTIONS,
    dashboard_url,
    rung_color,
    view_state,
    view_tags,
)
from sweeps.entries import run_params
from sweeps.serve import running_server
from sweeps.track import Tracker

TAG_CHARACTERS = 20_000  # MLflow's limit of an experiment tag


def metric_pairs(state: dict[str, Any]) -> list[tuple[str, str]]:
    """(x, y) of every chart."""
    charts = state["compareRunCharts"]
    lines = [(c["selectedXAxisMetricKey"], c["metricKey"]) for c in charts if c["type"] == "LINE"]
    return lines + [(c["xaxis"]["key"], c["yaxis"]["key"]) for c in charts if c["type"] == "SCATTER"]


def unpacked(tag: str) -> dict[str, Any]:
    """The page state inside a view tag."""
    packed = json.loads(tag)["state"].removeprefix("deflate;")
    state: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return state


def test_a_view_survives_its_packing() -> None:
    ladder = unpacked(view_tags(["speeches"], 1_700_000_000_000)[f"mlflow.sharedViewState.{LADDER_VIEW}"])
    assert ladder == view_state(["speeches"])


def test_the_views_of_a_wide_mixture_fit_into_their_tags() -> None:
    tags = view_tags([f"a_rather_long_subset_name_{i}" for i in range(50)], 1_700_000_000_000)
    assert len(tags) == 2 and max(map(len, tags.values())) < TAG_CHARACTERS


def test_the_second_view_is_the_mean_of_each_rung() -> None:
    by_rung = unpacked(view_tags(["speeches"], 0)[f"mlflow.sharedViewState.{RUNG_VIEW}"])
    key = by_rung["groupBy"]["groupByKeys"][0]
    assert key["mode"] == "param" and key["groupByData"] in run_params(study_spec("54k", 0))
    assert by_rung["compareRunCharts"] == view_state(["speeches"])["compareRunCharts"]


def test_every_chart_has_its_axes_logged_at_the_same_steps(tmp_path: Path) -> None:
    """The page joins two metrics by step, so a point without its partner is not drawn."""
    logged = finished_folder(tmp_path, study_spec("54k", 0, 60_000)).metrics()
    for x, y in metric_pairs(view_state(list(SUBSETS))):
        assert logged[y].keys() - {0} == logged[x].keys() - {0}, (x, y)


def test_charts_and_columns_name_what_training_logs() -> None:
    from gopher.metrics import budget, final_metrics

    spec = study_spec("54k", 0)
    evaluated = {f"val/{kind}{part}": 1.0 for kind in ("loss", "bpb") for part in ("", *(f"_{n}" for n in SUBSETS))}
    logged = {"train/loss", "train/grad_norm", "train/lr", "perf/tokens_per_s", *evaluated}
    logged |= {name for prefix in ("train", "val") for name in budget(spec, spec.steps, prefix)}
    logged |= final_metrics(spec, evaluated, 60.0, 1).keys()
    assert {name for pair in metric_pairs(view_state(list(SUBSETS))) for name in pair} <= logged
    columns = {f"metrics.`{name}`" for name in logged} | {f"params.`{name}`" for name in run_params(spec)}
    assert COLUMNS.keys() <= columns


def test_sections_come_in_order_and_hold_every_chart() -> None:
    state = view_state(["speeches"])
    names = [s["name"] for s in state["compareRunSections"]]
    assert names == ["Scaling", "By subset", "Training health", *FOLDED]
    assert [s["display"] for s in state["compareRunSections"]] == [True] * 3 + [False] * len(FOLDED)
    assert {c["metricSectionId"] for c in state["compareRunCharts"]} == SECTIONS.keys()
    uuids = [c["uuid"] for c in state["compareRunCharts"]]
    assert len(set(uuids)) == len(uuids)


def test_six_rungs_have_six_colours() -> None:
    rungs = ["44m", "117m", "417m", "1_4b", "7_1b", "280b"]
    assert [rung_color(r, rungs) for r in rungs] == list(OKABE_ITO[:6])
    assert rung_color("9t", rungs) in OKABE_ITO
    assert rung_color("r8", [f"r{i}" for i in range(9)]) == OKABE_ITO[0]


def test_the_link_opens_the_charts_of_the_view() -> None:
    link = "http://host/ml/#/experiments/7/runs?workflowType=machine_learning&compareRunsMode=CHART"
    assert dashboard_url("http://host/ml/", "7") == f"{link}&viewStateShareKey=ladder"


# ---- a real browser


@pytest.fixture
def browser() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    return found or pytest.skip("no Chromium on this machine, so the page's format is only checked as data")


@pytest.fixture
def study_link(tmp_path: Path) -> Iterator[str]:
    """The dashboard's address of a study of three rungs, served for the time of a test."""
    folders = [finished_folder(tmp_path, study_spec(rung, 0, 60_000)) for rung in list(SHAPES)[:3]]
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    writer = Tracker(uri, "demo", tmp_path / "mlartifacts", list(SHAPES))
    writer.open_sweep("name: demo")
    writer.write_views(list(SUBSETS))
    assert writer.flush(folders, 0) is None
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    with running_server(uri, tmp_path, port) as (base, _):
        yield dashboard_url(base, "1")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
def test_a_fresh_browser_draws_every_chart(browser: str, study_link: str, tmp_path: Path) -> None:
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    window = ["--window-size=1600,5000", "--virtual-time-budget=60000", "--timeout=120000", "--dump-dom"]
    shown = subprocess.run([browser, *options, *window, study_link], capture_output=True, text=True, timeout=280)
    charts = view_state(list(SUBSETS))["compareRunCharts"]
    assert shown.stdout.count("js-plotly-plot") == len(charts), shown.stderr[-500:]
    text = html.unescape(re.sub(r"<[^>]+>", "\n", re.sub(r"<style.*?</style>", "", shown.stdout, flags=re.DOTALL)))
    said = [line for line in text.splitlines() if line.strip()]
    headings = [i for i, line in enumerate(said) if line in SECTIONS.values()]
    assert [said[i] for i in headings] == list(SECTIONS.values())
    assert said[headings[0] + 1] == "(4)"
    for rung in list(SHAPES)[:3]:
        assert f"{rung}-lr0.01-s0" in said and rung_color(rung, list(SHAPES)) in said
