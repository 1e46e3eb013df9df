"""Proves that figures are the same bytes every time, carry words and a table, keep to the style, and are left out when the
data cannot fill them."""

import re
import xml.etree.ElementTree as ET
from dataclasses import replace

import numpy as np
import pytest
from pictures import all_figures, joint_fit, ladder_curves, ladder_fit, ladder_points

from analysis.curves import Curve
from analysis.drawing import COLOURS, log_ticks, marks, plain_ticks, spread
from analysis.figures import figures
from analysis.fit import FitSettings, fit
from analysis.fit_figures import holdouts, residuals, seeds
from analysis.isoflop import Skipped
from analysis.isoflop_figures import MOST_NAMES, Valley, name_budgets, valleys_of
from analysis.numbers import power_of_ten
from analysis.parameter_figures import cloud
from analysis.rows import Point, Points
from analysis.run_figures import learning_rates


@pytest.fixture(scope="module")
def drawn():
    return all_figures()


@pytest.fixture(scope="module")
def joint():
    return figures(joint_fit())


def test_a_ladder_with_curves_and_tasks_fills_every_figure(drawn):
    names = {f.name for f in drawn}
    assert names >= {
        "loss_vs_params", "loss_vs_flops", "loss_vs_tokens", "holdout", "seed_spread", "residuals", "profiles",
        "bootstrap", "subsets", "learning_rate", "tasks_science", "tasks_language_modelling", "relative_gain",
    }  # fmt: skip
    assert len(names) == len(drawn)


def test_a_joint_law_is_drawn_against_parameters_tokens_and_flops(joint):
    names = {f.name for f in joint}
    assert names >= {
        "loss_vs_params",
        "loss_vs_tokens",
        "loss_vs_flops",
        "frontier",
        "residuals",
        "profiles",
        "bootstrap",
    }


def test_held_out_runs_are_ringed_and_no_run_is_compared_with_a_smaller_budget(joint):
    by_name = {f.name: f for f in joint}
    for name in ("loss_vs_params", "loss_vs_tokens", "loss_vs_flops"):
        assert "Rings: the largest runs by FLOPs, held out" in by_name[name].caption
    for row in by_name["loss_vs_flops"].table.rows:
        if row[2] != "none":
            assert float(row[2]) > float(row[1].split(" ")[0]) * 0.99


