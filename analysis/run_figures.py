"""Pictures that come from the runs' own logs rather than from the fit: losses per subset, learning rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.ticker import FixedFormatter, FixedLocator

from analysis.curves import Curve, fitted
from analysis.drawing import (
    MEASURED,
    PREDICTED,
    Figure,
    Table,
    end_labels,
    finish,
    log_ticks,
    marks,
    padded,
    sheet,
    size_axis,
    value_axis,
)
from analysis.fit import FitResult
from analysis.numbers import fixed, number, percent, rung_name
from analysis.words import axis_words


def curve_size(curve: Curve, parameters: str) -> float | None:
    return curve.params_non_embedding if "non_embedding" in parameters else curve.params_total


def subsets(fit: FitResult, curves: Sequence[Curve]) -> Figure | None:
    """Bits per byte of every validation subset against size, runs of the fit only, averaged over seeds."""
    rows: dict[str, dict[str, list[tuple[float, float]]]] = {}  # subset -> rung -> (size, bpb)
    for curve in fitted(curves, fit.points):
        size = curve_size(curve, fit.parameters)
        for name, value in curve.subsets("bpb").items() if size else ():
            rows.setdefault(name, {}).setdefault(curve.rung, []).append((float(size or 0), value))
    if not rows or max(len(r) for r in rows.values()) < 2:
        return None
    lines = {
        name: sorted(
            (float(np.mean([s for s, _ in v])), float(np.mean([b for _, b in v])), rung) for rung, v in r.items()
        )
        for name, r in rows.items()
    }
    looks = marks(list(lines))
    title = "Bits per byte by subset"
    with sheet(title, height=320) as (page, ax):
        sizes = [s for line in lines.values() for s, _, _ in line]
        low, high = padded(sizes, 0.05)
        longest = max(len(name) for name in lines)
        size_axis(
            ax.xaxis, low, high * (high / low) ** (0.03 + 0.024 * longest), axis_words("params", fit.parameters), most=5
        )
        value_axis(
            ax.yaxis, *padded([b for line in lines.values() for _, b, _ in line], 0.06), "bits per byte", log=True
        )
        for name, line in lines.items():
            look = looks[name]
            ax.plot(
                [s for s, _, _ in line],
                [b for _, b, _ in line],
                color=look.colour,
                linestyle=look.dash,
                marker=look.marker,
                ms=5.5,
            )
        end_labels(ax, [(line[-1][0], line[-1][1], name) for name, line in lines.items()])
    rungs = list(dict.fromkeys(rung for line in lines.values() for _, _, rung in line))
    table = tuple(
        (name, *(fixed(dict((r, b) for _, b, r in line).get(r), 3) for r in rungs), drop(line))
        for name, line in lines.items()
    )
    alt = "Bits per byte against size for each validation subset: " + "; ".join(
        f"{name} from {fixed(line[0][1], 3)} to {fixed(line[-1][1], 3)}" for name, line in lines.items()
    )
    caption = "Final validation loss of each subset in bits per UTF-8 byte, mean over seeds; both axes logarithmic, so equal slopes are equal gains."
    return finish(
        page,
        "subsets",
        title,
        alt + ".",
        caption,
        Table(header=("subset", *map(rung_name, rungs), "first to last"), rows=table),
    )


def drop(line: list[tuple[float, float, str]]) -> str:
    return percent(100 * (line[-1][1] / line[0][1] - 1), signed=True)


def learning_rates(fit: FitResult, curves: Sequence[Curve]) -> Figure | None:
    """Final loss against learning rate for every rung that ran several, the best one marked."""
    sweeps = rates(fit, curves)
    if not sweeps:
        return None
    looks = marks(list(sweeps))
    title = "Sensitivity to the learning rate"
    every = [(r, v) for line in sweeps.values() for r, v in line]
    with sheet(title, height=320) as (page, ax):
        low, high = padded([r for r, _ in every], 0.06)
        rate_axis(ax, low, high * (high / low) ** 0.16)
        value_axis(ax.yaxis, *padded([v for _, v in every], 0.07), "final validation loss", log=True)
        for rung, line in sweeps.items():
            look = looks[rung]
            ax.plot(*zip(*line, strict=True), color=look.colour, linestyle=look.dash, marker=look.marker, ms=5.5)
            best = min(line, key=lambda p: p[1])
            ax.plot(*best, "o", mfc="none", mec=PREDICTED if at_edge(line) else MEASURED, ms=12, mew=1.6)
        end_labels(ax, [(*line[-1], rung_name(rung)) for rung, line in sweeps.items()])
    rows = tuple(rate_row(rung, line) for rung, line in sweeps.items())
    edges = [row[0] for row in rows if row[4] != "no"]
    caption = "Ring: the lowest loss of the rung (mean over seeds)."
    caption += (
        f" At the edge of the grid for {', '.join(edges)}: the true best rate may lie outside, so the rung may be worse than it has to be."
        if edges
        else ""
    )
    alt = "Final loss against learning rate. " + " ".join(f"{r[0]}: best {r[1]} with loss {r[2]}." for r in rows)
    header = ("rung", "best rate", "loss", "rates tried", "at the edge", "loss at half or double the rate")
    return finish(page, "learning_rate", title, alt, caption, Table(header=header, rows=rows))


def rates(fit: FitResult, curves: Sequence[Curve]) -> dict[str, list[tuple[float, float]]]:
    """rung -> (learning rate, mean final loss), for rungs with two rates or more; from curves, else from the points."""
    found: dict[str, dict[float, list[float]]] = {}
    runs = [(c.rung, c.learning_rate, c.loss) for c in curves] or [
        (p.rung, p.learning_rate, p.loss) for p in fit.points
    ]
    for rung, rate, loss in runs:
        if rate is not None and loss is not None and np.isfinite(loss):
            found.setdefault(rung, {}).setdefault(rate, []).append(loss)
    return {r: sorted((rate, float(np.mean(v))) for rate, v in by.items()) for r, by in found.items() if len(by) > 1}


def rate_axis(ax: Any, low: float, high: float) -> None:
    """A log axis with learning rates as plain decimals."""
    size_axis(ax.xaxis, low, high, "learning rate")
    ticks = log_ticks(low, high, 5)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FixedFormatter([f"{t:g}" for t in ticks]))


def at_edge(line: list[tuple[float, float]]) -> bool:
    best = min(range(len(line)), key=lambda i: line[i][1])
    return best in (0, len(line) - 1)


def rate_row(rung: str, line: list[tuple[float, float]]) -> tuple[str, ...]:
    best = min(line, key=lambda p: p[1])
    near = [f"{fixed(100 * (v / best[1] - 1), 2)} %" for r, v in line if r != best[0] and 0.45 < r / best[0] < 2.2]
    side = "no" if not at_edge(line) else "lowest" if best == line[0] else "highest"
    return (
        rung_name(rung),
        f"{best[0]:g}",
        number(best[1]),
        ", ".join(f"{r:g}" for r, _ in line),
        side,
        " / ".join(f"+{n}" for n in near) or "not run",
    )
