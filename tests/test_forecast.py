"""Proves that a forecast cannot contain its target, says what it rests on, cannot be edited unseen, and is scored once and for all."""

import json
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from pictures import ladder_points

from analysis.fit import FitSettings
from analysis.forecast import calibration, freeze, score
from analysis.forecast_figures import calibration_figure
from analysis.forecast_files import load, load_all, save
from analysis.rows import Points
from analysis.table import points_from_frame
from analysis.target import Target
from gopher.errors import UsageError

SETTINGS = FitSettings(law="power_law", bootstrap=0, holdout=0)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY_AFTER = "2030-01-02T12:00:00+00:00"


def ended(points: Points, when: str = DAY_AFTER) -> Points:
    """The points with the time at which their runs ended."""
    return replace(points, rows=tuple(replace(p, finished_at=when) for p in points))


def grid(**columns) -> pd.DataFrame:
    """L = 1.7 + 400 / N^0.34 + 410 / D^0.28 with 0.2 % noise on five sizes at five token counts."""
    rng = np.random.default_rng(0)
    n, d = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e8, 1e10, 5), np.geomspace(2e9, 2e11, 5)))
    loss = (1.7 + 400 * n**-0.34 + 410 * d**-0.28) * np.exp(0.002 * rng.standard_normal(25))
    frame = pd.DataFrame({"run_id": [f"r{i}" for i in range(25)], "params_total": n, "tokens": d, "loss": loss})
    return frame.assign(**columns)


def below(points: Points, *rungs: str) -> Points:
    """The points without these rungs, as before they were run."""
    return points.take([p.rung not in rungs for p in points])


@pytest.fixture(scope="module")
def forecast():
    target = Target(rung="1_3m", params_non_embedding=1.28e6, tokens=1e6)
    return freeze(below(ladder_points(), "1_3m"), target, SETTINGS, study="demo", code={"commit": "c0ffee"}, now=NOON)


def test_a_forecast_says_what_it_is_and_rests_on(forecast):
    assert forecast.before_run and forecast.study == "demo" and forecast.code == {"commit": "c0ffee"}
    assert forecast.created_at == "2030-01-01T12:00:00+00:00"
    assert forecast.law == "power_law" and set(forecast.params) == {"A", "alpha"}
    assert {p.run_id for p in forecast.points} == {p.run_id for p in ladder_points() if p.rung != "1_3m"}
    assert all(p.config_hash and p.data_hash and p.mlflow_run for p in forecast.points)
    low, high = zip(*(forecast.intervals[level] for level in ("95", "80", "50")), strict=True)
    assert list(low) == sorted(low) and list(high) == sorted(high, reverse=True) and low[2] < forecast.mean < high[2]
    assert forecast.decades == pytest.approx(np.log10(1.28e6 / 5.99e5))


@pytest.mark.parametrize(
    "target",
    [
        Target(rung="1_3m"),  # by name, its size taken from its own runs
        Target(params_non_embedding=1.28e6),  # by size
        Target(params_total=3 * 1.28e6 * 1.001, params_non_embedding=1.28e6),
        Target(flops=18 * 1.28e6 * 1e6, params_non_embedding=1.28e6),
        Target(rung="renamed", params_non_embedding=1.28e6, run_keys=("1_3m-0",)),
    ],
)
def test_runs_of_the_target_never_enter_the_fit(target, forecast):
    """The numbers are those of a table that never held the target; a backtest is not called a forecast."""
    back = freeze(ladder_points(), target, SETTINGS)
    assert back.mean == pytest.approx(forecast.mean, rel=1e-12)
    assert "1_3m-0" not in {p.run_id for p in back.points}
    assert [k.run_id for k in back.kept_out] == ["1_3m-0"] and not back.before_run


def test_a_run_key_alone_keeps_a_run_out():
    kept = freeze(ladder_points(), Target(rung="new", params_non_embedding=5e6, run_keys=("mlflow-601k-0",)), SETTINGS)
    assert "601k-0" not in {p.run_id for p in kept.points} and kept.kept_out[0].reason == "it is a run of the target"


@pytest.mark.parametrize("target", [Target(params_total=1e10, tokens=1e13), Target(params_total=3e9, tokens=2e11)])
def test_runs_of_one_size_or_one_token_count_are_other_experiments(target):
    """Equal parameters at other tokens, or equal tokens at other parameters, are points of the law and no outcome."""
    frozen = freeze(points_from_frame(grid()), target, replace(SETTINGS, law="chinchilla", bootstrap=100))
    assert frozen.before_run and frozen.kept_out == () and len(frozen.points) == 25


