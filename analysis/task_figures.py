"""Evaluation in pictures: each task against size, with chance and the untrained models of the same sizes."""

import re
from collections.abc import Sequence
from typing import Any

from matplotlib.lines import Line2D
from matplotlib.transforms import ScaledTranslation

from analysis.drawing import (
    LAW,
    MEASURED,
    MUTED,
    PREDICTED,
    Figure,
    Table,
    finish,
    padded,
    sheet,
    size_axis,
    value_axis,
)
from analysis.numbers import MISSING, number, rung_name, uncertain
from analysis.published import MODEL, published
from analysis.tasks import TaskScore, base, by_rung, by_task

PANELS = 8  # of one figure; more tasks go to a further one
LEAST_RANGE = 0.05  # of an axis of scores
LONGEST_LINE = 22  # letters over one panel of two
ASIDE = 4.0  # units that an untrained model stands to the right of the trained one
CHANCE, REFERENCE = (1.5, 2), (6, 3)  # dashes


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
    headings = headings_of(members) if len(members) > 1 else [note_of(*members[0])]
    deepest = sum(h.count("\n") + 1 for h in headings[::columns])
    height = 60 + 140 * lines + 15 * deepest + (100 if lines == 1 else 0) * (columns == 1)
    with sheet(f"{title}\n", height=height, rows=lines, columns=columns) as (page, axes):  # the key is its second line
        axes = axes if isinstance(axes, list) else [axes]
        for ax, (task, metric, group), heading in zip(axes, members, headings, strict=False):
            panel(ax, task, metric, group, single=len(members) == 1)
            ax.set_title(heading, pad=4)
        page.supxlabel("parameters", fontsize=11.5)
        page.legend(handles=signs(members), loc=(0.005, 1 - 40 / height), ncols=4, columnspacing=1.4, handletextpad=0.5)
        for ax in axes[len(members) :]:
            ax.set_visible(False)
    rows = tuple(row for task, metric, group in members for row in task_rows(task, metric, group))
    alt = f"Scores against model size, {words}. " + " ".join(
        panel_words(task, metric, group) for task, metric, group in members
    )
    caption = "Dots: trained models with one standard error; crosses, a little to the right: the same models before training; dotted line: chance."
    if any(s.untrained for _, _, g in members for s in g) is False:
        caption = (
            "Dots: trained models with one standard error; dotted line: chance. The untrained models were not scored."
        )
    known = {(task, metric): p for task, metric, _ in members if (p := published(task, metric))}
    if known:
        sources = dict.fromkeys(p.source for p in known.values())
        caption += f" Dashed line, or an arrow where it lies outside: {MODEL} ({'; '.join(sources)}), whose prompts may differ."
    header = ("task", "metric", "rung", "score", "untrained", "chance", "items", MODEL)
    stem = "tasks_" + "".join(c if c.isalnum() else "_" for c in category.lower()) + (f"_{part}" if part else "")
    return finish(page, stem, title, alt, caption, Table(header=header, rows=rows))


def panel(ax: Any, task: str, metric: str, group: Sequence[TaskScore], single: bool) -> None:
    rungs, floor, chance = by_rung(group), by_rung(group, untrained=True), group[0].chance
    size_axis(ax.xaxis, *padded([r.params for r in rungs], 0.12), "", most=3 if not single else 5)
    score_axis(ax.yaxis, metric, score_limits(metric, group))
    aside = ax.transData + ScaledTranslation(ASIDE / 72, 0, ax.figure.dpi_scale_trans)  # two models of one size
    for sizes, colour, look, place in ((floor, PREDICTED, "X", aside), (rungs, MEASURED, "o-", ax.transData)):
        ax.errorbar(
            [r.params for r in sizes],
            [r.value for r in sizes],
            yerr=[r.stderr or 0.0 for r in sizes] if any(r.stderr for r in sizes) else None,
            fmt=look,
            color=colour,
            ms=4.5 if look == "o-" else 6.5,
            mec=colour if look == "o-" else "white",
            mew=0.6,
            lw=1.3,
            elinewidth=1.2,
            zorder=4,
            transform=place,
        )
    if chance is not None:
        ax.axhline(chance, color=MUTED, lw=1.2, dashes=CHANCE, zorder=2)
    reference = published(task, metric)
    if reference and side(reference.value, metric, group) == "":
        ax.axhline(reference.value, color=LAW, lw=1.2, dashes=REFERENCE, zorder=1)


