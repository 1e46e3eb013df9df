"""What runs logged on their way: losses over tokens and FLOPs, final values per subset. Read from MLflow, drawn by figures.

A run that the fit leaves out is still a curve: its loss belongs in the picture of all runs and of learning rates.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.points import integer, newest, positive, training_runs
from analysis.rows import Array, Points

HISTORIES = ("val/loss", "val/tokens", "val/flops")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One training run: who it is, its series over steps and its last values."""

    run_id: str  # the run's key
    rung: str
    mlflow_run: str | None = None
    seed: int | None = None
    learning_rate: float | None = None
    params_total: float | None = None
    params_non_embedding: float | None = None
    series: Mapping[str, Mapping[int, float]] = field(default_factory=dict)  # metric -> {step: value}
    final: Mapping[str, float] = field(default_factory=dict)  # metric -> value at the last step

    def joined(self, x: str, y: str) -> tuple[Array, Array]:
        """Both series at the steps that have both, with x above 0 (what a log axis can show) and finite values."""
        left, right = self.series.get(x, {}), self.series.get(y, {})
        steps = sorted(left.keys() & right.keys())
        pairs = np.array([(left[s], right[s]) for s in steps], float).reshape(-1, 2)
        keep = np.isfinite(pairs).all(axis=1) & (pairs[:, 0] > 0)
        return pairs[keep, 0], pairs[keep, 1]

    def subsets(self, metric: str = "bpb") -> dict[str, float]:
        """subset -> its final validation loss or bits per byte, mixture mean left out."""
        prefix = f"final/val_{metric}_"
        return {k.removeprefix(prefix): v for k, v in sorted(self.final.items()) if k.startswith(prefix)}

    @property
    def loss(self) -> float | None:
        """The final validation loss, or None when the run has none."""
        return self.final.get("final/val_loss")


def fitted(curves: Sequence[Curve], points: Points) -> list[Curve]:
    """The curves whose run is a point of the fit, in the order of the points."""
    by_id = {key: curve for curve in curves for key in (curve.mlflow_run, curve.run_id) if key}
    found = [by_id.get(p.mlflow_run or "") or by_id.get(p.run_id) for p in points]
    return list({c.run_id: c for c in found if c is not None}.values())


def curves_from_mlflow(tracking_uri: str, experiment: str) -> list[Curve]:
    """Every training run (tag kind=train) of the experiment with its validation curve, smallest rung first."""
    runs = training_runs(tracking_uri, experiment)  # also turns MLflow's telemetry off before it is imported
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=tracking_uri)
    curves = [curve_of(client, run) for run in runs]
    return sorted(
        curves, key=lambda c: (c.params_non_embedding or c.params_total or 0.0, c.rung, c.seed or 0, c.run_id)
    )


def curve_of(client: Any, run: Any) -> Curve:
    tags, params, metrics = run.data.tags, run.data.params, run.data.metrics
    return Curve(
        run_id=tags.get("trial.id", run.info.run_id),
        rung=tags.get("rung") or params.get("rung", "?"),
        mlflow_run=run.info.run_id,
        seed=integer(params.get("seed", tags.get("seed"))),
        learning_rate=positive(params.get("optim.lr")),
        params_total=positive(params.get("model.n_params")),
        params_non_embedding=positive(params.get("model.n_params_nonemb")),
        series={key: newest(client, run.info.run_id, key) for key in HISTORIES if key in metrics},
        final={k: v for k, v in metrics.items() if k.startswith("final/") and math.isfinite(v)},
    )