def test_a_run_that_where_or_a_rule_left_out_makes_a_backtest():
    target = Target(params_total=1e10, tokens=2e11)
    names = {p.run_id for p in freeze(points_from_frame(grid()), target, SETTINGS).kept_out}
    for where in ("params_total < 9e9", "tokens < 1.9e11"):
        frozen = freeze(points_from_frame(grid(), where=where), target, SETTINGS)
        assert not frozen.before_run and {k.run_id for k in frozen.kept_out} == names == {"r24"}
        assert "where= or a rule" in frozen.kept_out[0].reason
    rates = pd.concat([grid(learning_rate=lr, run_id=f"r{lr}", loss=grid()["loss"] + lr) for lr in (0.1, 0.2, 0.3)])
    edge = points_from_frame(pd.concat([rates[rates["params_total"] > 9e9], grid(learning_rate=0.1).iloc[:20]]))
    assert not {p.params_total for p in edge} & {1e10} and not freeze(edge, target, SETTINGS).before_run


def test_another_family_or_a_planned_row_is_no_outcome():
    target = Target(params_total=1e10, tokens=2e11)
    moe = grid(family="moe", run_id=[f"m{i}" for i in range(25)])
    both = pd.concat([grid(family="dense"), moe])
    assert (
        freeze(points_from_frame(both, where="family=='dense' and params_total<9e9"), target, SETTINGS)
        .kept_out[0]
        .run_id
        == "r24"
    )
    dense = pd.concat([grid(family="dense").iloc[:24], moe])
    assert freeze(points_from_frame(dense, where="family=='dense'"), target, SETTINGS).before_run
    planned = grid()
    planned.loc[24, "loss"] = np.nan
    assert freeze(points_from_frame(planned, bad_rows="exclude"), target, SETTINGS).before_run


