"""Pictures of how good a fit is: hold-outs, seed spread, residuals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.drawing import (
    LAW,
    MEASURED,
    MUTED,
    PREDICTED,
    Figure,
    Table,
    finish,
    label,
    padded,
    sheet,
    size_axis,
    spread,
    value_axis,
)
from analysis.findings import guess, value
from analysis.fit import FitResult, HoldOut
from analysis.numbers import (
    count,
    fixed,
    interval,
    known,
    listed,
    number,
    percent,
    plural,
    power_of_ten,
    rung_name,
)
from analysis.rows import Array, Point
from analysis.words import axis_words, law_words

OTHER_MARKS = ("s", "x", "+", "^", "1")


def size_of(fit: FitResult) -> tuple[Array, str]:
    """What orders the points along a figure: parameters, else tokens, else FLOPs; and its name."""
    inputs = fit.points.inputs(fit.parameters)
    for axis in ("params", "flops", "tokens"):
        if np.isfinite(inputs[axis]).all():
            return inputs[axis], axis
    return np.arange(1.0, len(fit.points) + 1), "params"


def holdouts(fit: FitResult) -> Figure | None:
    """Error of predicting each of the largest rungs from smaller ones: the law, the laws that were not chosen, naive predictions."""
    held = [h for h in fit.holdout if h.law == fit.law]
    if not held:
        return None
    title = "Predicting rungs from smaller ones"
    others = [other_percent(h, fit) for h in held]
    errors = [
        v for h, o in zip(held, others, strict=True) for v in (h.error_percent, *interval_percent(h), *o.values())
    ]
    names = list(dict.fromkeys(name for o in others for name in o))
    with sheet(title, height=95 + 16 * len(names) + 36 * len(held)) as (page, ax):
        value_axis(ax.xaxis, *padded([*errors, 0.0], 0.08, log=False), "prediction error, %", most=5)
        ax.axvline(0, color=MUTED, lw=1)
        for i, (h, other) in enumerate(zip(held, others, strict=True)):
            draw_holdout(ax, i, h, other, names)
        ax.set(ylim=(len(held) - 0.5, -0.6))
        ax.set_yticks(range(len(held)), [held_name(h) for h in held])
        ax.grid(False, axis="y")
        page.legend(loc="outside lower left", ncols=1 if any(len(law_words(n)) > 24 for n in (*names, fit.law)) else 2)
    header = (
        "rung",
        "from",
        "measured",
        "predicted [95 %]",
        "error",
        "inside",
        "distance",
        *(law_words(n) for n in names),
    )
    rows = tuple(
        (*holdout_row(h), *(percent(o.get(n), True) for n in names)) for h, o in zip(held, others, strict=True)
    )
    alt = "Prediction errors of the largest rungs. " + " ".join(
        f"{rung_name(h.rung)} from {h.fitted_rungs} smaller rungs: {percent(h.error_percent, True)}"
        + (
            f", 95 % interval {interval(interval_percent(h)[0], interval_percent(h)[1])} %."
            if h.interval95
            else ", no interval."
        )
        for h in held
    )
    caption = (
        "Diamond: the law fitted to smaller rungs only. Zero is what was measured, so the interval should contain it. "
        "Other marks: laws that were not chosen and naive predictions to beat."
    )
    return finish(page, "holdout", title, alt, caption, Table(header=header, rows=rows))


def draw_holdout(ax: Any, row: int, h: HoldOut, other: Mapping[str, float], names: Sequence[str]) -> None:
    """One line of the figure: the law's error with its interval, and the errors of the `names` that it is held against."""
    first = row == 0  # the legend needs each mark once
    if ends := interval_percent(h):
        told = "95 % interval" if first else None
        ax.plot(ends, [row, row], color=PREDICTED, lw=2.2, solid_capstyle="butt", zorder=3, label=told)
    ax.plot([h.error_percent], [row], "D", color=PREDICTED, ms=6.5, zorder=5, label=law_words(h.law) if first else None)
    for k, name in enumerate(names):
        at = [other[name]] if name in other else []
        look = {"color": LAW, "mfc": "none", "ms": 7, "mew": 1.5, "zorder": 4}
        marker = OTHER_MARKS[k % len(OTHER_MARKS)]
        ax.plot(at, [row] * len(at), marker, label=law_words(name) if first else None, **look)


def held_name(h: HoldOut) -> str:
    name = rung_name(h.rung)
    return f"{name}{chr(10) if len(name) > 10 else ' '}from {h.fitted_rungs}"


def other_percent(h: HoldOut, fit: FitResult) -> dict[str, float]:
    """Error in percent of every other prediction of the same rung from the same smaller ones, by name."""
    rivals = {
        r.law: r.predicted
        for r in fit.holdout
        if r.law != h.law and (r.rung, r.fitted_rungs) == (h.rung, h.fitted_rungs)
    }
    naive = {
        n: v
        for n, v in h.baselines.items()
        if known(v) and not any(abs(v / q - 1) < 1e-6 for q in (h.predicted, *rivals.values()))
    }
    return {name: 100 * (value / h.actual - 1) for name, value in (rivals | naive).items()}


def interval_percent(h: HoldOut) -> tuple[float, ...]:
    """Both ends relative to what was measured, or nothing."""
    return tuple(100 * (end / h.actual - 1) for end in h.interval95) if h.interval95 else ()


def holdout_row(h: HoldOut) -> tuple[str, ...]:
    verdict = {True: "yes", False: "NO", None: "no interval"}[h.inside]
    return (
        rung_name(h.rung),
        f"{h.fitted_rungs} rungs",
        value(h.actual),
        guess(h),
        percent(h.error_percent, True),
        verdict,
        f"{fixed(h.decades, 2)} decades",
    )


