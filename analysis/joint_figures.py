"""Pictures of a law of parameters and tokens: loss against either, and against FLOPs with the lowest loss it allows."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LinearSegmentedColormap

from analysis import isoflop_figures
from analysis.drawing import (
    LAW,
    MUTED,
    PREDICTED,
    Figure,
    Table,
    band,
    end_labels,
    finish,
    log_ticks,
    padded,
    sheet,
    size_axis,
    value_axis,
    zone,
)
from analysis.findings import largest_holdout
from analysis.fit import FitResult
from analysis.holdout import rung_groups
from analysis.loss_figures import REACH, STEPS, binned_table, draw_holdout, draw_targets, loss_words
from analysis.numbers import (
    count,
    number,
    power_of_ten,
    tick,
    with_interval,
)
from analysis.rows import Array
from analysis.words import axis_words, equation, law_words

SAME_BUDGET = 1.05  # runs of one nominal budget differ by a few percent


def joint(fit: FitResult, axis: str) -> Figure | None:
    """Loss against N (or D) for a law of both: points shaded by the other quantity, the law at three of its values."""
    other = "tokens" if axis == "params" else "params"
    inputs = fit.points.inputs(fit.parameters)
    x, z, loss = inputs[axis], inputs[other], inputs["loss"]
    drawable = fit.estimate is not None and "family" not in fit.estimate.law.inputs
    if not drawable or not (np.isfinite(x).all() and np.isfinite(z).all()) or len(loss) < 3:
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
        told = ring_holdout(ax, fit, x, loss)
        end_labels(ax, ends, dx=4)
    alt = (
        f"{len(loss)} runs, loss against {axis_words(axis, fit.parameters)}, shaded by {axis_words(other, fit.parameters)}, "
        f"from {number(float(loss.max()), 3)} down to {number(float(loss.min()), 3)}. Lines: {equation(fit.law, fit.params) or law_words(fit.law)}"
        f" at {symbol} = {', '.join(count(v) for v in levels)}."
    )
    caption = f"Lines: the law at the 10th, 50th and 90th percentile of {axis_words(other, fit.parameters)}; dots: runs, darker with fewer.{told}"
    name = "loss_vs_params" if axis == "params" else "loss_vs_tokens"
    return finish(
        page, name, title, alt, caption, binned_table(x, loss, fit.fitted, axis, axis_words(axis, fit.parameters))
    )


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


def ring_holdout(ax: Any, fit: FitResult, x: Array, loss: Array) -> str:
    """Rings around the largest runs that were held out, with what the smaller ones predict for their mean; words for the caption."""
    held = largest_holdout(fit)
    groups = rung_groups(fit.points, "flops", fit.parameters)
    rows = groups.get(held.rung) if held else None
    if held is None or rows is None:
        return ""
    ax.plot(x[rows], loss[rows], "o", mfc="none", mec=PREDICTED, ms=7, mew=1.2, zorder=5)
    draw_holdout(ax, held, x[rows])
    known = " with its 95 % interval" if held.interval95 else ""
    return f" Rings: the largest runs by FLOPs, held out; diamond: their mean as smaller runs alone predict it{known}."


def compute(fit: FitResult) -> Figure | None:
    """Loss against FLOPs: every run, and the lowest loss that the law allows at each budget."""
    inputs = fit.points.inputs(fit.parameters)
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
        value_axis(ax.yaxis, *padded(np.concatenate([loss, line]), 0.08), loss_words(fit), log=True)
        zone(ax, float(x.max()))
        shade_dots(page, ax, x, loss, inputs["params"], axis_words("params", fit.parameters))
        if bands:
            band(ax, grid, (np.array(bands)[:, 0], np.array(bands)[:, 1]), 0.2, "95 % band")
        inside = grid <= float(x.max()) * 1.001
        ax.plot(grid[inside], line[inside], color=LAW, zorder=4, label="lowest loss of the law at C = 6 N D")
        ax.plot(grid[~inside], line[~inside], color=LAW, dashes=(4, 2), zorder=4)
        told = ring_holdout(ax, fit, x, loss)
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
    caption += told
    header = ("FLOPs", "lowest loss of the law [95 %]", "best run at half to all of it")
    return finish(page, "loss_vs_flops", title, alt + ".", caption, Table(header=header, rows=rows))


def compute_row(fit: FitResult, flops: float, x: Array, loss: Array) -> tuple[str, str, str]:
    point, samples = isoflop_figures.allocation(fit, flops)
    ends = (
        np.percentile(samples["loss_opt"][np.isfinite(samples["loss_opt"])], (2.5, 97.5)) if samples else (None, None)
    )
    near = loss[(x >= flops / 2) & (x <= flops * SAME_BUDGET)]
    best = number(float(near.min())) if len(near) else "none"
    return power_of_ten(flops, 3).replace(".00", ""), with_interval(point["loss_opt"], *ends), best
