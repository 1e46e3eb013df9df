"""Every picture that a fit's data can fill. Losses against parameters, FLOPs and tokens are drawn here; the rest is beside:
`analysis.fit_figures` (residuals, seeds, hold-outs, profiles, clouds), `analysis.isoflop_figures`, `analysis.run_figures`
(subsets, learning rates), `analysis.task_figures`, `analysis.forecast_figures`."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap
from scipy.interpolate import PchipInterpolator

from analysis import fit_figures, forecast_figures, isoflop_figures, run_figures, task_figures
from analysis.curves import Curve
from analysis.drawing import (
    LAW,
    MEASURED,
    MUTED,
    PREDICTED,
    Figure,
    Table,
    band,
    end_labels,
    finish,
    label,
    log_ticks,
    marks,
    padded,
    sheet,
    size_axis,
    value_axis,
    zone,
)
from analysis.fit import FitResult, HoldOut, Prediction
from analysis.forecast import Forecast
from analysis.numbers import (
    count,
    interval,
    known,
    number,
    percent,
    plural,
    power_of_ten,
    rung_name,
    tick,
    with_interval,
)
from analysis.rows import Array
from analysis.tasks import TaskScore
from analysis.words import axis_words, equation, law_words

STEPS = 160  # points on a drawn law
KNOTS = 13  # of them at which its interval is computed; bands are smooth on logarithmic axes
REACH = {"params": 4.0, "tokens": 4.0, "flops": 6.0}  # how far beyond the largest measured size a law is drawn


def figures(
    result: FitResult,
    curves: Sequence[Curve] = (),
    tasks: Sequence[TaskScore] = (),
    forecasts: Sequence[Forecast] = (),
) -> list[Figure]:
    """All figures that these data support, in reading order; what cannot be drawn is left out, never drawn empty."""
    by_axis = {fit.x: fit for fit in (result, *result.also) if fit.x}
    drawn: list[Figure | None] = []
    if by_axis:
        drawn += [ladder(fit, curves if axis == "flops" else ()) for axis, fit in by_axis.items()]
    else:
        drawn += [joint(result, "params"), joint(result, "tokens"), joint_compute(result)]
    drawn += [
        over_tokens(result, curves),
        fit_figures.holdouts(result),
        fit_figures.seeds(result),
        fit_figures.residuals(result),
        isoflop_figures.valleys(result),
        isoflop_figures.frontier(result),
        fit_figures.profiles(result),
        fit_figures.cloud(result),
        run_figures.subsets(result, curves),
        run_figures.learning_rates(result, curves),
        *task_figures.tasks(tasks),
        task_figures.relative_gain(tasks),
        forecast_figures.calibration_figure(forecasts),
    ]
    return [figure for figure in drawn if figure is not None]


# ------------------------------------------------------------------------------------------------ one size axis


def ladder(fit: FitResult, curves: Sequence[Curve] = ()) -> Figure | None:
    """Loss against the law's size axis: runs, law with band, the held-out rung with its interval, the zone beyond the data."""
    axis = str(fit.x)
    inputs, rungs = fit.points.inputs(fit.parameters.removeprefix("params_")), rung_rows(fit)
    x, loss = inputs[axis], inputs["loss"]
    if not np.isfinite(x).all() or len(rungs) < 2:
        return None
    targets = [p for p in fit.predictions if known(p.inputs.get(axis))]
    edge = max([float(x.max()) * REACH[axis], *(1.5 * p.inputs[axis] for p in targets)])
    start = float(x.min()) / (5 if curves else 1.6)
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
        draw_holdout(ax, held, x, rungs)
        draw_targets(ax, targets, axis)
        if curves:
            page.legend(loc="outside lower left", ncols=2, columnspacing=1.0)
        else:
            ax.legend(loc="upper right")
    table = ladder_table(fit, x, loss, rungs, axis)
    caption = ladder_caption(fit, axis, held, bool(curves))
    return finish(page, name, title[axis], ladder_alt(fit, axis, rungs, loss, held), caption, table)


def rung_rows(fit: FitResult) -> dict[str, Array]:
    return fit.points.rungs(fit.parameters.removeprefix("params_"))


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
        ax.plot([at], [value], "o", color=MEASURED, ms=6.5, zorder=5, label=text)
        if len(rungs) <= 12:
            label(ax, at, float(loss[rows].min()), rung_name(name), dx=-4, dy=-11, ha="right")


def draw_holdout(ax: Any, held: HoldOut | None, x: Array, rungs: dict[str, Array]) -> None:
    """What the smaller rungs predicted for the largest, a little to the right of what was measured."""
    if held is None or held.rung not in rungs:
        return
    low, high = ax.get_xlim()
    at = float(np.exp(np.log(x[rungs[held.rung]]).mean())) * (high / low) ** 0.022
    if held.interval95:
        ax.plot([at, at], held.interval95, color=PREDICTED, lw=2.2, zorder=5, solid_capstyle="butt")
    ax.plot([at], [held.predicted], "D", color=PREDICTED, ms=6, zorder=6, label=f"{rung_name(held.rung)}, predicted")


