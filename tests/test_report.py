"""Proves that the report says what the fit says, warnings first and in plain words, needs no network, and is written whole."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pictures import all_figures, joint_fit, ladder_fit, ladder_points

from analysis import isoflop_figures
from analysis.findings import findings, headline
from analysis.fit import FitSettings, dumps, fit, to_json
from analysis.fit_figures import holdouts
from analysis.points import points_from_file
from analysis.report import report_html, write_report
from analysis.rows import Points
from analysis.words import law_words
from sweeps.cli import run_verb

QUICK = FitSettings(law="power_law", bootstrap=0, sensitivity=False)


@pytest.fixture(scope="module")
def text():
    result = ladder_fit()
    given = {"git commit": "c0ffee (clean)", "tokenizer hash": "9f" * 32}
    return report_html("demo", result, result.points, all_figures(), given, ["gopher report sweep=demo"])


def changed(points: Points, rung: str, factor: float) -> Points:
    """The points with one rung's losses multiplied."""
    rows = tuple(replace(p, loss=p.loss * factor) if p.rung == rung else p for p in points)
    return Points(rows=rows, excluded=points.excluded, source=points.source, notes=points.notes)


def said(result, level):
    return " | ".join(f.text for f in findings(result).findings if f.level == level)


def test_the_headline_is_the_exponent_and_the_largest_rung_predicted():
    text = headline(ladder_fit())
    assert re.search(r"^Loss falls with non-embedding parameters as L = .*: exponent [\d.]+ \[[\d.]+, [\d.]+\]", text)
    assert re.search(
        r"1\.3M, predicted from the 4 smaller rungs: 3\.\d+ \[3\.\d+, 3\.\d+\], measured 3\.\d+: inside", text
    )


def test_a_rung_outside_its_interval_is_said_first_and_plainly():
    result = fit(changed(ladder_points(), "1_3m", 1.08), QUICK)
    assert "OUTSIDE the 95 % interval" in headline(result)
    assert findings(result).findings[0].level == "warning"
    assert "1.3M (3.9" in said(result, "warning") and "is OUTSIDE" in said(result, "warning")


def test_a_loss_that_does_not_fall_is_said():
    result = fit(changed(ladder_points(), "268k", 1.1), QUICK)
    assert "does NOT fall at every step of the ladder: 268k" in said(result, "warning")
    assert "does NOT clearly fall" in headline(result)


def test_a_law_that_the_data_cannot_carry_is_said_with_its_reasons():
    result = fit(ladder_points(), FitSettings(law="chinchilla", bootstrap=300, sensitivity=False, holdout=0))
    assert len(result.samples) == 300
    warning = next(f for f in findings(result).findings if "do not determine" in f.text)
    assert warning.level == "warning" and "Chinchilla" in warning.text and warning.details
    assert "do not determine the Chinchilla law" in headline(result)


def test_missing_intervals_hold_outs_and_seeds_are_said():
    points = ladder_points().take([p.seed == 0 for p in ladder_points()])
    result = fit(points, replace(QUICK, holdout=0))
    assert "bootstrap is 0" in said(result, "warning") and "No rung was held out" in said(result, "warning")
    assert "Seed noise was not measured" in said(result, "note")


def test_notes_of_the_points_become_warnings():
    noted = replace(ladder_points(), notes=("rung 54k: the best learning rate 0.01 is the largest of its grid",))
    assert "Rung 54k: the best learning rate" in said(fit(noted, QUICK), "warning")


def test_a_long_extrapolation_is_a_warning():
    far = replace(QUICK, holdout=0, targets=({"params": 1e9},))
    assert re.search(
        r"At 1.0B parameters the law predicts .* 2.89 decades beyond", said(fit(ladder_points(), far), "warning")
    )
    assert re.search(r"At 10²³ FLOPs the law predicts .*, best spent on", said(joint_fit(), "note"))


def test_the_page_fetches_nothing(text):
    assert not re.search(r"(src|href|action|data)\s*=\s*[\"']?\s*(https?:)?//", text)
    assert not re.search(r"url\(\s*[\"']?(?!#)", text) and "@import" not in text
    assert "<script" not in text and "<link" not in text and "<img" not in text
    assert "default-src 'none'" in text


def test_the_page_is_well_formed_accessible_and_complete(text):
    class Reader(HTMLParser):
        void = {"meta", "br", "hr", "input", "col"}
        stack: list[str] = []
        ids: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.ids += [v for k, v in attrs if k == "id" and v]
            if tag not in self.void:
                self.stack.append(tag)

        def handle_endtag(self, tag):
            assert self.stack.pop() == tag

    reader = Reader()
    reader.feed(text)
    assert reader.stack == [] and len(reader.ids) == len(set(reader.ids))
    assert '<html lang="en">' in text and 'name="viewport"' in text
    svgs = re.findall(r"<svg [^>]*>", text)
    assert len(svgs) == len(all_figures()) and all('role="img"' in s and "aria-label=" in s for s in svgs)
    assert text.count("<figcaption>") == text.count("<figure ") == len(svgs)
    assert text.count("Table of figure") == len(svgs)


