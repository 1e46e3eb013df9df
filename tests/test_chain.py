"""Proves that the two-step prediction recovers planted curves, keeps targets out of both fits, and carries both uncertainties."""

import numpy as np
import pandas as pd
import pytest
from scaling import loss_of

from analysis.chain import fit_chain
from analysis.command import request_from, run_fit
from analysis.result import FitSettings
from analysis.scores import CURVES, fit_scores
from analysis.task_runs import TaskSettings, smoothed, task_runs
from gopher.errors import UsageError

STEPS = 20


def accuracy(loss):
    return 1.0 - 0.72 / (1 + np.exp(-5.0 * (loss - 2.4)))


def checkpoints(seed=0, sizes=(3e7, 1e8, 3e8, 1e9, 3e9, 1e10)):
    """Three ratios per size, twenty checkpoints a run, small noise; the largest size is the target."""
    rng, rows = np.random.default_rng(seed), []
    for n in sizes:
        for ratio in (10, 40, 160):
            tokens = ratio * n * np.arange(1, STEPS + 1) / STEPS
            loss = loss_of(n, tokens) * np.exp(0.002 * rng.standard_normal(STEPS))
            score = accuracy(loss) + 0.004 * rng.standard_normal(STEPS)
            for step in range(STEPS):
                common = {
                    "run_id": f"{n:.0e}-{ratio}",
                    "step": step,
                    "params_total": n,
                    "tokens": tokens[step],
                    "flops": 6 * n * tokens[step],
                }
                rows.append(common | {"metric_name": "bpb:quiz", "metric_value": loss[step]})
                rows.append(common | {"metric_name": "acc:quiz", "metric_value": score[step]})
    return pd.DataFrame(rows).assign(row=range(len(rows)))


TASK = TaskSettings(loss={"bpb:quiz": 1.0}, score={"acc:*": 1.0}, target="params_total > 5e9")


def test_targets_are_predicted_through_both_steps():
    runs = task_runs(checkpoints(), TASK, "simulated")
    assert sum(r.target for r in runs) == 3 and not any(r.target and (r.in_step1 or r.in_step2) for r in runs)
    result = fit_chain(
        runs, TASK, FitSettings(law="two_step", bootstrap=60, targets=({"params": 3e10, "tokens": 3e12},)), "simulated"
    )
    assert result.law == "two_step" and len(result.holdout) == 3 and len(result.points) == 15
    for held in result.holdout:
        assert abs(held.predicted - held.actual) < 0.01
        assert (
            held.interval95[0] < held.predicted < held.interval95[1] and held.interval95[1] - held.interval95[0] < 0.1
        )
        assert 0.7 < held.baselines["last_point"] < 0.9
    steps = {row["step"] for row in result.tables["targets"]}
    assert steps == {"loss", "score from actual loss", "chained score"}
    assert result.predictions[0].mean == pytest.approx(accuracy(loss_of(3e10, 3e12)), abs=0.01)
    assert abs(result.params["alpha"] - 0.34) < 0.05 and set(result.ci) >= {"alpha", "score_k"}


def test_score_against_loss_alone():
    task = TaskSettings(loss={"bpb:quiz": 1.0}, score={"acc:quiz": 1.0}, step1="none", target="params_total > 5e9")
    result = fit_chain(task_runs(checkpoints(), task, "simulated"), task, FitSettings(bootstrap=20), "simulated")
    assert result.law == "score_from_loss" and set(result.params) == {"score_a", "score_x0", "score_k", "score_b"}
    assert all(abs(row["relative_error"]) < 0.02 for row in result.tables["targets"])


@pytest.mark.parametrize(("name", "truth"), [("sigmoid", [-0.7, 0.8, 6.0, 1.0]), ("exponential", [0.86, 2.2, 0.71])])
def test_score_curves_come_back(name, truth):
    curve = CURVES[name]
    loss = np.linspace(0.5, 3.5, 40) if name == "exponential" else np.linspace(0.3, 2.0, 40)
    p = np.array(truth)
    for j in range(len(p)):
        step = np.zeros(len(p))
        step[j] = 1e-6
        np.testing.assert_allclose(
            curve.slope(p, loss)[:, j], (curve.value(p + step, loss) - curve.value(p - step, loss)) / 2e-6, atol=1e-7
        )
    found, squares = fit_scores(curve, loss, curve.value(p, loss), np.ones(40))
    np.testing.assert_allclose(curve.value(found, loss), curve.value(p, loss), atol=5e-3)
    assert squares < 1e-3


def test_early_checkpoints_are_dropped_and_the_rest_smoothed():
    task = TaskSettings(skip=0.2, window=3)
    assert smoothed(np.arange(10.0), task) == pytest.approx([2, 2.5, 3, 4, 5, 6, 7, 8])
    assert smoothed(np.array([4.0]), task) == pytest.approx([4.0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"score": {}}, "task.score is empty"),
        ({"score": {"acc:quizz": 1.0}}, "task.score names 'acc:quizz'.*did you mean 'acc:quiz'"),
        ({"step2": "sigmod"}, "task.step2 is 'sigmod'; did you mean 'sigmoid'"),
        ({"target": "size > 3"}, 'where is "size > 3" and cannot be evaluated'),
        ({"step1": "chincilla"}, "law is 'chincilla'"),
    ],
)
def test_what_means_nothing_is_refused(change, message):
    task = TaskSettings(**({"loss": {"bpb:quiz": 1.0}, "score": {"acc:quiz": 1.0}} | change))
    with pytest.raises(UsageError, match=message):
        fit_chain(task_runs(checkpoints(), task, "simulated"), task, FitSettings(bootstrap=0), "simulated")


def test_two_files_are_joined(tmp_path):
    table = checkpoints().drop(columns="row")
    paths = []
    for kind in ("bpb", "acc"):
        paths.append(str(tmp_path / f"{kind}.csv"))
        table[table["metric_name"].str.startswith(kind)].to_csv(paths[-1], index=False)
    task = {"loss": "bpb:quiz", "score": ["acc:quiz"], "target": "params_total > 5e9"}
    result = run_fit(request_from({"points": paths, "law": "two_step", "bootstrap": 0, "task": task}))
    assert (
        result.points.source == "bpb.csv+acc.csv" and len(result.holdout) == 3 and result.holdout[0].interval95 is None
    )