def score_limits(metric: str, group: Sequence[TaskScore]) -> tuple[float, float]:
    """Limits that hold the scores with their errors and chance; scores that are all alike get room around them."""
    found = [*by_rung(group), *by_rung(group, untrained=True)]
    values = [r.value + sign * (r.stderr or 0.0) for r in found for sign in (-1, 1)]
    values += [group[0].chance] if group[0].chance is not None else []
    lowest = min(r.value for r in found)
    if is_log(metric, lowest):  # an error may be larger than the value
        return padded([max(v, lowest / 3) for v in values] + [1.05 * max(values)], 0.1)
    low, high = padded(values, 0.1, log=False)
    if high - low < LEAST_RANGE:
        low, high = (low + high - LEAST_RANGE) / 2, (low + high + LEAST_RANGE) / 2
    return (max(low, -0.08 * high), high) if lowest >= 0 else (low, high)  # none is below 0, nor is the axis


def is_log(metric: str, lowest: float) -> bool:
    return base(metric).endswith("perplexity") and lowest > 0


def score_axis(axis: Any, metric: str, limits: tuple[float, float]) -> None:
    low, high = limits
    if is_log(metric, low) and high / low >= 3.2:
        size_axis(axis, low, high, "", most=4)  # from 20 to 50M
    else:
        value_axis(axis, low, high, "", log=is_log(metric, low), most=5)


def side(value: float, metric: str, group: Sequence[TaskScore]) -> str:
    """Where a published score is: an arrow outside the axis, words where the line of chance is there already, else nothing."""
    low, high = score_limits(metric, group)
    chance = group[0].chance
    if chance is not None and abs(value - chance) < 0.02 * (high - low):
        return "at chance"
    return "" if low <= value <= high else "↑" if value > high else "↓"


def headings_of(members: Sequence[tuple[str, str, list[TaskScore]]]) -> list[str]:
    """Task, metric and the published score over each panel, those of one row with equally many lines."""
    found = [
        [*in_lines(task), metric, *filter(None, [note_of(task, metric, group)])] for task, metric, group in members
    ]
    most = [max(len(lines) for lines in found[i - i % 2 :][:2]) for i in range(len(found))]
    return ["\n".join([*lines, *[" "] * (n - len(lines))]) for lines, n in zip(found, most, strict=True)]


def note_of(task: str, metric: str, group: Sequence[TaskScore]) -> str:
    reference = published(task, metric)
    if reference is None:
        return ""
    where = side(reference.value, metric, group)
    return f"{MODEL} {where}" if where == "at chance" else f"{MODEL} {number(reference.value, 3)} {where}".rstrip()


def in_lines(name: str) -> list[str]:
    """A long name cut behind underscores, where a panel ends."""
    lines = [""]
    for word in re.findall(r"[^_]*_+|[^_]+$", name):
        if lines[-1] and len(lines[-1] + word) > LONGEST_LINE:
            lines.append("")
        lines[-1] += word
    return lines


def signs(members: Sequence[tuple[str, str, list[TaskScore]]]) -> list[Line2D]:
    """What all panels share, for one key above them."""
    out = [Line2D([], [], color=MEASURED, marker="o", ms=4.5, lw=1.3, label="trained")]
    if any(s.untrained for _, _, group in members for s in group):
        out.append(Line2D([], [], color=PREDICTED, marker="X", ms=6.5, mec="white", mew=0.6, lw=0, label="untrained"))
    if any(group[0].chance is not None for _, _, group in members):
        out.append(Line2D([], [], color=MUTED, lw=1.2, dashes=CHANCE, label="chance"))
    if any((p := published(task, m)) and side(p.value, m, group) == "" for task, m, group in members):
        out.append(Line2D([], [], color=LAW, lw=1.2, dashes=REFERENCE, label=MODEL))
    return out


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
