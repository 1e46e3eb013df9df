"""Pictures of the parameters themselves: profiles and bootstrap clouds."""

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
    value_axis,
)
from analysis.fit import FitResult
from analysis.numbers import (
    fixed,
    interval,
    known,
    listed,
    number,
    plural,
)
from analysis.rows import Array
from analysis.words import symbol

DOTS = 500  # of a bootstrap cloud that are drawn; all enter the numbers


def profiles(fit: FitResult) -> Figure | None:
    """How much worse the fit becomes when one parameter is held elsewhere and all others follow."""
    shown = [p for p in fit.profiles if len(p.values) > 2]
    if not shown:
        return None
    title = "How well the data fix each parameter"
    columns = 2 if len(shown) > 1 else 1
    lines = -(-len(shown) // columns)
    with sheet(title, height=60 + 150 * lines, rows=lines, columns=columns) as (page, axes):
        axes = axes if isinstance(axes, list) else [axes]
        for ax, profile in zip(axes, shown, strict=False):
            draw_profile(ax, profile, fit.params.get(profile.parameter))
        for ax in axes[len(shown) :]:
            ax.set_visible(False)
    rows = []
    for profile in shown:
        low, high = crossing(profile)
        rows.append(
            (symbol(profile.parameter), number(fit.params.get(profile.parameter)), low or "open", high or "open")
        )
    open_ends = [f"{r[0]} ({'below' if r[2] == 'open' else 'above'})" for r in rows if "open" in r[2:]]
    caption = "Objective above its minimum as that parameter is held and all others follow, with its 95 % limit (dashed). A curve that stays below it on one side leaves that side open."
    alt = "Profiles of " + "; ".join(f"{r[0]}: {r[1]}, 95 % from {r[2]} to {r[3]}" for r in rows) + "."
    caption += f" Open: {listed(open_ends)}." if open_ends else ""
    return finish(
        page,
        "profiles",
        title,
        alt,
        caption,
        Table(header=("parameter", "estimate", "95 % from", "to"), rows=tuple(rows)),
    )


def draw_profile(ax: Any, profile: Any, estimate: float | None) -> None:
    values, excess = np.array(profile.values), np.array(profile.excess)
    top = 2.6 * profile.limit
    allowed = values[excess <= profile.limit]
    near, far = float(allowed.min()), float(allowed.max())
    if near > 0 and far / near > 30:
        size_axis(ax.xaxis, near / 2, far * 2, symbol(profile.parameter), powers=far > 1e6 or near < 1e-2, most=3)
    else:
        room = 0.7 * max(far - near, 0.02 * abs(far))
        low, high = max(near - room, float(values.min())), min(far + room, float(values.max()))
        value_axis(ax.xaxis, low, high, symbol(profile.parameter), most=4)
    value_axis(ax.yaxis, 0.0, top, "deviance", most=4)
    ax.axhline(profile.limit, color=PREDICTED, lw=1.2, dashes=(4, 2))
    left, right = ax.get_xlim()
    below, above = (
        profile.bounded
    )  # outside the crossings the curve is above the limit, so the name goes under it there
    at, ha, dx = (left, "left", 3) if below and not above else (right, "right", -2)
    label(ax, at, profile.limit, "95 %", dx=dx, dy=-8 if below or above else 8, ha=ha, color=PREDICTED)
    drawn = (values >= left - (right - left)) & (values <= right + (right - left))
    ax.plot(values[drawn], excess[drawn], color=LAW)
    if known(estimate):
        ax.axvline(estimate, color=MEASURED, lw=1.2)


def crossing(profile: Any) -> tuple[str | None, str | None]:
    """Where the profile passes its limit left and right of its minimum, interpolated; None where it never does."""
    values, excess = np.array(profile.values), np.array(profile.excess)
    order = np.argsort(values)
    values, excess = values[order], excess[order]
    bottom = int(np.argmin(excess))
    ends: list[str | None] = []
    for rows in (range(bottom, 0, -1), range(bottom, len(values) - 1)):
        step = -1 if rows.step == -1 else 1
        found = None
        for i in rows:
            a, b = excess[i], excess[i + step]
            if a <= profile.limit < b:
                found = number(float(values[i] + (values[i + step] - values[i]) * (profile.limit - a) / (b - a)), 3)
                break
        ends.append(found)
    return ends[0], ends[1]


def cloud(fit: FitResult) -> Figure | None:
    """Bootstrap refits in the plane of the two parameters that trade off most."""
    names = list(fit.params)
    if fit.samples.ndim != 2 or len(fit.samples) < 50 or fit.samples.shape[1] != len(names) or len(names) < 2:
        return None
    first, second = pair(names)
    a, b = fit.samples[:, names.index(first)], fit.samples[:, names.index(second)]
    keep = np.isfinite(a) & np.isfinite(b)
    a, b = a[keep], b[keep]
    if len(a) < 50 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    title = f"Bootstrap of {symbol(first)} and {symbol(second)}"
    limits = [central(v, est) for v, est in ((a, fit.params[first]), (b, fit.params[second]))]
    with sheet(title, height=300) as (page, ax):
        for axis, (low, high, log), name in ((ax.xaxis, limits[0], first), (ax.yaxis, limits[1], second)):
            if log:
                size_axis(axis, low, high, symbol(name), powers=high > 1e6 or low < 1e-2, most=4)
            else:
                value_axis(axis, low, high, symbol(name), most=5)
        step = max(1, len(a) // DOTS)
        ax.plot(a[::step], b[::step], "o", color=MEASURED, ms=3, alpha=0.35, mew=0)
        for values, line in ((a, ax.axvline), (b, ax.axhline)):
            for q in (2.5, 97.5):
                line(float(np.percentile(values, q)), color=MUTED, lw=1, dashes=(4, 2))
        ax.plot([fit.params[first]], [fit.params[second]], "P", color=PREDICTED, ms=9, mec="white", zorder=5)
    correlation = float(np.corrcoef(a, b)[0, 1])
    rows = tuple(
        (symbol(n), number(fit.params[n]), *(with_percentiles(v, level) for level in (80, 95)))
        for n, v in ((first, a), (second, b))
    )
    seen = int(np.sum((a >= limits[0][0]) & (a <= limits[0][1]) & (b >= limits[1][0]) & (b <= limits[1][1])))
    outside = (
        f" {plural(len(a) - seen, 'refit')} {'lies' if len(a) - seen == 1 else 'lie'} outside the frame."
        if seen < len(a)
        else ""
    )
    caption = f"{len(a):,} refits ({fit.resampling}); plus: the fit; dashed: 2.5 % and 97.5 %. Correlation {fixed(correlation, 2)}: the two trade off.{outside}"
    if abs(correlation) < 0.5:
        caption = caption.replace(": the two trade off", "")
    alt = (
        f"Cloud of {len(a)} bootstrap refits of {symbol(first)} and {symbol(second)}, correlation {fixed(correlation, 2)}. "
        + "; ".join(f"{r[0]} {r[1]}, 95 % {r[3]}" for r in rows)
    )
    return finish(
        page, "bootstrap", title, alt + ".", caption, Table(header=("parameter", "estimate", "80 %", "95 %"), rows=rows)
    )


def pair(names: list[str]) -> tuple[str, str]:
    """The pair to draw: both exponents, else exponent and floor, else the first two."""
    for first, second in (("alpha", "beta"), ("alpha", "E"), ("eta", "E"), ("alpha", "A")):
        if first in names and second in names:
            return first, second
    return names[0], names[1]


def central(values: Array, estimate: float) -> tuple[float, float, bool]:
    """Limits that hold the middle 99 % and the estimate, and whether the axis is logarithmic."""
    low, high = (float(v) for v in np.percentile(values, (0.5, 99.5)))
    low, high = min(low, estimate), max(high, estimate)
    log = low > 0 and high / low > 30
    return (*padded([low, high], 0.06, log=log), log)


def with_percentiles(values: Array, level: int) -> str:
    tail = (100 - level) / 2
    low, high = np.percentile(values, (tail, 100 - tail))
    return interval(float(low), float(high))
