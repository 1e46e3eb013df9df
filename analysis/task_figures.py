"""Evaluation in pictures: each task against size with chance and the untrained model, and the gain of the largest rung."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.drawing import (
    INK,
    LAW,
    MEASURED,
    MUTED,
    PREDICTED,
    Figure,
    Table,
    finish,
    label,
    marks,
    padded,
    sheet,
    size_axis,
    value_axis,
)
from analysis.numbers import MISSING, listed, number, percent, rung_name, uncertain
from analysis.published import MODEL, published
from analysis.tasks import Gain, TaskScore, by_rung, by_task, gains, headlines, without_gain

PANELS = 8  # of one figure; more tasks go to a further one
BARS = 16  # up to this many tasks each gets a bar with its name; beyond, a dot in its category's row


def tasks(scores: Sequence[TaskScore]) -> list[Figure]:
    """One figure a category (several when it has many tasks): score against size, one panel a task."""
    groups: dict[str, list[tuple[str, str, list[TaskScore]]]] = {}
    for (category, task, metric), group in by_task(scores).items():
        if len(by_rung(group)) > 1:
            groups.setdefault(category, []).append((task, metric, group))
    out = []
    for category, members in groups.items():
        chunks = [members[i : i + PANELS] for i in range(0, len(members), PANELS)]
        out += [task_page(category, chunk, i + 1 if len(chunks) > 1 else 0) for i, chunk in enumerate(chunks)]
    return out


def task_page(category: str, members: Sequence[tuple[str, str, list[TaskScore]]], part: int) -> Figure:
    words = category.replace("_", " ")
    title = f"Tasks: {words}" + (f" ({part})" if part else "")
    if len(members) == 1:
        title += f", {members[0][0]} ({members[0][1]})"
    columns = 2 if len(members) > 1 else 1
    lines = -(-len(members) // columns)
    with sheet(
        title, height=55 + 165 * lines + (90 if lines == 1 else 0) * (columns == 1), rows=lines, columns=columns
    ) as (page, axes):
        axes = axes if isinstance(axes, list) else [axes]
        for ax, (task, metric, group) in zip(axes, members, strict=False):
            panel(ax, task, metric, group, single=len(members) == 1)
        name_marks(axes[0], members[0][2])
        page.supxlabel("parameters", fontsize=11.5)
        for ax in axes[len(members) :]:
            ax.set_visible(False)
    rows = tuple(row for task, metric, group in members for row in task_rows(task, metric, group))
    alt = f"Scores against model size, {words}. " + " ".join(
        panel_words(task, metric, group) for task, metric, group in members
    )
    caption = (
        "Dots: trained models with one standard error; cross: the largest model before training; dotted line: chance."
    )
    if any(s.untrained for _, _, g in members for s in g) is False:
        caption = (
            caption.replace(" cross: the largest model before training;", "") + " The untrained models were not scored."
        )
    known = {(task, metric): p for task, metric, _ in members if (p := published(task, metric))}
    if known:
        sources = dict.fromkeys(p.source for p in known.values())
        caption += f" Dashed line, or an arrow where it lies outside: {MODEL} ({'; '.join(sources)}), whose prompts may differ."
    header = ("task", "metric", "rung", "score", "untrained", "chance", "items", MODEL)
    stem = "tasks_" + "".join(c if c.isalnum() else "_" for c in category.lower()) + (f"_{part}" if part else "")
    return finish(page, stem, title, alt, caption, Table(header=header, rows=rows))


def panel(ax: Any, task: str, metric: str, group: Sequence[TaskScore], single: bool) -> None:
    rungs, floor = by_rung(group), by_rung(group, untrained=True)
    x, y = [r.params for r in rungs], [r.value for r in rungs]
    errors = [r.stderr or 0.0 for r in rungs]
    chance = group[0].chance
    everything = [v + e * s for v, e in zip(y, errors, strict=True) for s in (-1, 1)] + [r.value for r in floor]
    everything += [chance] if chance is not None else []
    size_axis(ax.xaxis, *padded(x, 0.09), "", most=3 if not single else 5)
    value_axis(ax.yaxis, *padded(everything, 0.1, log=False), "", most=4)
    heading = [] if single else [task, metric]
    if reference := published(task, metric):
        heading.append(f"{MODEL} {number(reference.value, 3)}{behind(ax, reference.value)}")
    ax.set_title("\n".join(heading), pad=4)
    if chance is not None:
        ax.axhline(chance, color=MUTED, lw=1.2, dashes=(1.5, 2), zorder=2)
    ax.errorbar(
        x, y, yerr=errors if any(errors) else None, fmt="o-", color=MEASURED, ms=4.5, lw=1.3, elinewidth=1.2, zorder=4
    )
    if floor:
        last = floor[-1]
        ax.errorbar(
            [last.params],
            [last.value],
            yerr=last.stderr,
            fmt="X",
            color=PREDICTED,
            ms=7,
            mec="white",
            mew=0.6,
            elinewidth=1.2,
            zorder=5,
        )


def behind(ax: Any, value: float) -> str:
    """A line at the published score where it lies among our scores, else an arrow that says on which side it is."""
    low, high = ax.get_ylim()
    if low <= value <= high:
        ax.axhline(value, color=LAW, lw=1.2, dashes=(6, 3), zorder=1)
        return ""
    return " ↑" if value > high else " ↓"


def name_marks(ax: Any, group: Sequence[TaskScore]) -> None:
    """Words on the first panel for the line and the cross that all panels share."""
    floor, chance = by_rung(group, untrained=True), group[0].chance
    if chance is not None:
        label(ax, ax.get_xlim()[0], chance, "chance", dx=3, dy=7, color=MUTED)
    if floor:
        label(ax, floor[-1].params, floor[-1].value, "untrained", dx=-6, dy=9, ha="right", color=PREDICTED)


def task_rows(task: str, metric: str, group: Sequence[TaskScore]) -> list[tuple[str, ...]]:
    floor = {r.rung: r for r in by_rung(group, untrained=True)}
    chance, items, known = group[0].chance, group[0].n, published(task, metric)
    return [
        (
            task,
            metric,
            rung_name(r.rung),
            uncertain(r.value, r.stderr),
            uncertain(floor[r.rung].value, floor[r.rung].stderr) if r.rung in floor else MISSING,
            number(chance, 3),
            f"{items:,}" if items else MISSING,
            f"{number(known.value, 3)} ({known.shots}-shot)" if known else MISSING,
        )
        for r in by_rung(group)
    ]


def panel_words(task: str, metric: str, group: Sequence[TaskScore]) -> str:
    rungs = by_rung(group)
    chance = group[0].chance
    floor = by_rung(group, untrained=True)
    beside = [f"chance {number(chance, 3)}"] if chance is not None else []
    beside += [f"untrained {number(floor[-1].value, 3)}"] if floor else []
    if reference := published(task, metric):
        beside.append(f"{MODEL} {number(reference.value, 3)}")
    against = f" ({', '.join(beside)})" if beside else ""
    return f"{task} {metric}: {number(rungs[0].value, 3)} at {rung_name(rungs[0].rung)}, {number(rungs[-1].value, 3)} at {rung_name(rungs[-1].rung)}{against}."


# ------------------------------------------------------------------------------------------------ the gain of the last step


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


def gain_limits(found: Sequence[Gain]) -> tuple[float, float]:
    """Limits that hold all gains; whiskers may be cut, gains beyond +150 % are cut and named."""
    values = [v for g in found for v in (g.percent, g.percent - (g.stderr or 0), g.percent + (g.stderr or 0))]
    low, high = padded([min(0.0, *values), max(0.0, *values)], 0.05, log=False)
    return max(low, -100.0), min(high, 150.0)


def bars(found: Sequence[Gain], title: str) -> Any:
    """One bar a task, grouped by category."""
    looks = marks(list(dict.fromkeys(g.category for g in found)))
    heads, several = len(looks), Counter(g.task for g in found)
    with sheet(title, height=75 + 21 * (len(found) + heads)) as (page, ax):
        low, high = gain_limits(found)
        value_axis(ax.xaxis, low, high + 0.14 * (high - low), "relative gain, %", most=6)
        ticks, names, y, last = [], [], 0.0, ""
        spans: dict[str, tuple[float, float]] = {}  # category -> first and last bar
        for g in found:
            if g.category != last:
                label(ax, low, y, g.category.replace("_", " "), dx=2, fontweight="bold")
                y, last = y + 1, g.category
            spans[g.category] = (spans.get(g.category, (y, y))[0], y)
            ax.barh([y], [g.percent], height=0.66, color=looks[g.category].colour, zorder=2)
            reach = max(g.percent + (g.stderr or 0), 0.0)
            label(ax, min(reach, high), y, percent(g.percent, True), dx=3)
            if g.stderr:
                ax.plot([g.percent - g.stderr, g.percent + g.stderr], [y, y], color=INK, lw=1.3, zorder=3)
            ticks.append(y)
            names.append(f"{g.task} ({g.metric})" if several[g.task] > 1 else g.task)
            y += 1
        for start, end in spans.values():  # not one line through the headings
            ax.plot([0, 0], [start - 0.5, end + 0.5], color=LAW, lw=1, zorder=3)
        ax.set(ylim=(y - 0.4, -0.7))
        ax.set_yticks(ticks, names)
        ax.grid(False, axis="y")
    return page


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
            ax.plot([mean, mean], [i - 0.36, i + 0.36], color=INK, lw=2.4, zorder=4)
            beyond = int((values > high).sum())
            label(ax, mean, i - 0.36, percent(mean, True), dx=4, dy=3, fontsize=11.5)
            if beyond:
                label(ax, high, i, f"{beyond} more →", dx=-2, ha="right", color=MUTED)
        ax.axvline(0, color=LAW, lw=1)
        ax.set(ylim=(len(categories) - 0.45, -0.65))
        ax.set_yticks(
            range(len(categories)),
            [f"{c.replace('_', ' ')} ({sum(g.category == c for g in found)})" for c in categories],
        )
        ax.grid(False, axis="y")
    return page
