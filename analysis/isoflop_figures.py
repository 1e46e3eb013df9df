"""Compute-optimal sizes in pictures: isoFLOP valleys (loss against size at fixed FLOPs) and the efficient frontier."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_hex

from analysis.drawing import (
    LAW,
    MEASURED,
    PREDICTED,
    Figure,
    Table,
    band,
    finish,
    label,
    padded,
    sheet,
    size_axis,
    spread,
    value_axis,
)
from analysis.fit import FitResult
from analysis.isoflop import BUDGET_GAP, FEWEST_SIZES, Skipped, budgets, valley
from analysis.law import Quantities
from analysis.loss_figures import loss_words
from analysis.minima import Minimum, lines_at
from analysis.numbers import count, known, number, power_of_ten
from analysis.rows import Array, Points
from analysis.words import axis_words, symbol

MOST_NAMES = 16  # of budgets, beside their valleys
SIZES_SHARE = 0.6  # of the runs that must lie in budgets with enough sizes for the valleys to be worth drawing


@dataclass(frozen=True, kw_only=True)
class Valley:
    """Runs of one FLOP budget, and the minimum of the parabola through them or why there is none."""

    size: Array
    loss: Array
    found: Minimum | Skipped

    @property
    def n_opt(self) -> float | None:
        """The optimal size, when it lies among the sizes that were run."""
        return self.found.n_opt if isinstance(self.found, Minimum) and not self.found.at_edge else None

    def parabola(self, log_size: Array) -> Array:
        """Loss along log10 of the size (Hoffmann et al. 2022, approach 2)."""
        logs = np.log10(self.size)
        return np.polyval(np.polyfit(logs - logs.mean(), self.loss, 2), log_size - logs.mean())


def valleys_of(points: Points, parameters: str) -> list[Valley]:
    """Budgets with enough sizes, smallest first; empty when the runs do not come in budgets."""
    table = points.inputs(parameters)
    n, d, c, loss = table["params"], table["tokens"], table["flops"], table["loss"]
    if len(n) < 2 * FEWEST_SIZES or not (np.isfinite(c) & np.isfinite(n)).all():
        return []
    d = np.where(np.isfinite(d), d, c / (6 * n))
    groups = [g for g in budgets(c) if np.ptp(np.log10(c[g])) < 2 * BUDGET_GAP and len(np.unique(n[g])) >= FEWEST_SIZES]
    if len(groups) < 2 or sum(map(len, groups)) < SIZES_SHARE * len(n):
        return []
    return [Valley(size=n[g], loss=loss[g], found=valley(n[g], d[g], loss[g], c[g])) for g in groups]


def valleys(fit: FitResult) -> Figure | None:
    """Loss against size, one valley a budget, minima marked."""
    found = valleys_of(fit.points, fit.parameters)
    if not found:
        return None
    title = "IsoFLOP valleys"
    with sheet(title, height=350) as (page, ax):
        low, high = padded(np.concatenate([v.size for v in found]), 0.05)
        size_axis(ax.xaxis, low / (high / low) ** 0.17, high, axis_words("params", fit.parameters), most=5)
        limits = padded(np.concatenate([v.loss for v in found]), 0.05)
        value_axis(ax.yaxis, *limits, loss_words(fit), log=True)
        for i, v in enumerate(found):
            draw_valley(ax, v, shade(i, len(found)))
        name_budgets(ax, found, limits)
    rows = tuple(valley_row(v) for v in found)
    missing = [r[0] for r in rows if r[3].startswith("none")]
    caption = "Parabolas in log size at one FLOP budget each; diamonds: minima. Valleys are flat: sizes a factor of two off cost little."
    if missing:
        caption += f" No minimum inside the sizes that were run at {', '.join(missing)} FLOPs: those budgets say nothing about the optimum."
    alt = f"{len(found)} isoFLOP valleys. Minima: " + "; ".join(f"{r[0]} FLOPs: {r[3]}" for r in rows) + "."
    header = ("FLOPs", "runs", "sizes", "optimal size", "loss there")
    return finish(page, "isoflop", title, alt, caption, Table(header=header, rows=rows))


def valley_row(v: Valley) -> tuple[str, ...]:
    sizes = f"{count(float(v.size.min()))} – {count(float(v.size.max()))}"
    if v.n_opt and isinstance(v.found, Minimum):
        return (power_of_ten(v.found.flops), str(v.found.runs), sizes, count(v.n_opt), number(v.found.loss))
    lowest = f"{number(float(v.loss.min()))} (lowest run)"
    return (power_of_ten(v.found.flops), str(v.found.runs), sizes, "none inside the grid", lowest)


def shade(i: int, n: int) -> str:
    """Dark to light blue-grey along the budgets (order is also told by position and name)."""
    return to_hex(colormaps["cividis"](0.05 + 0.75 * i / max(1, n - 1)))


def draw_valley(ax: Any, v: Valley, colour: str) -> None:
    grid = np.linspace(np.log10(v.size.min()), np.log10(v.size.max()), 60)
    ax.plot(10**grid, v.parabola(grid), color=colour, lw=1.3, zorder=2)
    ax.plot(v.size, v.loss, "o", color=colour, ms=3.5, mew=0, zorder=3)
    if v.n_opt and isinstance(v.found, Minimum):
        ax.plot([v.n_opt], [v.found.loss], "D", color=PREDICTED, ms=5, mec="white", mew=0.7, zorder=5)


def name_budgets(ax: Any, found: list[Valley], limits: tuple[float, float]) -> None:
    """FLOPs at the left end of the valleys: larger budgets lie to the right and lower, so nothing else is drawn there.

    Where there is no room for all of them, the largest and every second, third, ... below it.
    """
    low, high = limits
    found = found[:: -math.ceil(len(found) / MOST_NAMES)]
    ends = [float(v.parabola(np.log10(v.size.min()))) for v in found]
    shares = [float(np.log(end / low) / np.log(high / low)) for end in ends]
    for v, s in zip(found, spread(shares, 0.9 / MOST_NAMES, 0.04, 0.98), strict=True):
        height = float(low * (high / low) ** s)
        label(ax, float(v.size.min()), height, power_of_ten(v.found.flops, 1), dx=-6, dy=-4, ha="right")


# ------------------------------------------------------------------------------------------------ frontier


def allocation(fit: FitResult, flops: float) -> tuple[dict[str, float], Quantities]:
    """N_opt, D_opt, ... at a budget: of the fit, and of every bootstrap refit; empty where the law has none."""
    if "N_coef" in fit.params:  # approaches 1 and 2 give the lines themselves
        columns = dict(zip(fit.params, fit.samples.T, strict=True)) if len(fit.samples) else {}
        return lines_at(fit.params, flops), lines_at(columns, flops) if columns else {}
    if fit.estimate is None:
        return {}, {}
    law = fit.estimate.law
    point = {k: float(v[0]) for k, v in law.allocate({k: np.array([v]) for k, v in fit.params.items()}, flops).items()}
    if not point or not len(fit.samples):
        return point, {}
    columns = {name: fit.samples[:, i] for i, name in enumerate(law.parameters)}
    with np.errstate(all="ignore"):
        return point, law.allocate(columns, flops)


def minima_of(fit: FitResult) -> list[tuple[float, float, float]]:
    """(FLOPs, N_opt, D_opt) of the budgets' minima that lie inside their grids, or of the envelope."""
    rows = fit.tables.get("envelope")
    if rows:
        return [(row["flops"], row["n_opt"], row["d_opt"]) for row in rows]
    found = [v.found for v in valleys_of(fit.points, fit.parameters) if v.n_opt]
    return [(m.flops, m.n_opt, m.d_opt) for m in found if isinstance(m, Minimum)]