def draw_targets(ax: Any, targets: Sequence[Prediction], axis: str) -> None:
    for target in targets:
        at = target.inputs[axis]
        if "95" in target.intervals:
            ax.plot([at, at], target.intervals["95"], color=PREDICTED, lw=1.4, zorder=5)
        ax.plot([at], [target.mean], "s", mfc="white", mec=PREDICTED, ms=6, zorder=6)
        name = power_of_ten(at) if axis == "flops" else count(at)
        label(ax, at, target.mean, f"{name}: {number(target.mean, 3)}", dx=8, dy=13, ha="right")


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


# ------------------------------------------------------------------------------------------------ parameters and tokens


def joint(fit: FitResult, axis: str) -> Figure | None:
    """Loss against N (or D) for a law of both: points shaded by the other quantity, the law at three of its values."""
    other = "tokens" if axis == "params" else "params"
    inputs = fit.points.inputs(fit.parameters.removeprefix("params_"))
    x, z, loss = inputs[axis], inputs[other], inputs["loss"]
    if not (np.isfinite(x).all() and np.isfinite(z).all()) or len(loss) < 3:
        return None
    title = "Loss against model size" if axis == "params" else "Loss against tokens"
    levels = [float(v) for v in np.exp(np.quantile(np.log(z), (0.1, 0.5, 0.9)))]
    grid = np.geomspace(float(x.min()), float(x.max()), STEPS)
    with sheet(title, height=350) as (page, ax):
        low, high = padded(x, 0.05)
        size_axis(ax.xaxis, low, high * (high / low) ** 0.16, axis_words(axis, fit.parameters), most=5)
        value_axis(ax.yaxis, *padded(loss, 0.06), loss_words(fit), log=True)
        shade_dots(page, ax, x, loss, z, axis_words(other, fit.parameters))
        symbol = "D" if other == "tokens" else "N"
        ends = []
        for level, dash in zip(levels, ("-", (0, (6, 2)), (0, (2, 1.5))), strict=True):
            extra = {"unique_tokens": np.full(STEPS, level)} if other == "tokens" else {"unique_tokens": grid}
            at = {axis: grid, other: np.full(STEPS, level), "flops": 6 * grid * level} | extra
            line = fit.predict(at)
            ends_95 = fit.interval(at, level=95, noise=False)
            if np.isfinite(ends_95).all():
                band(ax, grid, ends_95, 0.14)
            ax.plot(grid, line, color=LAW, linestyle=dash, lw=1.3, zorder=4)
            ends.append((float(grid[-1]), float(line[-1]), f"{symbol} = {count(level)}"))
        end_labels(ax, ends, dx=4)
    alt = (
        f"{len(loss)} runs, loss against {axis_words(axis, fit.parameters)}, shaded by {axis_words(other, fit.parameters)}, "
        f"from {number(float(loss.max()), 3)} down to {number(float(loss.min()), 3)}. Lines: {equation(fit.law, fit.params) or law_words(fit.law)}"
        f" at {symbol} = {', '.join(count(v) for v in levels)}."
    )
    caption = f"Lines: the law at the 10th, 50th and 90th percentile of {axis_words(other, fit.parameters)}; dots: runs, darker with fewer."
    name = "loss_vs_params" if axis == "params" else "loss_vs_tokens"
    return finish(page, name, title, alt, caption, joint_table(fit, x, loss, axis))


def shade_dots(page: Any, ax: Any, x: Array, y: Array, z: Array, text: str) -> None:
    """Dots shaded by `z` on a log scale, light for large, with a key above."""
    shades = LinearSegmentedColormap.from_list("shades", colormaps["cividis"](np.linspace(0.0, 0.86, 64)))
    dots = ax.scatter(x, y, c=np.log10(z), cmap=shades, s=16, linewidths=0.3, edgecolors="white", zorder=3)
    ticks = log_ticks(float(z.min()), float(z.max()), 5)
    bar = page.colorbar(dots, ax=ax, location="top", aspect=40, pad=0.02, shrink=0.6, anchor=(1.0, 0.0))
    bar.set_ticks([float(np.log10(t)) for t in ticks], labels=[tick(t) for t in ticks])
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    bar.ax.set_ylabel(text, rotation=0, ha="right", va="center", color=MUTED)