def test_every_figure_says_in_words_and_rows_what_it_shows(drawn, joint):
    for figure in (*drawn, *joint):
        root = ET.fromstring(figure.svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 60 and re.search(r"\d", figure.alt)
        assert figure.caption.endswith(".") and figure.table.rows
        assert all(len(row) == len(figure.table.header) for row in figure.table.rows)


def test_alternative_text_holds_the_prediction(drawn):
    alt = next(f.alt for f in drawn if f.name == "loss_vs_params")
    assert "1.3M predicted from 4 smaller rungs" in alt and "95 % interval [" in alt and "measured" in alt


def test_pictures_carry_no_date_no_address_and_no_type_below_eleven(drawn, joint):
    for figure in (*drawn, *joint):
        outside = re.sub(r'xmlns(:\w+)?="[^"]*"', "", figure.svg)
        assert "http" not in outside and "<metadata" not in outside and "<script" not in outside
        assert b"Creation" not in figure.png[:400] and figure.png.startswith(b"\x89PNG")
        sizes = [float(s) for s in re.findall(r"(?:font:|font-size:)[^;\"]*?([\d.]+)px", figure.svg)]
        assert sizes and min(sizes) >= 11


def test_ids_are_unique_over_all_figures_of_a_page(drawn):
    ids = [i for figure in drawn for i in re.findall(r'\bid="([^"]+)"', figure.svg)]
    assert len(ids) == len(set(ids))
    for figure in drawn:
        own = set(re.findall(r'\bid="([^"]+)"', figure.svg))
        assert set(re.findall(r'(?:href="|url\()#([\w.-]+)', figure.svg)) <= own


def test_the_same_fit_gives_the_same_bytes():
    again = fit(ladder_points(), ladder_fit().settings)
    for draw in (holdouts, seeds, residuals, cloud):
        first, second = draw(ladder_fit()), draw(again)
        assert first and first == second


def test_figures_that_data_cannot_fill_are_left_out():
    two = fit(ladder_points().take(np.arange(4)), FitSettings(bootstrap=0))
    names = {f.name for f in figures(replace(two, also=()))}
    assert "loss_vs_params" in names
    assert not names & {"holdout", "frontier", "isoflop", "subsets", "learning_rate", "relative_gain", "forecasts"}


def test_one_seed_per_rung_has_no_seed_picture():
    single = fit(ladder_points().take([p.seed == 0 for p in ladder_points()]), FitSettings(bootstrap=0, holdout=0))
    assert seeds(single) is None and holdouts(single) is None and cloud(single) is None


def test_runs_left_out_of_the_fit_are_still_curves(drawn):
    table = next(f.table for f in drawn if f.name == "loss_vs_tokens")
    assert dict(zip(table.header, next(r for r in table.rows if r[0] == "54k"), strict=True))["runs"] == "4"


def test_a_best_rate_at_the_edge_is_said():
    worse = [
        replace(c, final=dict(c.final) | {"final/val_loss": 9.0}) if c.learning_rate == 0.01 else c
        for c in ladder_curves()
    ]
    figure = learning_rates(ladder_fit(), worse)
    assert figure is not None and "edge of the grid" in figure.caption


def test_a_curve_joins_its_series_by_step_and_leaves_out_what_a_log_axis_cannot_show():
    curve = Curve(run_id="a", rung="a", series={"x": {0: 0.0, 1: 10.0, 2: 20.0}, "y": {0: 9.0, 2: 5.0, 3: 4.0}})
    x, y = curve.joined("x", "y")
    assert x.tolist() == [20.0] and y.tolist() == [5.0]


def test_valleys_need_budgets_and_say_where_no_minimum_is():
    rows = [
        Point(run_id=f"{c:g}-{k}", rung=f"{k}", loss=2.0 + 0.1 * (np.log10(n) - 8.5) ** 2 + bend * np.log10(n), params_total=n,
              tokens=c / (6 * n), flops=c)
        for c, bend in ((1e18, 0.0), (1e19, 0.0), (1e20, 0.5))
        for k, n in enumerate(np.geomspace(1e8, 1e9, 6))
    ]  # fmt: skip
    found = valleys_of(Points(rows=tuple(rows)), "total")
    assert [v.n_opt is None for v in found] == [False, False, True]
    assert found[0].n_opt == pytest.approx(10**8.5, rel=1e-6)
    assert valleys_of(ladder_points(), "total") == []


@pytest.mark.parametrize("budgets", [2, 16, 17, 50])
def test_budgets_are_named_as_far_as_there_is_room(budgets):
    from matplotlib.figure import Figure

    size, ax = np.geomspace(1e7, 1e8, 4), Figure().add_subplot()
    found = [
        Valley(size=size, loss=5 - 0.05 * i + np.zeros(4), found=Skipped(flops=10.0 ** (17 + i), runs=4, reason=""))
        for i in range(budgets)
    ]
    name_budgets(ax, found, (2.0, 6.0))
    names = [text.get_text() for text in ax.texts]
    assert len(names) == budgets if budgets <= MOST_NAMES else MOST_NAMES / 2 < len(names) <= MOST_NAMES
    assert names[0] == power_of_ten(10.0 ** (16 + budgets), 1)


@pytest.mark.parametrize(("low", "high"), [(5e4, 1.3e6), (1e17, 9e23), (3.0, 5.0), (1e5, 2e12), (1.0, 1.2)])
def test_log_ticks_are_few_round_and_inside(low, high):
    ticks = log_ticks(low, high)
    assert 2 <= len(ticks) <= 7 and all(low * 0.99 <= t <= high * 1.01 for t in ticks)
    assert all(float(f"{t:.2g}") == pytest.approx(t) or high / low < 2 for t in ticks)


def test_plain_ticks_are_inside():
    assert all(3.61 <= t <= 4.33 for t in plain_ticks(3.61, 4.33))


def test_labels_move_apart_and_keep_their_order():
    placed = spread([0.50, 0.51, 0.52, 0.9], 0.1, 0.0, 1.0)
    assert np.diff(placed).min() >= 0.1 - 1e-9 and placed[3] == pytest.approx(0.9)
    assert max(spread([0.95, 0.97, 0.99], 0.1, 0.0, 1.0)) <= 1.0


def test_rungs_differ_without_colour():
    looks = marks([str(i) for i in range(9)])
    assert len({(m.marker, str(m.dash)) for m in looks.values()}) == 9 and len(COLOURS) == 7
