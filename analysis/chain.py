"""Two-step downstream prediction: (N, D) or C -> task loss -> task score, with the uncertainty of both steps in the answer.

The recipe of the OLMo ladder (Bhagia et al. 2024): task loss of a run = mean of its last checkpoints, fitted by
approach 3; task score against task loss over all checkpoints (first tenth dropped, moving average), fitted by a sigmoid.
With step2=exponential it is the chain of Gadre et al. 2024 (over-training law -> average error).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.bootstrap import Interval, interval, resample, uncertainty
from analysis.estimate import Estimate, estimate
from analysis.fit import counts, law_delta
from analysis.holdout import HoldOut
from analysis.identify import Verdict, judge
from analysis.law import Law
from analysis.laws import law_named
from analysis.result import FitResult, FitSettings, Prediction
from analysis.rows import Array, Point, Points
from analysis.scores import ScoreCurve, curve_named, fit_scores
from analysis.task_runs import TaskRun, TaskSettings, smoothed
from gopher.errors import UsageError

CHAIN_RESAMPLES = 400  # of step 2: each is a bounded least-squares fit


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreFit:
    """Step 2 at its optimum, its resamples and the scatter of final scores about it."""

    curve: ScoreCurve
    params: Array
    squares: float
    samples: Array  # (resamples, parameters)
    residuals: Array  # of final scores, one a run
    runs: int

    @property
    def named(self) -> dict[str, float]:
        return dict(zip(self.curve.parameters, map(float, self.params), strict=True))

    @property
    def columns(self) -> dict[str, Array]:
        """Resampled parameters by name; empty without resamples."""
        return dict(zip(self.curve.parameters, self.samples.T, strict=True)) if len(self.samples) else {}

    def at(self, loss: float) -> float:
        """The score at a task loss."""
        return float(self.curve.value(self.params, np.array([loss]))[0])

    def draw(self, loss: Array, rng: np.random.Generator) -> Array:
        """A score for each loss, from the resamples in turn, with the noise of a final score."""
        p = self.samples[np.arange(len(loss)) % len(self.samples)]
        score = np.array([self.curve.value(row, np.array([x]))[0] for row, x in zip(p, loss, strict=True)])
        widen = np.sqrt(self.runs / max(self.runs - len(self.params), 1))
        return score + widen * rng.choice(self.residuals, len(loss))


def fit_step2(runs: Sequence[TaskRun], task: TaskSettings, count: int, seed: int) -> ScoreFit:
    """Score against loss over the checkpoints of `runs`, runs resampled whole (residuals redrawn when there is one checkpoint each)."""
    curve = curve_named(task.step2)
    loss, score = [smoothed(r.loss, task) for r in runs], [smoothed(r.score, task) for r in runs]
    x, y = np.concatenate(loss), np.concatenate(score)
    owner = np.repeat(np.arange(len(runs)), [len(v) for v in loss])
    ones = np.ones(len(x))
    if len(x) <= len(curve.parameters):
        raise UsageError(
            f"step 2 has {len(x)} points for the {len(curve.parameters)} parameters of the {curve.name}; add runs or checkpoints"
        )
    params, squares = fit_scores(curve, x, y, ones)
    rng = np.random.default_rng([seed, 2])
    finals = np.array(
        [r.score[-task.last :].mean() - curve.value(params, r.loss[-task.last :].mean(keepdims=True))[0] for r in runs]
    )
    samples = []
    dof = max(len(x) - len(params), 1)
    for _ in range(min(count, CHAIN_RESAMPLES)):
        if len(x) > 2 * len(runs):
            w = rng.multinomial(len(runs), np.full(len(runs), 1 / len(runs)))[owner].astype(float)
            samples.append(fit_scores(curve, x, y, w, params)[0])
        else:
            sd = np.sqrt(squares / rng.chisquare(dof))
            drawn = curve.value(params, x) + sd * rng.standard_normal(len(x))
            samples.append(fit_scores(curve, x, drawn, ones, params)[0])
    return ScoreFit(
        curve=curve,
        params=params,
        squares=squares,
        samples=np.array(samples).reshape(-1, len(params)),
        residuals=finals,
        runs=len(runs),
    )


def fit_chain(runs: tuple[TaskRun, ...], task: TaskSettings, s: FitSettings, source: str) -> FitResult:
    """Both steps and, for every target run and every target of the settings, the chained prediction."""
    step2 = fit_step2([r for r in runs if r.in_step2], task, s.bootstrap, s.seed)
    fitted = [r for r in runs if r.in_step1]
    points = Points(rows=tuple(r.point(task.last) for r in fitted), source=source)
    if task.step1 == "none":
        return score_result(runs, points, step2, task, s)
    law = law_named(task.step1, s.x)
    e = estimate(
        law,
        points,
        parameters=counts(law, s),
        delta=law_delta(law, s),
        wide=True,
    )
    return chain_result(e, runs, step2, task, s)


def chain_result(
    e: Estimate, runs: tuple[TaskRun, ...], step2: ScoreFit, task: TaskSettings, s: FitSettings
) -> FitResult:
    r = resample(e, s.bootstrap, s.seed)
    verdict, found = judge(e, r)
    params = e.params | step2.named
    ci, errors = uncertainty((r.quantities(e) if r else {}) | step2.columns)
    chained = [
        chained_target(e, r.theta if r else None, step2, target_inputs(e.law, run.point(task.last), s), s)
        for run in runs
        if run.target
    ]
    held, tables = target_rows(e, step2, runs, chained, task, s)
    predictions = tuple(
        Prediction(
            inputs={k: float(v) for k, v in t.items()},
            mean=c.score,
            intervals=c.intervals,
            derived={"task_loss": c.loss},
        )
        for t in s.targets
        for c in (chained_target(e, r.theta if r else None, step2, t, s),)
    )
    return FitResult(
        law="two_step",
        requested=s.law,
        settings=s,
        x=None,
        parameters=e.points.parameter_column(counts(e.law, s)),
        points=e.points,
        params=params,
        objective=e.optimum.objective,
        objective_name=f"step 1 ({e.law.name}): Huber or least squares of log task loss; step 2 in tables",
        optimum=e.optimum,
        ci=ci,
        standard_errors=errors,
        derived={"step2_sum_of_squares": step2.squares},
        verdict=Verdict(
            identified=verdict.identified,
            reasons=verdict.reasons,
            law=f"two_step ({e.law.name}, {step2.curve.name})",
            reported="two_step",
        ),
        holdout=held,
        noise=e.noise,
        resampling=r.method if r else "none",
        predictions=predictions,
        profiles=found,
        tables=tables,
        fitted=e.loss * np.exp(-e.residuals),
        sample_values=np.empty((0, len(params))),
    )


@dataclass(frozen=True, kw_only=True)
class Chained:
    """The two steps at one target."""

    loss: float
    score: float
    intervals: dict[str, Interval | None]


def chained_target(
    e: Estimate, theta: Array | None, step2: ScoreFit, inputs: Mapping[str, float], s: FitSettings
) -> Chained:
    """Score at the target: the point prediction, and percentiles over resamples of both steps with the noise of both."""
    missing = [name for name in e.law.inputs if name not in inputs]
    if missing:
        raise UsageError(
            f"target {dict(inputs)} lacks {', '.join(missing)}, which step 1 ({e.law.name}) reads; give every one of {', '.join(e.law.inputs)}"
        )
    loss = float(e.law.predict(e.params, inputs)[0])
    score = step2.at(loss)
    if theta is None or not len(step2.samples):
        return Chained(loss=loss, score=score, intervals={})
    rng = np.random.default_rng([s.seed, 3])
    logs = e.law.log_predict(theta, inputs)[:, 0]
    sd, dof = e.noise.prediction_sd_log or 0.0, max(e.noise.prediction_dof, 1)
    losses = np.exp(logs + sd * rng.standard_t(dof, len(logs)))
    drawn = step2.draw(losses, rng)
    return Chained(
        loss=loss, score=score, intervals={f"{level:g}": interval(drawn, level) for level in (50.0, 80.0, 95.0)}
    )


def target_inputs(law: Law, point: Point, s: FitSettings) -> dict[str, float]:
    """What `law` reads, of one run."""
    table = Points(rows=(point,)).inputs(counts(law, s))
    return {name: float(table[name][0]) for name in law.inputs}


def target_rows(
    e: Estimate,
    step2: ScoreFit,
    runs: Sequence[TaskRun],
    chained: Sequence[Chained],
    task: TaskSettings,
    s: FitSettings,
) -> tuple[tuple[HoldOut, ...], dict[str, tuple[dict[str, Any], ...]]]:
    """Targets as hold-outs, and the table of both steps: actual, predicted, relative error."""
    held, rows = [], []
    last = min((r for r in runs if r.in_step2), key=lambda r: r.final(task.last)[0])
    for run, c in zip([r for r in runs if r.target], chained, strict=True):
        loss, score = run.final(task.last)
        for step, actual, predicted in (
            ("loss", loss, c.loss),
            ("score from actual loss", score, step2.at(loss)),
            ("chained score", score, c.score),
        ):
            of_error = None if step == "loss" else (1 - predicted) / (1 - actual) - 1
            rows.append(target_row(run, step, actual, predicted) | {"relative_error_of_error": of_error})
        inputs = target_inputs(e.law, run.point(task.last), s)
        decades = max(float(np.log10(inputs[n] / e.inputs[n].max())) for n in e.law.inputs)
        held.append(
            HoldOut(
                rung=run.run_id,
                predicted=c.score,
                actual=score,
                interval95=c.intervals.get("95"),
                law="two_step",
                fitted_rungs=len(e.loss),
                decades=decades,
                x=e.law.inputs[0],
                runs=1,
                baselines={"last_point": last.final(task.last)[1]},
            )
        )
    misfit = float(np.abs(np.expm1(-e.residuals)).mean())
    fits = (
        {"step": "loss", "law": e.law.name, "mean_relative_error": misfit},
        {"step": "score", "law": step2.curve.name, "sum_of_squares": step2.squares},
    )
    return tuple(held), {"targets": tuple(rows), "steps": fits}


def target_row(run: TaskRun, step: str, actual: float, predicted: float) -> dict[str, Any]:
    return {
        "run": run.run_id,
        "step": step,
        "actual": actual,
        "predicted": predicted,
        "relative_error": predicted / actual - 1,
    }


def score_result(
    runs: tuple[TaskRun, ...], points: Points, step2: ScoreFit, task: TaskSettings, s: FitSettings
) -> FitResult:
    """Step 2 alone: score against task loss; targets are scored at their actual loss."""
    ci, errors = uncertainty(step2.columns)
    rows = []
    for run in (r for r in runs if r.target):
        loss, score = run.final(task.last)
        rows.append(target_row(run, "score from actual loss", score, step2.at(loss)))
    return FitResult(
        law="score_from_loss",
        requested=s.law,
        settings=s,
        x=None,
        parameters=points.parameter_column(s.parameters),
        points=points,
        params=step2.named,
        objective=step2.squares,
        objective_name=f"sum of squared residuals of the score ({step2.curve.name})",
        optimum=None,
        ci=ci,
        standard_errors=errors,
        derived={},
        verdict=Verdict(identified=True, law="score_from_loss", reported="score_from_loss"),
        holdout=(),
        noise=None,
        resampling="pairs" if len(step2.samples) else "none",
        tables={"targets": tuple(rows)},
        sample_values=step2.samples,
    )
