"""Compute-optimal sizes in pictures: isoFLOP valleys (loss against size at fixed FLOPs) and the efficient frontier."""

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
from analysis.law import Quantities
from analysis.numbers import count, known, number, power_of_ten
from analysis.rows import Array
from analysis.words import axis_words, symbol

BUDGET_GAP = 0.04  # decades of FLOPs between neighbours that still belong to one budget
FEWEST_SIZES = 4  # of a budget: three parameters of a parabola and one to spare


@dataclass(frozen=True, kw_only=True)
class Valley:
    """Runs of one FLOP budget and the parabola through them: loss = quadratic in log10 N (Hoffmann et al. 2022, approach 2)."""

    flops: float
    size: Array
    loss: Array
    coefficients: Array  # of log10 N, highest power first
    n_opt: float | None  # None: no minimum (the parabola opens downwards)
    at_edge: bool  # the minimum lies outside the sizes that were run


def valleys_of(flops: Array, size: Array, loss: Array) -> list[Valley]:
    """Budgets with enough sizes, smallest first; empty when the runs do not come in budgets."""
    if len(flops) < 2 * FEWEST_SIZES or not np.isfinite(flops).all() or not np.isfinite(size).all():
        return []
    order = np.argsort(flops)
    log_flops = np.log10(flops[order])
    groups = np.split(order, np.flatnonzero(np.diff(log_flops) > BUDGET_GAP) + 1)
    found = [
        g for g in groups if np.ptp(np.log10(flops[g])) < 2 * BUDGET_GAP and len(np.unique(size[g])) >= FEWEST_SIZES
    ]
    if len(found) < 2 or sum(map(len, found)) < 0.6 * len(flops):
        return []
    return [valley(flops[g], size[g], loss[g]) for g in found]


def valley(flops: Array, size: Array, loss: Array) -> Valley:
    logs = np.log10(size)
    middle = float(logs.mean())  # centred, so that the squares do not cancel
    a, b, c = np.polyfit(logs - middle, loss, 2)
    coefficients = np.array([a, b - 2 * a * middle, c - b * middle + a * middle**2])
    best = middle - b / (2 * a) if a > 0 else None
    return Valley(
        flops=float(np.exp(np.log(flops).mean())),
        size=size,
        loss=loss,
        coefficients=coefficients,
        n_opt=None if best is None else float(10**best),
        at_edge=best is not None and not (logs.min() <= best <= logs.max()),
    )


def valleys(fit: FitResult) -> Figure | None:
    """Loss against size, one valley a budget, minima marked."""
    inputs = fit.points.inputs(fit.parameters.removeprefix("params_"))
    found = valleys_of(inputs["flops"], inputs["params"], inputs["loss"])
    if not found:
        return None
    title = "IsoFLOP valleys"
    with sheet(title, height=350) as (page, ax):
        low, high = padded(np.concatenate([v.size for v in found]), 0.05)
        size_axis(ax.xaxis, low, high * (high / low) ** 0.17, axis_words("params", fit.parameters), most=5)
        limits = padded(np.concatenate([v.loss for v in found]), 0.05)
        value_axis(ax.yaxis, *limits, "loss", log=True)
        for i, v in enumerate(found):
            draw_valley(ax, v, shade(i, len(found)))
        name_budgets(ax, found, limits)
    rows = tuple(
        (
            power_of_ten(v.flops),
            str(len(v.loss)),
            f"{count(float(v.size.min()))} – {count(float(v.size.max()))}",
            count(v.n_opt) if v.n_opt and not v.at_edge else "none inside the grid",
            number(float(np.polyval(v.coefficients, np.log10(v.n_opt))))
            if v.n_opt and not v.at_edge
            else number(float(v.loss.min())) + " (lowest run)",
        )
        for v in found
    )
    missing = [r[0] for r in rows if r[3].startswith("none")]
    caption = "Parabolas in log size at one FLOP budget each; diamonds: minima. Valleys are flat: sizes a factor of two off cost little."
    if missing:
        caption += f" No minimum inside the sizes that were run at {', '.join(missing)} FLOPs: those budgets say nothing about the optimum."
    alt = f"{len(found)} isoFLOP valleys. Minima: " + "; ".join(f"{r[0]} FLOPs: {r[3]}" for r in rows) + "."
    header = ("FLOPs", "runs", "sizes", "optimal size", "loss there")
    return finish(page, "isoflop", title, alt, caption, Table(header=header, rows=rows))