def test_earlier_measurements_of_the_targets_run_stay_out():
    curve = grid(run_id=[f"n{i % 5}" for i in range(25)], step=[i // 5 for i in range(25)])
    frozen = freeze(points_from_frame(curve), Target(params_total=1e10, tokens=2e11), SETTINGS)
    assert {k.run_id for k in frozen.kept_out} == {"n4"} and len(frozen.kept_out) == 5 and len(frozen.points) == 20


def test_a_run_is_scored_by_its_last_step(forecast):
    points = ladder_points()
    earlier = tuple(
        replace(p, loss=9.0, step=1, tokens=None if p.tokens is None else 0.99 * p.tokens)
        for p in points
        if p.rung == "1_3m"
    )
    whole, own = score(forecast, points), score(forecast, replace(points, rows=(*points.rows, *earlier)))
    assert own.outcome is not None and whole.outcome is not None and own.outcome.runs == whole.outcome.runs


def test_only_a_run_known_to_have_ended_later_counts_as_foretold(forecast):
    later, unknown = score(forecast, ended(ladder_points())), score(forecast, ladder_points())
    earlier = score(forecast, ended(ladder_points(), "2029-12-31"))
    assert [f.is_backtest for f in (forecast, later, unknown, earlier)] == [False, False, True, True]
    assert later.outcome is not None and later.outcome.runs[0].finished_at == DAY_AFTER
    begun = [replace(p, started_at=when) for when in ("2030-01-01T11:00", DAY_AFTER) for p in ended(ladder_points())]
    under_way, new = (Points(rows=tuple(part)) for part in (begun[: len(begun) // 2], begun[len(begun) // 2 :]))
    assert score(forecast, under_way).is_backtest and not score(forecast, new).is_backtest
    assert (calibration([later, unknown, earlier]).scored, calibration([later, unknown, earlier]).backtests) == (1, 2)
    with pytest.raises(UsageError, match="finished_at = 'last week', which is no time"):
        score(forecast, ended(ladder_points(), "last week"))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Target(rung="9m"), "has no size"),
        (Target(rung="9m", flops=1e15), "give target.params_non_embedding"),
    ],
)
def test_a_target_that_cannot_be_predicted_is_refused(target, words):
    with pytest.raises(UsageError, match=words):
        freeze(ladder_points(), target, SETTINGS)


def test_too_few_rungs_and_a_law_without_intervals_are_refused():
    with pytest.raises(UsageError, match="at least 2 other rungs"):
        freeze(
            ladder_points().take([p.rung in ("54k", "1_3m") for p in ladder_points()]), Target(rung="1_3m"), SETTINGS
        )
    single = ladder_points().take([p.rung in ("268k", "601k", "1_3m") for p in ladder_points()])
    with pytest.raises(UsageError, match="gives no 50 % interval"):
        freeze(single, Target(rung="1_3m"), replace(SETTINGS, law="power_law"))


def test_scoring_fills_in_the_outcome_and_nothing_else(forecast):
    assert score(forecast, below(ladder_points(), "1_3m")) == forecast  # not run yet
    scored = score(forecast, ladder_points(), now=NOON)
    outcome = scored.outcome
    assert outcome is not None and [r.run_id for r in outcome.runs] == ["1_3m-0"]
    actual = next(p.loss for p in ladder_points() if p.rung == "1_3m")
    assert outcome.actual == pytest.approx(actual)
    assert outcome.error_percent == pytest.approx(100 * (forecast.mean / actual - 1))
    for level, (low, high) in forecast.intervals.items():
        assert outcome.inside[level] == (low <= actual <= high)
    assert replace(scored, outcome=None) == forecast


def test_scoring_again_changes_nothing_and_a_new_seed_keeps_the_former_outcome(forecast):
    scored = score(forecast, ladder_points(), now=NOON)
    assert score(scored, ladder_points()) == scored
    more = next(p for p in ladder_points() if p.rung == "1_3m")
    later = replace(
        ladder_points(), rows=(*ladder_points().rows, replace(more, run_id="1_3m-1", seed=1, loss=more.loss * 1.01))
    )
    twice = score(scored, later)
    assert twice.outcome is not None and len(twice.outcome.runs) == 2
    assert twice.earlier_outcomes == (scored.outcome,) and twice.sha256 == forecast.sha256


def test_another_token_count_or_metric_is_another_experiment(forecast):
    longer = replace(ladder_points(), rows=tuple(replace(p, tokens=2e6) for p in ladder_points() if p.rung == "1_3m"))
    assert score(forecast, longer).outcome is None
    other = replace(ladder_points(), rows=tuple(replace(p, loss_name="final/val_bpb") for p in ladder_points()))
    with pytest.raises(UsageError, match="final/val_bpb"):
        score(forecast, other)


def test_files_round_trip_and_freezing_again_keeps_the_first(forecast, tmp_path):
    path = save(forecast, tmp_path)
    assert path.name == f"{forecast.id}.json" and load(path) == forecast
    first = path.read_bytes()
    target = Target(rung="1_3m", params_non_embedding=1.28e6, tokens=1e6)
    again = freeze(below(ladder_points(), "1_3m"), target, SETTINGS, study="demo")
    assert again.id == forecast.id and save(again, tmp_path) == path and path.read_bytes() == first
    scored = score(load(path), ladder_points())
    save(scored, tmp_path)
    assert load_all(tmp_path) == [scored] and load_all(tmp_path / "absent") == []
    save(again, tmp_path)
    assert load(path).outcome == scored.outcome


def test_an_edited_forecast_is_refused(forecast, tmp_path):
    path = save(forecast, tmp_path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"mean": raw["mean"] * 1.01}))
    with pytest.raises(UsageError, match="changed after it was frozen"):
        load(path)
    path.write_text("{")
    with pytest.raises(UsageError, match="is no forecast"):
        load(path)
    with pytest.raises(UsageError, match="there is no forecast"):
        load(tmp_path / "nothing.json")


def test_calibration_counts_forecasts_and_keeps_backtests_apart(forecast):
    scored = score(forecast, ended(ladder_points()))
    outcome = scored.outcome
    assert outcome is not None
    hit = replace(scored, outcome=replace(outcome, inside={"50": True, "80": True, "95": True}, error_percent=0.5))
    miss = replace(scored, outcome=replace(outcome, inside={"50": False, "80": False, "95": True}, error_percent=-1.5))
    back = replace(hit, before_run=False)
    record = calibration([hit, miss, miss, back, forecast])
    assert (record.scored, record.pending, record.backtests) == (3, 1, 1)
    assert record.inside == {"50": 1, "80": 1, "95": 3}
    assert record.mean_error_percent == pytest.approx(-2.5 / 3) and record.mean_abs_error_percent == pytest.approx(
        3.5 / 3
    )
    low, high = record.coverage95["95"]
    assert 0.29 < low < 0.30 and high == 1.0  # Clopper-Pearson of 3 in 3
    assert calibration([]).mean_error_percent is None
    figure = calibration_figure([hit, miss, back, forecast])
    assert figure is not None and "Of 2 scored forecasts" in figure.caption and "not run yet" in figure.svg
    assert [row[0] for row in figure.table.rows] == ["1.3M", "1.3M", "1.3M (backtest)", "1.3M"]