def test_the_page_names_runs_exclusions_provenance_and_commands(text):
    for run in ladder_points():
        assert run.run_id in text and str(run.mlflow_run) in text
    assert "601k-3" in text and "Failed at step 312: loss is not finite." in text
    for part in (
        "c0ffee (clean)",
        "9f" * 32,
        ladder_points().sha256,
        "da7a",
        "6ND",
        "numpy",
        "gopher report sweep=demo",
    ):
        assert part in text


def test_names_are_escaped():
    rows = tuple(replace(p, run_id=f"<b>{p.run_id}</b>", rung=f"<i>{p.rung}&") for p in ladder_points())
    result = fit(Points(rows=rows, source="<script>x"), replace(QUICK, holdout=0))
    page = report_html("<script>alert(1)</script>", result, result.points, [], {"<b>": "<b>"}, ["<b>"])
    assert "<script>" not in page and "<b>54k" not in page and "<i>54k" not in page


def test_everything_is_written_and_agrees_with_the_fit(tmp_path):
    result = fit(ladder_points().take(range(5)), replace(QUICK, holdout=0))
    stale = tmp_path / "figures" / "old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("old")
    path = write_report(result, result.points, [], tmp_path)
    assert path == tmp_path / "report.html" and not stale.exists()
    assert (tmp_path / "fit.json").read_text() == dumps(to_json(result))
    rows = list(csv.DictReader((tmp_path / "points.csv").read_text().splitlines()))
    assert [float(r["loss"]) for r in rows] == [p.loss for p in result.points]
    assert json.loads((tmp_path / "fit.json").read_text())["law"] == "power_law"
    pictures = {p.stem for p in (tmp_path / "figures").glob("*.svg")}
    assert "loss_vs_params" in pictures
    assert pictures == {p.stem for p in (tmp_path / "figures").glob("*.png")}
    assert not list(tmp_path.rglob("*.part"))
    first = path.read_bytes()
    write_report(result, result.points, [], tmp_path)
    assert path.read_bytes() == first


SHARED = Path(__file__).parents[1].parent / "shared" / "scaling_data"
needs_published = pytest.mark.skipif(not SHARED.exists(), reason="published scaling data are not beside the repository")


@needs_published
def test_a_published_ladder_is_reported_as_it_is_known():
    """Dense models of Clark et al. 2022: the offset law predicts 1.3B from five sizes 0.50 % too high, the plain law 1.16 % too low."""
    points = points_from_file(SHARED / "dm_routing_final.csv", where="family=='Dense' and params_total==dense_params")
    result = fit(points, FitSettings(law="power_law_offset", bootstrap=0, sensitivity=False, holdout=1))
    assert "1.31B, predicted from the 5 smaller rungs: 2.25 [" in headline(result) and "inside" in headline(result)
    table = next(f.table for f in (holdouts(result),) if f is not None)
    row = dict(zip(table.header, table.rows[0], strict=True))
    assert row["error"] == "+0.50 %" and row["inside"] == "yes" and row["power law"] == "−1.2 %"


@needs_published
def test_published_isoflops_have_the_published_valleys():
    points = points_from_file(
        SHARED / "isoflops_openathena.csv", where="family=='epochai_chinchilla/massivetext/chinchilla'"
    )
    result = fit(points, FitSettings(law="isoflop", bootstrap=0, holdout=0))
    valleys = isoflop_figures.valleys(result)
    assert valleys is not None and len(valleys.table.rows) == 9
    assert "Compute-optimal size grows as C to the power 0.495" in headline(result)


def test_a_report_is_named_after_its_file_and_each_choice_of_rows_has_its_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "deep" / "runs.csv"
    table.parent.mkdir()
    table.write_text(
        "run_id,params_total,loss\n" + "".join(f"r{k},{10.0**k:g},{9 - 0.9 * k:g}\n" for k in range(6, 10))
    )
    told = [f"points={table}", f"output_root={tmp_path}", "law=power_law", "bootstrap=0", "holdout=0"]
    for where in ("", "params_total<5e8", "params_total>5e6"):
        assert run_verb("report", [*told, *([f"where='{where}'"] if where else [])]) == 0
    pages = sorted((tmp_path / "reports").glob("*/report.html"))
    assert len(pages) == 3 and (tmp_path / "reports" / "runs" / "report.html") in pages
    page = pages[0].read_text()
    assert "<title>runs.csv: scaling report</title>" in page and "<h1>runs.csv: scaling report</h1>" in page


def test_words_of_the_last_optimum():
    assert law_words("last_optimum") == "last optimum again"
