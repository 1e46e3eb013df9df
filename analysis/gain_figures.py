"""What the last step up the ladder bought, in one picture: the relative gain of the largest rung on every task, by category."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.drawing import INK, LAW, MUTED, Figure, Table, finish, label, marks, padded, sheet, value_axis
from analysis.numbers import MISSING, listed, percent, rung_name, uncertain
from analysis.tasks import Gain, TaskScore, gains, headlines, without_gain

BARS = 16  # up to this many tasks each gets a bar with its name; beyond, a dot in its category's row


def relative_gain(scores: Sequence[TaskScore]) -> Figure | None:
    """Relative gain from the second-largest to the largest rung, by category (Rae et al. 2021, figure 2's question)."""
    scores = headlines(scores)
    found = gains(scores)
    if not found:
        return None
    largest, second = rung_name(found[0].largest.rung), rung_name(found[0].smaller.rung)
    title = f"Gain from {second} to {largest}"
    page = bars(found, title) if len(found) <= BARS else strips(found, title)
    up, flat = [g for g in found if g.percent > 25], [g for g in found if g.percent <= 0]
    sure = [g for g in found if g.stderr is not None and abs(g.percent) > 1.96 * g.stderr]
    caption = f"Score of {largest} relative to {second}; a fall in bits per byte counts as gain; one metric a task, groups of tasks apart. Bars of error: one standard error. "
    caption += f"{len(up)} of {len(found)} tasks gain more than 25 %, {len(flat)} gain nothing; {len(sure)} differ from zero by more than 1.96 standard errors."
    cut = [f"{g.task} {percent(g.percent, True)}" for g in found if not within(g.percent, gain_limits(found))]
    caption += f" {len(cut)} beyond the axis: {listed(cut)}." if cut else ""
    left = without_gain(scores, found)
    caption += f" Not drawn (not scored at both rungs, or a baseline of 0): {listed(left)}." if left else ""
    best = {(g.task, g.metric): g for g in gains(scores, "best_smaller")}
    rows = tuple(gain_row(g, best.get((g.task, g.metric))) for g in found)
    alt = f"Relative gain of {largest} over {second} on {len(found)} tasks: " + "; ".join(
        f"{category} mean {percent(float(np.mean([g.percent for g in found if g.category == category])), True)}"
        for category in dict.fromkeys(g.category for g in found)
    )
    header = ("category", "task", "metric", second, largest, "gain", "gain on the best smaller rung")
    return finish(page, "relative_gain", title, alt.replace("_", " ") + ".", caption, Table(header=header, rows=rows))


def gain_row(g: Gain, best: Gain | None) -> tuple[str, ...]:
    change = percent(g.percent, True) + (f" ± {percent(g.stderr)}" if g.stderr is not None else "")
    other = f"{percent(best.percent, True)} on {rung_name(best.smaller.rung)}" if best else MISSING
    return (
        g.category.replace("_", " "),
        g.task,
        g.metric,
        uncertain(g.smaller.value, g.smaller.stderr),
        uncertain(g.largest.value, g.largest.stderr),
        change,
        other,
    )


def within(value: float, limits: tuple[float, float]) -> bool:
    return limits[0] <= value <= limits[1]


def gain_limits(found: Sequence[Gain]) -> tuple[float, float]:
    """Limits that hold all gains; whiskers may be cut, gains beyond -100 and +150 % are cut and named."""
    values = [v for g in found for v in (g.percent, g.percent - (g.stderr or 0), g.percent + (g.stderr or 0))]
    low, high = padded([min(0.0, *values), max(0.0, *values)], 0.05, log=False)
    return max(low, -100.0), min(high, 150.0)


def bars(found: Sequence[Gain], title: str) -> Any:
    """One bar a task, grouped by category; the numbers stand in a column beside them, a category's mean over its tasks'."""
    looks = marks(list(dict.fromkeys(g.category for g in found)))
    lines: list[Gain | str] = []
    for category in looks:
        lines += [category, *(g for g in found if g.category == category)]
    with sheet(title, height=75 + 21 * len(lines)) as (page, ax):
        value_axis(ax.xaxis, *gain_limits(found), "relative gain, %", most=5)
        for y, line in enumerate(lines):
            if isinstance(line, str):
                own = [g.percent for g in found if g.category == line]
                if len(own) > 1:
                    beside(ax, y, percent(float(np.mean(own)), True), fontweight="bold")
                continue
            ax.barh([y], [line.percent], height=0.66, color=looks[line.category].colour, zorder=2)
            beside(ax, y, percent(line.percent, True))
            if line.stderr:
                ends = [line.percent - line.stderr, line.percent + line.stderr]
                ax.plot(ends, [y, y], color=INK, lw=1.3, zorder=3)
        ax.axvline(0, color=LAW, lw=1)
        ax.set(ylim=(len(lines) - 0.4, -0.7))
        ax.set_yticks(range(len(lines)), [x.replace("_", " ") if isinstance(x, str) else x.task for x in lines])
        for tick, line in zip(ax.yaxis.get_major_ticks(), lines, strict=True):
            tick.label1.set_fontweight("bold" if isinstance(line, str) else "normal")
        ax.tick_params(axis="y", length=0)
        ax.grid(False, axis="y")
    return page


def beside(ax: Any, y: float, text: str, **style: Any) -> None:
    """A number in the column right of the axis."""
    ax.annotate(
        text, (1, y), (52, 0), xycoords=("axes fraction", "data"), textcoords="offset points", ha="right", va="center_baseline",
        fontsize=11.5, color=INK, annotation_clip=False, **style,
    )  # fmt: skip


def strips(found: Sequence[Gain], title: str) -> Any:
    """One row a category: a dot a task, the mean as a bar with its number."""
    categories = sorted(
        {g.category for g in found}, key=lambda c: -float(np.mean([g.percent for g in found if g.category == c]))
    )
    looks = marks(categories)
    with sheet(title, height=90 + 34 * len(categories)) as (page, ax):
        low, high = gain_limits(found)
        value_axis(ax.xaxis, low, high, "relative gain, %", most=6)
        for i, category in enumerate(categories):
            values = np.array([g.percent for g in found if g.category == category])
            look, mean = looks[category], float(values.mean())
            shift = 0.22 * np.sin(np.arange(len(values)) * 2.4)  # a fixed pattern that keeps equal values apart
            ax.plot(
                np.clip(values, low, high),
                i + shift,
                look.marker,
                color=look.colour,
                ms=4.5,
                alpha=0.75,
                mew=0,
                zorder=3,
            )
            at = float(np.clip(mean, low, high))
            ax.plot([at, at], [i - 0.36, i + 0.36], color=INK, lw=2.4, zorder=4)
            beside_mean = {"dx": -4, "ha": "right"} if at > (low + high) / 2 else {"dx": 4}
            label(ax, at, i - 0.36, percent(mean, True), dy=3, fontsize=11.5, **beside_mean)
            if beyond := int((values > high).sum()):
                label(ax, high, i, f"{beyond} more →", dx=-2, ha="right", color=MUTED)
            if below := int((values < low).sum()):
                label(ax, low, i, f"← {below} more", dx=2, color=MUTED)
        ax.axvline(0, color=LAW, lw=1)
        ax.set(ylim=(len(categories) - 0.45, -0.65))
        ax.set_yticks(
            range(len(categories)),
            [f"{c.replace('_', ' ')} ({sum(g.category == c for g in found)})" for c in categories],
        )
        ax.grid(False, axis="y")
    return page
