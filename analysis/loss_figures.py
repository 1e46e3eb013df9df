"""Loss pictures of a ladder: against its size axis with law, band and held-out rung, and over tokens during training."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.interpolate import PchipInterpolator

from analysis.curves import Curve
from analysis.drawing import (
    LAW,
    MEASURED,
    PREDICTED,
    Figure,
    Table,
    band,
    end_labels,
    finish,
    label,
    marks,
    padded,
    sheet,
    size_axis,
    value_axis,
    zone,
)
from analysis.fit import FitResult, HoldOut, Prediction
from analysis.numbers import (
    count,
    interval,
    known,
    number,
    percent,
    plural,
    power_of_ten,
    rung_name,
    with_interval,
)
from analysis.rows import Array
from analysis.words import axis_words, equation, law_words

SAME_SIZE = 0.02  # in ln: sizes closer than this are one rung
MOST_NAMED = 12  # rungs named in the picture
MOST_ROWS = 30  # of a table by rung; beyond it is by size class
STEPS = 160  # points on a drawn law
KNOTS = 9  # of them at which its interval is computed; bands are smooth on logarithmic axes
REACH = {"params": 4.0, "tokens": 4.0, "flops": 6.0}  # how far beyond the largest measured size a law is drawn


def ladder(fit: FitResult, curves: Sequence[Curve] = ()) -> Figure | None:
    """Loss against the law's size axis: runs, law with band, the held-out rung with its interval, the zone beyond the data."""
    axis = str(fit.x)
    inputs, rungs = fit.points.inputs(fit.parameters), rung_rows(fit)
    x, loss = inputs[axis], inputs["loss"]
    if not np.isfinite(x).all() or len(np.unique(x)) < 2:
        return None
    targets = [p for p in fit.predictions if known(p.inputs.get(axis))]
    edge = max([float(x.max()) * REACH[axis], *(1.5 * p.inputs[axis] for p in targets)])
    named = len(rungs) <= MOST_NAMED
    start = float(x.min()) / (5 if curves else max(1.6, (edge / float(x.min())) ** (0.16 if named else 0.0)))
    grid = np.geomspace(float(x.min()), edge, STEPS)
    law = fit.predict({axis: grid})
    name = {"params": "loss_vs_params", "flops": "loss_vs_flops", "tokens": "loss_vs_tokens_fit"}[axis]
    title = {
        "params": "Loss against model size",
        "flops": "Loss against training compute",
        "tokens": "Loss against tokens",
    }
    with sheet(title[axis], height=365 if curves else 330) as (page, ax):
        size_axis(ax.xaxis, start, edge, axis_words(axis, fit.parameters), powers=axis == "flops", most=5)
        held = main_holdout(fit)
        shown = np.concatenate([loss, law, [h for h in (held.interval95 if held and held.interval95 else ())]])
        low, high = padded(shown, 0.08)
        value_axis(ax.yaxis, low, high * (1.06 if curves else 1.03), loss_words(fit), log=True)
        zone(ax, float(x.max()))
        draw_curves(ax, fit, curves, "val/flops")
        draw_law(ax, fit, axis, grid, law, float(x.max()))
        draw_rungs(ax, x, loss, rungs)
        if held is not None:
            draw_holdout(ax, held, x[rungs[held.rung]])
        draw_targets(ax, targets, axis)
        if curves:
            page.legend(loc="outside lower left", ncols=2, columnspacing=1.0)
        else:
            ax.legend(loc="upper right")
    table = ladder_table(fit, x, loss, rungs, axis)
    caption = ladder_caption(fit, axis, held, bool(curves))
    return finish(page, name, title[axis], ladder_alt(fit, axis, rungs, loss, held), caption, table)


