"""Proves that the run table of an MLflow experiment is exact, keeps provenance, and lists every run left out with its reason."""

import math
import os
from dataclasses import replace
from datetime import UTC, datetime

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from analysis.fit import FitSettings, fit
from analysis.forecast import freeze, score
from analysis.points import Point, Points, curves_from_mlflow, points_from_mlflow
from analysis.target import Target
from gopher.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own

QUICK = FitSettings(law="power_law", bootstrap=0, holdout=0)
SIZES = {"a": 5.4e4, "b": 1.21e5, "c": 2.68e5, "d": 6.01e5, "e": 1.3e6}


def log_run(client, experiment, rung, loss, *, seed=0, lr=1e-3, state="finished", tags=None, trial=None):
    run = client.create_run(experiment, run_name=f"{rung}-{seed}")
    n = SIZES[rung]
    params = {
        "rung": rung,
        "seed": seed,
        "model.n_params": int(3 * n),
        "model.n_params_nonemb": int(n),
        "optim.lr": lr,
        "train.tokens": 1_000_000,
        "train.steps": 100,
        "train.flops": 18e6 * n,
        "train.flops_convention": "6ND",
    }
    for name, value in params.items():
        client.log_param(run.info.run_id, name, value)
    labels = {
        "kind": "train",
        "trial.id": trial or f"{rung}-{seed}-{lr}",
        "rung": rung,
        "status.state": state,
        "config.hash": "c0ffee",
        "data.sha256": "da7a",
        "eval.version": "1",
    }
    for name, value in (labels | (tags or {})).items():
        client.set_tag(run.info.run_id, name, value)
    for i, share in enumerate((0.25, 0.5, 1.0) if loss and math.isfinite(loss) else ()):
        for name, value in {
            "val/loss": loss + 1 - share,
            "val/tokens": 1e6 * share,
            "val/flops": 18e6 * n * share,
        }.items():
            client.log_metric(run.info.run_id, name, value, step=25 * 2**i)
    if loss is not None:
        client.log_metric(run.info.run_id, "final/val_loss", loss, step=100)
        client.log_metric(run.info.run_id, "final/flops", 18e6 * n, step=100)
    client.set_terminated(run.info.run_id, "FINISHED" if state == "finished" else "FAILED")


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """An experiment with a clean ladder and one run of every kind that must be left out."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("ladder")
    parent = client.create_run(experiment, run_name="parent")
    client.set_tag(parent.info.run_id, "kind", "sweep")
    for rung, n in SIZES.items():
        for seed in (0, 1) if rung in "ab" else (0,):
            log_run(client, experiment, rung, 2.0 + 30 * n**-0.3 + 0.002 * seed, seed=seed)
    log_run(client, experiment, "e", None, seed=7, state="running")
    log_run(client, experiment, "e", None, seed=8, state="failed", tags={"status.reason": "out of memory"})
    log_run(client, experiment, "e", math.nan, seed=9)
    log_run(client, experiment, "d", 3.0, seed=3, tags={"eval.version": "0"})
    log_run(client, experiment, "c", 9.0, seed=0, lr=1e-4)
    log_run(client, experiment, "a", 9.9, seed=0, trial="a-0-0.001")  # the same identity as a later run
    log_run(client, experiment, "a", 2.0 + 30 * SIZES["a"] ** -0.3, seed=0)
    return uri


def test_run_table_lists_every_exclusion(ladder):
    points = points_from_mlflow(ladder, "ladder")
    assert sorted((p.rung, p.seed) for p in points) == [
        ("a", 0),
        ("a", 1),
        ("b", 0),
        ("b", 1),
        ("c", 0),
        ("d", 0),
        ("e", 0),
    ]
    reasons = {(e.rung, e.seed): e.reason for e in points.excluded}
    assert "running" in reasons["e", 7]
    assert "out of memory" in reasons["e", 8]
    assert "NaN" in reasons["e", 9]
    assert "evaluation version" in reasons["d", 3]
    assert "learning rate" in reasons["c", 0]
    assert "duplicate" in reasons["a", 0]
    assert len(points.excluded) == 7
    assert any("rung c" in note for note in points.notes)


def test_points_keep_numbers_and_provenance(ladder):
    point = next(p for p in points_from_mlflow(ladder, "ladder") if p.rung == "b" and p.seed == 1)
    assert point.loss == 2.0 + 30 * 1.21e5**-0.3 + 0.002
    assert (point.params_non_embedding, point.params_total, point.tokens, point.flops) == (
        1.21e5,
        3.63e5,
        1e6,
        18e6 * 1.21e5,
    )
    assert (point.config_hash, point.data_hash, point.flops_convention, point.learning_rate) == (
        "c0ffee",
        "da7a",
        "6ND",
        1e-3,
    )
    assert point.mlflow_run and point.unique_tokens is None


def test_training_curves_of_a_sweep(ladder):
    points = curves_from_mlflow(ladder, "ladder")
    assert len(points) == 21 and points.clusters().max() == 6
    curve = [(p.step, p.tokens, round(p.loss, 4)) for p in points if p.rung == "e"]
    end = round(2.0 + 30 * 1.3e6**-0.3, 4)
    assert curve == [(25, 2.5e5, round(end + 0.75, 4)), (50, 5e5, round(end + 0.5, 4)), (100, 1e6, end)]


def test_auto_fit_from_mlflow_predicts_the_largest_rung(ladder):
    result = fit(points_from_mlflow(ladder, "ladder"), FitSettings(bootstrap=100))
    first = result.holdout[0]
    assert (first.rung, first.fitted_rungs) == ("e", 4)
    assert abs(first.error_percent) < 1.0
    assert result.noise is not None and result.noise.seed_dof == 2
    assert result.also[0].x == "flops"


def test_missing_experiment_and_metric_are_named(ladder):
    with pytest.raises(UsageError, match="no experiment 'lader'; did you mean 'ladder'"):
        points_from_mlflow(ladder, "lader")
    with pytest.raises(UsageError, match="usable run"):
        points_from_mlflow(ladder, "ladder", metric="final/nothing")


def test_where_filters_and_says_so(ladder):
    points = points_from_mlflow(ladder, "ladder", where="rung != 'e'")
    assert {p.rung for p in points} == {"a", "b", "c", "d"}
    assert any("where=" in e.reason for e in points.excluded)


def test_hash_ignores_order_and_place():
    rows = tuple(Point(run_id=str(i), rung="r", loss=3.0 - i / 10, params_total=10.0**i, row=i) for i in range(4))
    moved = tuple(
        Point(run_id=p.run_id, rung=p.rung, loss=p.loss, params_total=p.params_total, row=9 - i)
        for i, p in enumerate(rows)
    )
    assert Points(rows=rows).sha256 == Points(rows=moved[::-1]).sha256
    assert Points(rows=rows).sha256 != Points(rows=rows[:3]).sha256


def test_a_logged_run_of_the_target_makes_a_backtest_however_it_was_left_out(ladder):
    """Once by `where`, once because its learning rate was not the best."""
    points = points_from_mlflow(ladder, "ladder", where="rung != 'e'")
    frozen = freeze(points, Target(params_non_embedding=1.3e6, tokens=1e6), QUICK)
    assert not frozen.before_run and {k.run_id for k in frozen.kept_out} == {"e-0-0.001"}
    again = freeze(points, Target(rung="new", params_non_embedding=5e6, run_keys=("c-0-0.0001",)), QUICK)
    assert not again.before_run and len(again.points) == len(points)
    assert freeze(points, Target(rung="new", params_non_embedding=5e6, run_keys=("e-7-0.001",)), QUICK).before_run


def test_a_forecast_is_scored_by_the_times_at_which_runs_ended(ladder):
    points = points_from_mlflow(ladder, "ladder")
    target, early = Target(params_non_embedding=1.3e6, tokens=1e6), datetime(2001, 1, 1, tzinfo=UTC)
    before = points_from_mlflow(ladder, "ladder", where="rung != 'e'")
    unseen = replace(before, source_rows=before.source_rows[before.source_rows["rung"] != "e"])
    first, late = freeze(unseen, target, QUICK, now=early), freeze(unseen, target, QUICK)
    assert first.before_run and not score(first, points).is_backtest and score(late, points).is_backtest


def test_all_settings_stay_where_another_metric_chooses_among_them(ladder):
    assert len(points_from_mlflow(ladder, "ladder", best=False)) == 8  # with the other learning rate of rung c


def test_what_is_not_fitted_stays_out_of_the_hash():
    """Frozen forecasts carry hashes from before points knew these."""
    point = Point(run_id="a", rung="r", loss=3.0, params_total=1e6)
    known = replace(point, batch_tokens=64.0, cost=1.0, started_at="2030-01-01")
    assert Points(rows=(point,)).sha256 == Points(rows=(known,)).sha256
    assert Points(rows=(point,)).sha256 == "3fa6469a269f7aaa40cd9ea0ccceab64a5d79fd877f49808687315d83baab519"
