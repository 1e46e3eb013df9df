"""Two-step downstream prediction: (N, D) or C -> task loss -> task score, with the uncertainty of both steps in the answer.

The recipe of the OLMo ladder (Bhagia et al. 2024): task loss of a run = mean of its last checkpoints, fitted by
approach 3; task score against task loss over all checkpoints (first tenth dropped, moving average), fitted by a sigmoid.
With step2=exponential it is the chain of Gadre et al. 2024 (over-training law -> average error).
"""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.bootstrap import interval, resample
from analysis.estimate import Estimate, estimate
from analysis.holdout import HoldOut
from analysis.identify import Verdict, judge
from analysis.law import Law
from analysis.laws import law_named
from analysis.result import LEVELS, FitResult, FitSettings, Interval, Prediction
from analysis.rows import Array, Point, Points
from analysis.scores import ScoreCurve, curve_named, fit_scores
from analysis.table import rung_name, select_rows
from gopher.errors import UsageError, did_you_mean

CHAIN_RESAMPLES = 400  # of step 2: each is a bounded least-squares fit


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """What the two steps are fitted to."""

    loss: Mapping[str, float] = field(default_factory=lambda: {"loss": 1.0})  # metric_name (or `loss`) -> weight
    score: Mapping[str, float] = field(default_factory=dict)  # metric_name -> weight; `acc:*` stands for all that match
    step1: str = "chinchilla"  # law of the task loss; none: only score against loss
    step2: str = "sigmoid"  # sigmoid | exponential
    target: str = ""  # pandas query over rows: runs that are predicted and never fitted
    step1_where: str = ""  # further filters of the runs that are fitted
    step2_where: str = ""
    last: int = 5  # checkpoints averaged into a run's task loss and a target's score
    window: int = 5  # moving average over checkpoints in step 2
    skip: float = 0.1  # share of early checkpoints that step 2 leaves out


@dataclass(frozen=True, kw_only=True, eq=False)
class TaskRun:
    """One run: its task loss and score at every checkpoint, oldest first."""

    run_id: str
    numbers: Mapping[str, float | None]  # params_total, params_non_embedding, tokens, flops at the last checkpoint
    loss: Array
    score: Array
    in_step1: bool
    in_step2: bool
    target: bool

    def point(self, last: int) -> Point:
        """The run as a point of step 1: its mean task loss over the last checkpoints."""
        size = self.numbers["params_non_embedding"] or self.numbers["params_total"]
        return Point(
            run_id=self.run_id,
            rung=rung_name(size) if size else self.run_id,
            loss=float(self.loss[-last:].mean()),
            loss_name="task loss",
            params_total=self.numbers["params_total"],
            params_non_embedding=self.numbers["params_non_embedding"],
            tokens=self.numbers["tokens"],
            flops=self.numbers["flops"],
        )


# ------------------------------------------------------------------------------------------ reading


def task_runs(table: pd.DataFrame, task: TaskSettings, source: str) -> tuple[TaskRun, ...]:
    """Runs of a long table (one row per run, checkpoint and metric_name) with their task loss and score."""
    losses, scores = (
        metric_weights(table, task.loss, "task.loss", source),
        metric_weights(table, task.score, "task.score", source),
    )
    chosen = {name: set(select_rows(table, query, source)["run_id"]) for name, query in queries(task).items() if query}
    out = []
    for run_id, rows in table.groupby("run_id", sort=True):
        loss, score = series(rows, losses), series(rows, scores)
        if loss is None or score is None or len(loss) != len(score):
            raise UsageError(
                f"run {run_id} of {source} has not the same checkpoints for task.loss and task.score; leave it out with where="
            )
        target = run_id in chosen.get("target", ())
        last = rows.sort_values("row").iloc[-1]
        out.append(
            TaskRun(
                run_id=str(run_id),
                numbers={n: number(last.get(n)) for n in ("params_total", "params_non_embedding", "tokens", "flops")},
                loss=loss,
                score=score,
                in_step1=not target and run_id in chosen.get("step1", {run_id}),
                in_step2=not target and run_id in chosen.get("step2", {run_id}),
                target=target,
            )
        )
    return tuple(out)


