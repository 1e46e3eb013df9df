"""Proves that curves come out of MLflow as they were logged, step by step, and find their points."""

import pytest
from pictures import ladder_curves, ladder_points

from analysis.curves import curves_from_mlflow, fitted
from gopher.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own


def test_curves_from_mlflow(tmp_path):
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    client = MlflowClient(tracking_uri=uri)
    experiment = client.create_experiment("demo")
    run = client.create_run(experiment, run_name="54k-lr0.01-s0").info.run_id
    for key, value in {"model.n_params": 150_000, "model.n_params_nonemb": 53_000, "optim.lr": 0.01, "seed": 0}.items():
        client.log_param(run, key, value)
    for key, text in {"kind": "train", "trial.id": "abc", "rung": "54k", "status.state": "finished"}.items():
        client.set_tag(run, key, text)
    for step, loss in ((0, 7.6), (10, 5.0), (20, 4.5)):
        client.log_metric(run, "val/loss", loss, step=step)
        client.log_metric(run, "val/tokens", 1000.0 * step, step=step)
    client.log_metric(run, "final/val_loss", 4.5, step=20)
    client.log_metric(run, "final/val_bpb_code", 1.9, step=20)
    curves = curves_from_mlflow(uri, "demo")
    assert len(curves) == 1
    curve = curves[0]
    assert (curve.run_id, curve.mlflow_run, curve.rung, curve.seed, curve.learning_rate) == ("abc", run, "54k", 0, 0.01)
    assert curve.series["val/loss"] == {0: 7.6, 10: 5.0, 20: 4.5} and "val/flops" not in curve.series
    assert curve.joined("val/tokens", "val/loss")[1].tolist() == [5.0, 4.5]
    assert curve.loss == 4.5 and curve.subsets("bpb") == {"code": 1.9} and curve.params_non_embedding == 53_000
    with pytest.raises(UsageError, match="no experiment 'dem'"):
        curves_from_mlflow(uri, "dem")


def test_fitted_curves_are_those_of_the_points():
    found = fitted(ladder_curves(), ladder_points())
    assert [c.run_id for c in found] == [p.run_id for p in ladder_points()]