def spent(inputs: Quantities) -> Array:
    """FLOPs of the runs, 6 N D where they are not given."""
    given = inputs["flops"]
    return given if np.isfinite(given).all() else 6 * inputs["params"] * inputs["tokens"]


def frontier(fit: FitResult) -> Figure | None:
    """Optimal parameters and tokens against FLOPs with 95 % bands, isoFLOP minima beside."""
    inputs = fit.points.inputs(fit.parameters)
    used = spent(inputs)
    if not np.isfinite(used).all() or not allocation(fit, float(used.max()))[0]:
        return None
    targets = [float(p.inputs["flops"]) for p in fit.predictions if known(p.inputs.get("flops"))]
    low, high = 0.8 * float(used.min()), max([float(used.max()) * 10, *(1.5 * t for t in targets)])
    grid = np.geomspace(low, high, 40)
    found = [allocation(fit, c) for c in grid]
    minima = minima_of(fit)
    title = "Efficient frontier"
    with sheet(title, height=430, rows=2) as (page, axes):
        for ax, key, axis in zip(axes, ("N_opt", "D_opt"), ("params", "tokens"), strict=True):
            line = np.array([point[key] for point, _ in found])
            bands = [np.percentile(s[key][np.isfinite(s[key])], (2.5, 97.5)) for _, s in found if s]
            text = axis_words(axis, fit.parameters)
            size_axis(ax.xaxis, low, high, "training FLOPs" if axis == "tokens" else "", powers=True, most=6)
            ends = np.concatenate([line, *bands]) if bands else line
            size_axis(ax.yaxis, *padded(ends, 0.04), f"optimal {text.replace('non-embedding ', '')}", most=6)
            if bands:
                band(ax, grid, (np.array(bands)[:, 0], np.array(bands)[:, 1]))
            inside = grid <= float(used.max()) * 1.001
            ax.plot(grid[inside], line[inside], color=LAW)
            ax.plot(grid[~inside], line[~inside], color=LAW, dashes=(4, 2))
            ax.plot(
                [m[0] for m in minima],
                [m[1 if axis == "params" else 2] for m in minima],
                "D",
                color=MEASURED,
                ms=5,
                mew=0,
            )
            for c in targets:
                ax.plot([c], [allocation(fit, c)[0][key]], "s", mfc="white", mec=PREDICTED, ms=6, zorder=6)
    rows = tuple(
        frontier_row(fit, c)
        for c in sorted({10.0**e for e in range(int(np.ceil(np.log10(low))), int(np.log10(high)) + 1)} | set(targets))
    )
    a_opt = fit.derived.get("a_opt")
    alt = (
        f"Optimal size and tokens against training FLOPs from {power_of_ten(low)} to {power_of_ten(high)}. "
        + " ".join(f"At {r[0]} FLOPs: {r[1]} parameters, {r[2]} tokens." for r in rows[-3:])
    )
    start = "Where the law's loss is lowest at a given C = 6 N D" if fit.estimate else "Lines through the minima"
    caption = (
        f"{start}; {symbol('N')}_opt grows as C to the power {number(a_opt, 3)}. Band: 95 %; dashed: beyond the data."
    )
    caption += " Diamonds: minima of the isoFLOP valleys or of the envelope of training curves." if minima else ""
    header = ("FLOPs", "optimal parameters [95 %]", "optimal tokens [95 %]", "tokens per parameter [95 %]", "loss")
    return finish(page, "frontier", title, alt, caption, Table(header=header, rows=rows))


def frontier_row(fit: FitResult, flops: float) -> tuple[str, ...]:
    point, samples = allocation(fit, flops)

    def cell(key: str) -> str:
        if not samples:
            return count(point[key])
        low, high = np.percentile(samples[key][np.isfinite(samples[key])], (2.5, 97.5))
        return f"{count(point[key])} [{count(float(low))}, {count(float(high))}]"

    return (
        power_of_ten(flops, 3).replace(".00", ""),
        cell("N_opt"),
        cell("D_opt"),
        cell("tokens_per_parameter"),
        number(point.get("loss_opt")),
    )