def queries(task: TaskSettings) -> dict[str, str]:
    return {"target": task.target, "step1": task.step1_where, "step2": task.step2_where}


def number(value: Any) -> float | None:
    return None if value is None or pd.isna(value) else float(value)


def metric_weights(table: pd.DataFrame, wanted: Mapping[str, float], key: str, source: str) -> dict[str, float]:
    """Existing metric names -> weights that sum to 1; a pattern stands for every name that matches."""
    known = sorted(map(str, table["metric_name"].dropna().unique())) if "metric_name" in table.columns else []
    out: dict[str, float] = {}
    for name, weight in wanted.items():
        matches = ["loss"] if name == "loss" else fnmatch.filter(known, name)
        if not matches:
            raise UsageError(
                f"{key} names '{name}', which {source} does not have{did_you_mean(name, known)} (it has {', '.join(known[:12]) or 'none'})"
            )
        out |= dict.fromkeys(matches, float(weight))
    if not out:
        raise UsageError(
            f"{key} is empty; name a metric_name of {source} such as {key}='{known[0] if known else 'acc:hellaswag'}'"
        )
    total = sum(out.values())
    return {name: weight / total for name, weight in out.items()}


def series(rows: pd.DataFrame, weights: Mapping[str, float]) -> Array | None:
    """The weighted mean of metrics at each checkpoint of a run, in the order of the file; None when one is missing."""
    parts = []
    for name, weight in weights.items():
        if name == "loss":
            first = rows["metric_name"].iloc[0] if "metric_name" in rows.columns else None
            values = (rows if first is None else rows[rows["metric_name"] == first])["loss"]
        else:
            values = rows.loc[rows["metric_name"] == name, "metric_value"]
        parts.append(weight * values.to_numpy(float))
    if len({len(p) for p in parts}) != 1 or len(parts[0]) == 0 or not np.isfinite(parts).all():
        return None
    return np.sum(parts, axis=0)


def smoothed(values: Array, task: TaskSettings) -> Array:
    """Checkpoints of step 2: the first share left out, then a trailing mean (shorter at the start)."""
    kept = values[int(np.ceil(task.skip * len(values))) :] if len(values) > 1 else values
    return pd.Series(kept).rolling(task.window, min_periods=1).mean().to_numpy()


# ------------------------------------------------------------------------------------------ fitting


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoreFit:
    """Step 2 at its optimum, its resamples and the scatter of final scores about it."""

    curve: ScoreCurve
    params: Array
    squares: float
    samples: Array  # (resamples, parameters)
    residuals: Array  # of final scores, one a run
    runs: int

    def draw(self, loss: Array, rng: np.random.Generator, noise: bool = True) -> Array:
        """A score for each loss, from the resamples in turn."""
        p = self.samples[np.arange(len(loss)) % len(self.samples)]
        score = np.array([self.curve.value(row, np.array([x]))[0] for row, x in zip(p, loss, strict=True)])
        widen = np.sqrt(self.runs / max(self.runs - len(self.params), 1))
        return score + (widen * rng.choice(self.residuals, len(loss)) if noise else 0.0)


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
        parameters=law.counts if s.parameters == "auto" else s.parameters,
        delta=law.delta if s.delta is None else s.delta,
        wide=True,
    )
    return chain_result(e, runs, step2, task, s)


