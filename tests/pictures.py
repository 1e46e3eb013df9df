"""A five-rung ladder with curves and task scores, and small joint studies: what the figure and report tests draw."""

from dataclasses import replace
from functools import cache

import numpy as np
from scaling import study

from analysis.curves import Curve
from analysis.drawing import Figure
from analysis.figures import figures
from analysis.fit import FitResult, FitSettings, fit
from analysis.rows import Excluded, Point, Points
from analysis.tasks import TaskScore

SIZES = {"54k": 53_000.0, "121k": 120_000.0, "268k": 266_000.0, "601k": 599_000.0, "1_3m": 1_280_000.0}
TOKENS = 1_000_000.0
RATES = (0.003, 0.01, 0.03)


def loss_at(n: float) -> float:
    return 2.35 + 8.05 * n**-0.13


def ladder_points(noise: float = 0.002) -> Points:
    """Two seeds on the two smallest rungs, one elsewhere, and one run left out."""
    rng = np.random.default_rng(0)
    rows = []
    for rung, n in SIZES.items():
        for seed in (0, 1) if n < 2e5 else (0,):
            rows.append(
                Point(
                    run_id=f"{rung}-{seed}",
                    rung=rung,
                    loss=float(loss_at(n) * np.exp(noise * rng.standard_normal())),
                    loss_name="final/val_loss",
                    seed=seed,
                    params_total=3 * n,
                    params_non_embedding=n,
                    tokens=TOKENS,
                    flops=18 * n * TOKENS,
                    flops_convention="6ND",
                    learning_rate=0.01,
                    mlflow_run=f"mlflow-{rung}-{seed}",
                    config_hash=f"config-{rung}-{seed}",
                    data_hash="da7a",
                )
            )
    left = Excluded(run_id="601k-3", rung="601k", seed=3, reason="failed at step 312: loss is not finite")
    return Points(rows=tuple(rows), excluded=(left,), source="demo")


def ladder_curves() -> list[Curve]:
    """A validation curve and final values per subset for every run, and two more learning rates on one rung."""
    out = []
    for point in ladder_points():
        for rate in RATES if point.rung == "54k" and point.seed == 0 else (0.01,):
            last = point.loss * (1.0 if rate == 0.01 else 1.02)
            steps = {k: last + 3.0 * (1 - k / 1000) * (k + 1) ** -0.35 for k in (0, 10, 30, 100, 300, 1000)}
            tokens = {k: 1000.0 * k for k in steps}
            out.append(
                Curve(
                    run_id=point.run_id if rate == 0.01 else f"{point.run_id}-{rate}",
                    rung=point.rung,
                    seed=point.seed,
                    mlflow_run=point.mlflow_run if rate == 0.01 else None,
                    learning_rate=rate,
                    params_total=point.params_total,
                    params_non_embedding=point.params_non_embedding,
                    series={
                        "val/loss": steps,
                        "val/tokens": tokens,
                        "val/flops": {k: t * 18 * (point.params_non_embedding or 0) for k, t in tokens.items()},
                    },
                    final={
                        "final/val_loss": last,
                        "final/val_bpb": last / 2.7,
                        "final/val_bpb_speeches": last / 2.9,
                        "final/val_bpb_code": last / 2.2,
                    },
                )
            )
    return out


def task_scores(tasks_per_category: int = 2) -> list[TaskScore]:
    """Accuracy that rises with size above a chance of 0.25, bits per byte that falls, and the untrained model's scores."""
    out = []
    for category, sign in (("science", 1), ("language_modelling", -1)):
        for k in range(tasks_per_category):
            for rung, n in SIZES.items():
                grown = 0.05 * (k + 1) * np.log10(n / 1e4)
                for step in (0, 1000):
                    trained = grown if step else 0.0
                    out.append(
                        TaskScore(
                            task=f"{category}_{k}",
                            category=category,
                            metric="acc" if sign > 0 else "bpb",
                            rung=rung,
                            run_id=rung,
                            params=n,
                            step=step,
                            value=float(0.25 + trained if sign > 0 else 3.0 - trained),
                            stderr=0.01,
                            n=500,
                            chance=0.25 if sign > 0 else None,
                            higher_is_better=sign > 0,
                            untrained=step == 0,
                        )
                    )
    return out


@cache
def ladder_fit() -> FitResult:
    return fit(ladder_points(), FitSettings(bootstrap=60, sensitivity=False))


@cache
def joint_fit() -> FitResult:
    points = replace(study(np.random.default_rng(1), noise=0.003, sizes=7, ratios=5), source="joint.csv")
    return fit(points, FitSettings(law="chinchilla", bootstrap=60, sensitivity=False, targets=({"flops": 1e23},)))


@cache
def all_figures() -> list[Figure]:
    return figures(ladder_fit(), ladder_curves(), task_scores())