def joint_compute(fit: FitResult) -> Figure | None:
    """Loss against FLOPs: every run, and the lowest loss that the law allows at each budget."""
    inputs = fit.points.inputs(fit.parameters.removeprefix("params_"))
    x, loss = isoflop_figures.spent(inputs), inputs["loss"]
    if not np.isfinite(x).all() or "loss_opt" not in isoflop_figures.allocation(fit, float(x.max()))[0]:
        return None
    title = "Loss against training compute"
    targets = [p for p in fit.predictions if set(p.inputs) == {"flops"}]
    edge = max([float(x.max()) * REACH["flops"], *(2 * p.inputs["flops"] for p in targets)])
    grid = np.geomspace(float(x.min()), edge, 40)
    found = [isoflop_figures.allocation(fit, c) for c in grid]
    line = np.array([point["loss_opt"] for point, _ in found])
    bands = [np.percentile(s["loss_opt"][np.isfinite(s["loss_opt"])], (2.5, 97.5)) for _, s in found if s]
    with sheet(title, height=350) as (page, ax):
        size_axis(ax.xaxis, float(x.min()) / 1.3, edge, "training FLOPs", powers=True, most=6)
        value_axis(ax.yaxis, *padded(np.concatenate([loss, line]), 0.05), loss_words(fit), log=True)
        zone(ax, float(x.max()))
        shade_dots(page, ax, x, loss, inputs["params"], axis_words("params", fit.parameters))
        if bands:
            band(ax, grid, (np.array(bands)[:, 0], np.array(bands)[:, 1]), 0.2, "95 % band")
        inside = grid <= float(x.max()) * 1.001
        ax.plot(grid[inside], line[inside], color=LAW, zorder=4, label="lowest loss of the law at C = 6 N D")
        ax.plot(grid[~inside], line[~inside], color=LAW, dashes=(4, 2), zorder=4)
        draw_targets(ax, targets, "flops")
        ax.legend(loc="upper right")
    budgets = sorted(
        {
            *(10.0**e for e in range(int(np.ceil(np.log10(grid[0]))), int(np.log10(edge)) + 1)),
            *(p.inputs["flops"] for p in targets),
        }
    )
    rows = tuple(compute_row(fit, c, x, loss) for c in budgets)
    alt = f"Loss of {len(loss)} runs against training FLOPs with the law's lowest loss at each budget: " + "; ".join(
        f"{r[1]} at {r[0]} FLOPs" for r in rows
    )
    caption = "Line: the law's loss when each budget is split optimally between parameters and tokens; every run lies on it or above, within noise."
    header = ("FLOPs", "lowest loss of the law [95 %]", "best run within a factor of 2")
    return finish(page, "loss_vs_flops", title, alt + ".", caption, Table(header=header, rows=rows))


def compute_row(fit: FitResult, flops: float, x: Array, loss: Array) -> tuple[str, str, str]:
    point, samples = isoflop_figures.allocation(fit, flops)
    ends = (
        np.percentile(samples["loss_opt"][np.isfinite(samples["loss_opt"])], (2.5, 97.5)) if samples else (None, None)
    )
    near = loss[(x > flops / 2) & (x < flops * 2)]
    best = number(float(near.min())) if len(near) else "none"
    return power_of_ten(flops, 3).replace(".00", ""), with_interval(point["loss_opt"], *ends), best


def joint_table(fit: FitResult, x: Array, loss: Array, axis: str) -> Table:
    """Runs by size class: how many, their losses, and the law's typical miss there."""
    miss = 100 * np.log(loss / fit.fitted)
    edges = np.geomspace(float(x.min()), float(x.max()) * 1.0001, 7)
    rows = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (x >= low) & (x < high)
        if inside.any():
            spread = f"{number(float(loss[inside].min()), 3)} – {number(float(loss[inside].max()), 3)}"
            typical = percent(float(np.sqrt((miss[inside] ** 2).mean())))
            rows.append(
                (
                    f"{count(low)} – {count(high)}",
                    str(int(inside.sum())),
                    spread,
                    percent(float(miss[inside].mean()), True),
                    typical,
                )
            )
    return Table(
        header=(axis_words(axis, fit.parameters), "runs", "losses", "mean residual", "rms residual"), rows=tuple(rows)
    )


# ------------------------------------------------------------------------------------------------ during training


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
            number(np.mean([a for _, a, _ in v]), 4),
            number(np.mean([b for _, _, b in v]), 4),
        )
        for rung, v in finals.items()
    )
    table = Table(header=("rung", "runs", "tokens", "first evaluation shown", "last evaluation"), rows=rows)
    alt = "Validation loss over tokens on logarithmic axes, one line per run. Last values: " + "; ".join(
        f"{row[0]} {row[4]}" for row in rows
    )
    caption = "Evaluations during training; the untrained model (step 0) has no place on a logarithmic axis and losses above the frame are cut."
    return finish(page, "loss_vs_tokens", "Loss during training", alt + ".", caption, table)