def rung_rows(fit: FitResult) -> dict[str, Array]:
    """Rung -> row numbers, smallest first; where a rung is no single size along the law's axis, each distinct size instead."""
    rungs = fit.points.rungs(fit.parameters)
    x = fit.points.inputs(fit.parameters)[str(fit.x)] if fit.x else None
    if x is None or all(np.ptp(np.log(x[rows])) < SAME_SIZE for rows in rungs.values()):
        return rungs
    shown = power_of_ten if fit.x == "flops" else count
    return {f"{shown(float(v))}": np.flatnonzero(x == v) for v in np.unique(x)}


def loss_words(fit: FitResult) -> str:
    """validation loss (nats/token), bits per byte, or the metric's own name."""
    name = fit.points.rows[0].loss_name
    prefix = "validation " if "val" in name else ""
    if "bpb" in name and "nats" in name:  # the source does not say which
        return "loss"
    if "bpb" in name:
        return f"{prefix}bits per byte"
    return f"{prefix}loss (nats/token)" if "loss" in name or "nats" in name else name.replace("_", " ")


def main_holdout(fit: FitResult) -> HoldOut | None:
    """The hold-out of the largest rung from all smaller ones, by the law reported."""
    own = [h for h in fit.holdout if h.law == fit.law and h.rung in rung_rows(fit)]
    return max(own, key=lambda h: h.fitted_rungs, default=None)


def draw_law(ax: Any, fit: FitResult, axis: str, grid: Array, law: Array, end: float) -> None:
    """The law, dashed beyond the data, with the 95 % band of the curve and that of one new run."""
    for noise, strength, text in ((True, 0.09, None), (False, 0.2, "95 % band of the law")):
        ends = smooth_interval(fit, axis, grid, noise)
        if ends:
            band(ax, grid, ends, strength, text)
    inside = grid <= end * 1.0001
    ax.plot(
        grid[inside], law[inside], color=LAW, zorder=3, label=equation(fit.law, fit.params, axis) or law_words(fit.law)
    )
    ax.plot(grid[~inside], law[~inside], color=LAW, dashes=(4, 2), zorder=3)


def smooth_interval(fit: FitResult, axis: str, grid: Array, noise: bool) -> tuple[Array, Array] | None:
    """The 95 % interval along the grid, computed at knots and joined in log-log; None where the fit has none."""
    knots = np.geomspace(grid[0], grid[-1], KNOTS)
    ends = fit.interval({axis: knots}, level=95, noise=noise)
    if not all(np.isfinite(end).all() and (end > 0).all() for end in ends):
        return None
    low, high = (np.exp(PchipInterpolator(np.log(knots), np.log(end))(np.log(grid))) for end in ends)
    return low, high


def draw_rungs(ax: Any, x: Array, loss: Array, rungs: dict[str, Array]) -> None:
    """Each run as an open circle, the rung's geometric mean as a filled one, with the rung's name above."""
    several = any(len(rows) > 1 for rows in rungs.values())
    if several:
        ax.plot(x, loss, "o", mfc="none", mec=MEASURED, ms=5, mew=1, zorder=4, label="runs")
    for i, (name, rows) in enumerate(rungs.items()):
        at, value = float(np.exp(np.log(x[rows]).mean())), float(np.exp(np.log(loss[rows]).mean()))
        text = ("mean of a rung" if several else "runs") if i == 0 else None
        ax.plot([at], [value], "o", color=MEASURED, ms=6.5 if len(rungs) <= 40 else 3.5, zorder=5, label=text)
        if len(rungs) <= MOST_NAMED:
            label(ax, at, float(loss[rows].min()), rung_name(name), dx=-4, dy=-11, ha="right")


def draw_holdout(ax: Any, held: HoldOut, x: Array) -> None:
    """What the smaller rungs predicted for the runs at `x`: an open diamond at their size, so that what was measured shows."""
    at = float(np.exp(np.log(x).mean()))
    if held.interval95:
        ax.plot([at, at], held.interval95, color=PREDICTED, lw=2.2, zorder=5, solid_capstyle="butt")
    name = f"{rung_name(held.rung)}, predicted"
    ax.plot([at], [held.predicted], "D", color=PREDICTED, mfc="none", mew=1.8, ms=9, zorder=6, label=name)


