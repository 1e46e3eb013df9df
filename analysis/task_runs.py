"""Runs with a task loss and a task score at every checkpoint: what the two-step prediction is fitted to."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from analysis.rows import Array, Point, Points
from analysis.table import select_rows, size_name
from gopher.errors import UsageError, did_you_mean


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

    def final(self, last: int) -> tuple[float, float]:
        """Its task loss and score: means over the last checkpoints."""
        return float(self.loss[-last:].mean()), float(self.score[-last:].mean())

    def point(self, last: int) -> Point:
        """The run as a point of step 1: its mean task loss over the last checkpoints."""
        size = self.numbers["params_non_embedding"] or self.numbers["params_total"]
        return Point(
            run_id=self.run_id,
            rung=size_name(size) if size else self.run_id,
            loss=self.final(last)[0],
            loss_name="task loss",
            params_total=self.numbers["params_total"],
            params_non_embedding=self.numbers["params_non_embedding"],
            tokens=self.numbers["tokens"],
            flops=self.numbers["flops"],
        )


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