def seeds(fit: FitResult) -> Figure | None:
    """Each run's loss relative to its rung's mean, for rungs with two seeds or more."""
    rungs = fit.points.rungs(fit.parameters)
    loss = fit.points.column("loss")
    groups = {name: rows for name, rows in rungs.items() if len(rows) > 1}
    if not groups or len(groups) > 14 or fit.noise is None or fit.noise.seed_sd_log is None:
        return None
    off = {name: 100 * (np.log(loss[rows]) - np.log(loss[rows]).mean()) for name, rows in groups.items()}
    sd = 100 * fit.noise.seed_sd_log
    title = "Spread between seeds"
    with sheet(title, height=270) as (page, ax):
        limit = max(1.25 * max(float(np.abs(v).max()) for v in off.values()), 1.5 * sd, 1e-6)
        value_axis(ax.yaxis, -limit, limit, "loss against rung mean, %")
        ax.axhspan(-sd, sd, color=MEASURED, alpha=0.12, linewidth=0)
        ax.axhline(0, color=MUTED, lw=1)
        for i, values in enumerate(off.values()):
            ax.plot(np.full(len(values), float(i)), values, "o", mfc="none", mec=MEASURED, ms=7, mew=1.4)
        ax.set(xlim=(-0.6, len(off) - 0.4))
        ax.set_xticks(range(len(off)), [f"{rung_name(name)}\n{plural(len(v), 'run')}" for name, v in off.items()])
        ax.grid(False, axis="x")
        label(ax, len(off) - 0.4, sd, f"pooled ±{percent(sd)}", dx=-4, dy=8, ha="right", color=MUTED)
    rows = tuple(
        (
            rung_name(name),
            str(len(v)),
            number(float(np.exp(np.log(loss[groups[name]]).mean()))),
            percent(float(np.std(v, ddof=1))),
            percent(float(np.ptp(v))),
        )
        for name, v in off.items()
    )
    single = [rung_name(name) for name in rungs if name not in groups]
    dof = fit.noise.seed_dof
    caption = f"Band: one pooled standard deviation, {percent(sd)} from {plural(dof, 'degree')} of freedom."
    caption += (
        f" {listed(single)} {'has' if len(single) == 1 else 'have'} one run each and say nothing about seeds."
        if single
        else ""
    )
    alt = (
        f"Spread between seeds: pooled standard deviation {percent(sd)} of the loss. "
        + "; ".join(f"{r[0]}: {r[1]} runs, {r[3]}" for r in rows)
        + "."
    )
    return finish(
        page,
        "seed_spread",
        title,
        alt,
        caption,
        Table(header=("rung", "runs", "mean loss", "standard deviation", "range"), rows=rows),
    )


def residuals(fit: FitResult) -> Figure | None:
    """Distance of every run from the law in percent, against size."""
    if len(fit.fitted) != len(fit.points) or len(fit.points) < 3:
        return None
    x, axis = size_of(fit)
    off = 100 * (np.log(fit.points.column("loss")) - np.log(fit.fitted))
    sd = 100 * fit.noise.residual_sd_log if fit.noise and fit.noise.residual_sd_log else None
    title = "Residuals"
    with sheet(title, height=270) as (page, ax):
        size_axis(ax.xaxis, *padded(x, 0.08), axis_words(axis, fit.parameters), powers=axis == "flops", most=5)
        limit = 1.15 * max(float(np.abs(off).max()), sd or 0.0, 1e-6)
        value_axis(ax.yaxis, -limit, limit, "measured against law, %")
        if sd:
            ax.axhspan(-sd, sd, color=LAW, alpha=0.09, linewidth=0)
        ax.axhline(0, color=LAW, lw=1)
        many = len(off) > 60
        ax.plot(x, off, "o", mfc="none", mec=MEASURED, ms=4 if many else 6.5, mew=0.8 if many else 1.4)
        named = worst(off, 3)
        heights = spread([float(off[i]) for i in named], 0.13 * limit)
        for i, height in zip(named, heights, strict=True):
            right = x[i] < np.sqrt(x.min() * x.max())
            label(
                ax,
                float(x[i]),
                height,
                run_words(fit.points.rows[i]),
                dx=7 if right else -7,
                ha="left" if right else "right",
                color=MUTED,
            )
    order = worst(off, 8)
    rows = tuple(
        (
            fit.points.rows[i].run_id,
            rung_name(fit.points.rows[i].rung),
            count(x[i]) if axis != "flops" else power_of_ten(x[i]),
            percent(float(off[i]), True),
        )
        for i in order
    )
    caption = "Above zero: worse than the law." + (
        f" Band: one residual standard deviation, {percent(sd)}."
        if sd
        else " Too few degrees of freedom for a residual scatter."
    )
    caption += f" The table names the {len(rows)} largest." if len(rows) < len(off) else ""
    alt = f"Residuals of {len(off)} runs against {axis_words(axis, fit.parameters)}: between {percent(float(off.min()), True)} and {percent(float(off.max()), True)}, largest at {run_words(fit.points.rows[order[0]])}."
    return finish(
        page,
        "residuals",
        title,
        alt,
        caption,
        Table(header=("run", "rung", axis_words(axis, fit.parameters), "residual"), rows=rows),
    )


def run_words(point: Point) -> str:
    """A run in a few letters: rung and seed where it has one, else its id."""
    return f"{rung_name(point.rung)} s{point.seed}" if point.seed is not None else point.run_id


def worst(off: Array, most: int) -> list[int]:
    """Row numbers of the largest residuals, largest first."""
    return [int(i) for i in np.argsort(-np.abs(off), kind="stable")[:most]]