def draw_targets(ax: Any, targets: Sequence[Prediction], axis: str) -> None:
    for target in targets:
        at = target.inputs[axis]
        if "95" in target.intervals:
            ax.plot([at, at], target.intervals["95"], color=PREDICTED, lw=1.4, zorder=5)
        ax.plot([at], [target.mean], "s", mfc="white", mec=PREDICTED, ms=6, zorder=6)
        name = power_of_ten(at) if axis == "flops" else count(at)
        label(ax, at, target.mean, f"{name}: {number(target.mean, 3)}", dx=-8, dy=-11, ha="right")


def draw_curves(ax: Any, fit: FitResult, curves: Sequence[Curve], x_metric: str) -> list[tuple[float, float, str]]:
    """The validation curve of every run, one look per rung; returns the right ends with the rung's name."""
    looks = marks(list(dict.fromkeys([*rung_rows(fit), *(c.rung for c in curves)])))
    ends: dict[str, tuple[float, float, str]] = {}
    for curve in curves:
        x, y = curve.joined(x_metric, "val/loss")
        if len(x) > 1:
            look = looks[curve.rung]
            ax.plot(x, y, color=look.colour, linestyle=look.dash, lw=1.2, zorder=2)
            if curve.rung not in ends or y[-1] < ends[curve.rung][1]:
                ends[curve.rung] = (float(x[-1]), float(y[-1]), rung_name(curve.rung))
    return list(ends.values())


def ladder_table(fit: FitResult, x: Array, loss: Array, rungs: dict[str, Array], axis: str) -> Table:
    if len(rungs) > MOST_ROWS:
        return binned_table(x, loss, fit.fitted, axis, axis_words(axis, fit.parameters))
    law = fit.predict({axis: x})
    rows = []
    for name, group in rungs.items():
        mean_x, mean_loss = float(np.exp(np.log(x[group]).mean())), float(np.exp(np.log(loss[group]).mean()))
        fitted = float(np.exp(np.log(law[group]).mean()))
        size = power_of_ten(mean_x, 3) if axis == "flops" else count(mean_x)
        held = next((h for h in fit.holdout if h.rung == name and h is main_holdout(fit)), None)
        guess = with_interval(held.predicted, *(held.interval95 or (None, None))) if held else ""
        rows.append(
            (
                rung_name(name),
                size,
                str(len(group)),
                number(mean_loss),
                number(fitted),
                percent(100 * (mean_loss / fitted - 1), True),
                guess,
            )
        )
    head = (
        "rung",
        {"params": "size", "flops": "FLOPs", "tokens": "tokens"}[axis],
        "runs",
        "loss",
        "law",
        "loss vs law",
        "predicted [95 %]",
    )
    if not any(row[-1] for row in rows):
        return Table(header=head[:-1], rows=tuple(row[:-1] for row in rows))
    return Table(header=head, rows=tuple(rows))


def binned_table(x: Array, loss: Array, fitted: Array, axis: str, words: str) -> Table:
    """Runs by size class: how many, their losses, and the law's typical miss there."""
    miss = 100 * np.log(loss / fitted)
    edges = np.geomspace(float(x.min()), float(x.max()) * 1.0001, 7)
    shown = power_of_ten if axis == "flops" else count
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (x >= low) & (x < high)
        if inside.any():
            spread = f"{number(float(loss[inside].min()), 3)} – {number(float(loss[inside].max()), 3)}"
            typical = percent(float(np.sqrt((miss[inside] ** 2).mean())))
            size = f"{shown(float(low))} – {shown(float(high))}"
            rows.append((size, str(int(inside.sum())), spread, percent(float(miss[inside].mean()), True), typical))
    return Table(header=(words, "runs", "losses", "mean residual", "rms residual"), rows=tuple(rows))