def shade(i: int, n: int) -> str:
    """Dark to light blue-grey along the budgets (order is also told by position and name)."""
    return to_hex(colormaps["cividis"](0.05 + 0.75 * i / max(1, n - 1)))


def draw_valley(ax: Any, v: Valley, colour: str) -> None:
    ends = np.log10(v.size.min()), np.log10(v.size.max())
    grid = np.linspace(*ends, 60)
    ax.plot(10**grid, np.polyval(v.coefficients, grid), color=colour, lw=1.3, zorder=2)
    ax.plot(v.size, v.loss, "o", color=colour, ms=3.5, mew=0, zorder=3)
    if v.n_opt and not v.at_edge:
        ax.plot(
            [v.n_opt],
            [np.polyval(v.coefficients, np.log10(v.n_opt))],
            "D",
            color=PREDICTED,
            ms=5,
            mec="white",
            mew=0.7,
            zorder=5,
        )


def name_budgets(ax: Any, found: list[Valley], limits: tuple[float, float]) -> None:
    """FLOPs at the right end of every valley, moved apart."""
    low, high = limits
    shares = [
        np.log(float(np.polyval(v.coefficients, np.log10(v.size.max()))) / low) / np.log(high / low) for v in found
    ]
    for v, s in zip(found, spread(shares, 0.056, 0.02, 0.98), strict=True):
        label(ax, float(v.size.max()), float(low * (high / low) ** s), power_of_ten(v.flops, 1), dx=6)


# ------------------------------------------------------------------------------------------------ frontier


def allocation(fit: FitResult, flops: float) -> tuple[dict[str, float], Quantities]:
    """N_opt, D_opt, ... at a budget: of the fit, and of every bootstrap refit; empty where the law has none."""
    if fit.estimate is None:
        return {}, {}
    law = fit.estimate.law
    point = {k: float(v[0]) for k, v in law.allocate({k: np.array([v]) for k, v in fit.params.items()}, flops).items()}
    if not point or fit.samples.ndim != 2 or fit.samples.shape[1] != len(law.parameters) or not len(fit.samples):
        return point, {}
    columns = {name: fit.samples[:, i] for i, name in enumerate(law.parameters)}
    with np.errstate(all="ignore"):
        return point, law.allocate(columns, flops)


def spent(inputs: Quantities) -> Array:
    """FLOPs of the runs, 6 N D where they are not given."""
    given = inputs["flops"]
    return given if np.isfinite(given).all() else 6 * inputs["params"] * inputs["tokens"]


def frontier(fit: FitResult) -> Figure | None:
    """Optimal parameters and tokens against FLOPs with 95 % bands, isoFLOP minima beside."""
    inputs = fit.points.inputs(fit.parameters.removeprefix("params_"))
    used = spent(inputs)
    if not np.isfinite(used).all() or not allocation(fit, float(used.max()))[0]:
        return None
    targets = [float(p.inputs["flops"]) for p in fit.predictions if known(p.inputs.get("flops"))]
    low, high = 0.8 * float(used.min()), max([float(used.max()) * 10, *(1.5 * t for t in targets)])
    grid = np.geomspace(low, high, 40)
    found = [allocation(fit, c) for c in grid]
    valleys = valleys_of(inputs["flops"], inputs["params"], inputs["loss"])
    minima = [(v.flops, v.n_opt) for v in valleys if v.n_opt and not v.at_edge]
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
            for flops, n_opt in minima:
                value = n_opt if axis == "params" else flops / (6 * n_opt)
                ax.plot([flops], [value], "D", color=MEASURED, ms=5, mew=0)
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
    caption = f"Where the law's loss is lowest at a given C = 6 N D; {symbol('N')}_opt grows as C to the power {number(a_opt, 3)}. Band: 95 %; dashed: beyond the data."
    caption += " Diamonds: minima of the isoFLOP valleys." if minima else ""
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