def chain_result(
    e: Estimate, runs: tuple[TaskRun, ...], step2: ScoreFit, task: TaskSettings, s: FitSettings
) -> FitResult:
    r = resample(e, s.bootstrap, s.seed)
    verdict, found = judge(e, r)
    names = dict(zip(step2.curve.parameters, map(float, step2.params), strict=True))
    ci: dict[str, dict[str, Interval]] = {}
    errors: dict[str, float] = {}
    columns = dict(zip(step2.curve.parameters, step2.samples.T, strict=True)) if len(step2.samples) else {}
    for name, values in ((r.quantities(e) if r else {}) | columns).items():
        ci[name] = {str(level): interval(values, level) for level in LEVELS}
        errors[name] = float(np.std(values[np.isfinite(values)]))
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
        parameters=e.points.parameter_column(s.parameters if s.parameters != "auto" else e.law.counts),
        points=e.points,
        params=e.params | names,
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
        sample_values=np.empty((0, len(e.params) + len(names))),
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
    score = float(step2.curve.value(step2.params, np.array([loss]))[0])
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
    table = Points(rows=(point,)).inputs(s.parameters if s.parameters != "auto" else law.counts)
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
    last = min((r for r in runs if r.in_step2), key=lambda r: float(r.loss[-task.last :].mean()))
    for run, c in zip([r for r in runs if r.target], chained, strict=True):
        loss, score = float(run.loss[-task.last :].mean()), float(run.score[-task.last :].mean())
        from_loss = float(step2.curve.value(step2.params, np.array([loss]))[0])
        for step, actual, predicted in (
            ("loss", loss, c.loss),
            ("score from actual loss", score, from_loss),
            ("chained score", score, c.score),
        ):
            rows.append(
                {
                    "run": run.run_id,
                    "step": step,
                    "actual": actual,
                    "predicted": predicted,
                    "relative_error": predicted / actual - 1,
                }
            )
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
                baselines={"last_point": float(last.score[-task.last :].mean())},
            )
        )
    misfit = float(np.abs(np.expm1(-e.residuals)).mean())
    fits = (
        {"step": "loss", "law": e.law.name, "mean_relative_error": misfit},
        {"step": "score", "law": step2.curve.name, "sum_of_squares": step2.squares},
    )
    return tuple(held), {"targets": tuple(rows), "steps": fits}


def score_result(
    runs: tuple[TaskRun, ...], points: Points, step2: ScoreFit, task: TaskSettings, s: FitSettings
) -> FitResult:
    """Step 2 alone: score against task loss; targets are scored at their actual loss."""
    names = dict(zip(step2.curve.parameters, map(float, step2.params), strict=True))
    columns = dict(zip(step2.curve.parameters, step2.samples.T, strict=True)) if len(step2.samples) else {}
    rows = []
    for run in (r for r in runs if r.target):
        loss, score = float(run.loss[-task.last :].mean()), float(run.score[-task.last :].mean())
        predicted = float(step2.curve.value(step2.params, np.array([loss]))[0])
        rows.append(
            {
                "run": run.run_id,
                "step": "score from actual loss",
                "actual": score,
                "predicted": predicted,
                "relative_error": predicted / score - 1,
            }
        )
    return FitResult(
        law="score_from_loss",
        requested=s.law,
        settings=s,
        x=None,
        parameters=points.parameter_column(s.parameters),
        points=points,
        params=names,
        objective=step2.squares,
        objective_name=f"sum of squared residuals of the score ({step2.curve.name})",
        optimum=None,
        ci={name: {str(level): interval(v, level) for level in LEVELS} for name, v in columns.items()},
        standard_errors={name: float(np.std(v)) for name, v in columns.items()},
        derived={},
        verdict=Verdict(identified=True, law="score_from_loss", reported="score_from_loss"),
        holdout=(),
        noise=None,
        resampling="pairs" if len(step2.samples) else "none",
        tables={"targets": tuple(rows)},
        sample_values=step2.samples,
    )


def task_runs_from_points(loss: Points, score: Points, task: TaskSettings) -> tuple[TaskRun, ...]:
    """Runs of a tracker, one checkpoint each: the task loss and the score that the finished run logged."""
    scores = {p.run_id: p.loss for p in score}
    frame = pd.DataFrame([vars(p) for p in loss])
    chosen = {
        name: set(select_rows(frame, query, loss.source)["run_id"]) for name, query in queries(task).items() if query
    }
    out = []
    for p in (p for p in loss if p.run_id in scores):
        target = p.run_id in chosen.get("target", ())
        numbers = {n: getattr(p, n) for n in ("params_total", "params_non_embedding", "tokens", "flops")}
        out.append(
            TaskRun(
                run_id=p.run_id,
                numbers=numbers,
                loss=np.array([p.loss]),
                score=np.array([scores[p.run_id]]),
                in_step1=not target and p.run_id in chosen.get("step1", {p.run_id}),
                in_step2=not target and p.run_id in chosen.get("step2", {p.run_id}),
                target=target,
            )
        )
    return tuple(out)