def ladder_caption(fit: FitResult, axis: str, held: HoldOut | None, curves: bool) -> str:
    parts = [
        f"Line: {law_words(fit.law)} fitted to all {plural(len(fit.points), 'run')}, dashed where nothing was measured."
    ]
    if fit.noise and fit.noise.prediction_sd_log:
        parts.append("Dark band: 95 % interval of the law; light band: of one new run.")
    if held:
        parts.append(
            f"Diamond and bar: {rung_name(held.rung)} as the smaller rungs alone predict it, with the 95 % prediction interval."
        )
    if curves:
        parts.append("Thin lines: validation loss of every run during training, also of runs that the fit leaves out.")
    return " ".join(parts)


def ladder_alt(fit: FitResult, axis: str, rungs: dict[str, Array], loss: Array, held: HoldOut | None) -> str:
    names = list(rungs)
    first, last = (float(np.exp(np.log(loss[rungs[n]]).mean())) for n in (names[0], names[-1]))
    text = (
        f"Loss against {axis_words(axis, fit.parameters)} on logarithmic axes: {number(first, 3)} at {rung_name(names[0])}, "
        f"{number(last, 3)} at {rung_name(names[-1])}, {len(names)} rungs. Fitted law: {equation(fit.law, fit.params, axis) or law_words(fit.law)}."
    )
    if held:
        text += f" {rung_name(held.rung)} predicted from {held.fitted_rungs} smaller rungs: {number(held.predicted, 3)}"
        text += f", 95 % interval {interval(*held.interval95)}" if held.interval95 else ""
        text += f"; measured {number(held.actual, 3)}."
    return text


def over_tokens(fit: FitResult, curves: Sequence[Curve]) -> Figure | None:
    """Validation loss over tokens, one look per rung, named at the right end."""
    series = [(c, *c.joined("val/tokens", "val/loss")) for c in curves]
    series = [(c, x, y) for c, x, y in series if len(x) > 1]
    if not series:
        return None
    right = max(float(x[-1]) for _, x, _ in series)
    lowest, ends_high = min(float(y.min()) for _, _, y in series), max(float(y[-1]) for _, _, y in series)
    highest = min(max(float(y.max()) for _, _, y in series), ends_high * 1.45)
    left = min(
        float(x[max(0, int(np.argmax(y <= highest)) - 1)]) for _, x, y in series
    )  # from where the first line enters the frame
    with sheet("Loss during training", height=320) as (page, ax):
        size_axis(ax.xaxis, left * 0.92, right * (right / left) ** 0.14, "tokens trained on", most=5)
        value_axis(ax.yaxis, *padded([lowest, highest], 0.05), loss_words(fit), log=True)
        ends = draw_curves(ax, fit, [c for c, _, _ in series], "val/tokens")
        end_labels(ax, ends)
    finals: dict[str, list[tuple[float, float, float]]] = {}
    for c, x, y in series:
        finals.setdefault(c.rung, []).append((float(x[-1]), float(y[0]), float(y[-1])))
    rows = tuple(
        (
            rung_name(rung),
            str(len(v)),
            count(max(t for t, _, _ in v)),
            number(float(np.mean([a for _, a, _ in v]))),
            number(float(np.mean([b for _, _, b in v]))),
        )
        for rung, v in finals.items()
    )
    table = Table(header=("rung", "runs", "tokens", "first evaluation shown", "last evaluation"), rows=rows)
    alt = "Validation loss over tokens on logarithmic axes, one line per run. Last values: " + "; ".join(
        f"{row[0]} {row[4]}" for row in rows
    )
    caption = "Evaluations during training; the untrained model (step 0) has no place on a logarithmic axis and losses above the frame are cut."
    return finish(page, "loss_vs_tokens", "Loss during training", alt + ".", caption, table)
