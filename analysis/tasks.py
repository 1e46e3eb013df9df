"""Task scores against size, and what the last step up the ladder bought: the Gopher paper's way to look at evaluations.

Rae et al. 2021 (arXiv 2112.11446) compare the largest model with the best of the smaller ones, task by task and by
category: accuracy relative to the smaller model's, bits per byte with a decrease counted as gain.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Literal

Baseline = Literal["second_largest", "best_smaller"]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One task's score of one run at one step. None means not known."""

    task: str
    category: str
    metric: str  # acc, acc_norm, bpb …
    rung: str
    run_id: str
    params: float  # in the convention of the fit it stands beside
    step: int
    value: float
    stderr: float | None = None
    n: int | None = None  # items scored
    chance: float | None = None  # score of guessing
    higher_is_better: bool = True
    seed: int | None = None
    is_group: bool = False  # of tasks that have scores of their own
    untrained: bool = False  # step 0: the same model before training


@dataclass(frozen=True, kw_only=True)
class RungScore:
    """A task's score at one rung: the mean over its runs, with its standard error."""

    rung: str
    params: float
    value: float
    stderr: float | None


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Relative change from a smaller model to the largest, signed so that positive is better."""

    task: str
    category: str
    metric: str
    smaller: RungScore
    largest: RungScore
    percent: float
    stderr: float | None  # of percent, from both standard errors


LOWER_IS_BETTER = ("loss", "bpb", "bits_per_byte", "brier", "perplexity")  # in names of metrics
HEADLINES = (
    "acc",
    "exact_match",
    "f1",
    "bits_per_byte",
    "bpb",
    "word_perplexity",
    "gold_bpb",
)  # the first that there is


def is_lower_better(metric: str) -> bool:
    """Of a loss or score by its name: loss, eval/piqa.gold_bpb."""
    return any(word in metric.rpartition(".")[2] for word in LOWER_IS_BETTER)


def base(metric: str) -> str:
    """A metric without the filter or scorer behind its name: "exact_match-remove_whitespace" is exact_match."""
    return metric.partition("-")[0]


def headlines(scores: Sequence[TaskScore]) -> list[TaskScore]:
    """One metric a task, the first of `HEADLINES`, and no groups: nothing is counted twice."""
    metrics: dict[str, set[str]] = {}
    for score in scores:
        metrics.setdefault(score.task, set()).add(score.metric)
    order = {metric: i for i, metric in enumerate(HEADLINES)}
    first = {task: min(own, key=lambda m: (order.get(base(m), len(order)), m)) for task, own in metrics.items()}
    return [s for s in scores if not s.is_group and s.metric == first[s.task]]


def by_rung(scores: Sequence[TaskScore], untrained: bool = False) -> list[RungScore]:
    """One task's scores per rung, smallest first, each run at its last step (or its step 0 with `untrained`)."""
    latest: dict[str, TaskScore] = {}
    for score in sorted(scores, key=lambda s: s.step):
        if score.untrained == untrained:
            latest[score.run_id] = score
    rungs: dict[str, list[TaskScore]] = {}
    for score in latest.values():
        rungs.setdefault(score.rung, []).append(score)
    return sorted((rung_score(name, group) for name, group in rungs.items()), key=lambda r: r.params)


def rung_score(rung: str, group: Sequence[TaskScore]) -> RungScore:
    """The mean over runs. Its error: items within a run are shared by all runs, so seeds do not shrink the item error;
    with several seeds their own scatter is added in quadrature."""
    values = [s.value for s in group]
    errors = [s.stderr for s in group if s.stderr is not None]
    item = mean(errors) if len(errors) == len(group) else None
    if len(values) > 1 and item is not None:
        centre = mean(values)
        seeds = sum((v - centre) ** 2 for v in values) / (len(values) - 1) / len(values)
        item = math.sqrt(item**2 + seeds)
    return RungScore(rung=rung, params=group[0].params, value=mean(values), stderr=item)


def by_task(scores: Sequence[TaskScore]) -> dict[tuple[str, str, str], list[TaskScore]]:
    """(category, task, metric) -> scores, sorted by name."""
    groups: dict[tuple[str, str, str], list[TaskScore]] = {}
    for score in scores:
        groups.setdefault((score.category, score.task, score.metric), []).append(score)
    return {key: groups[key] for key in sorted(groups)}


def gains(scores: Sequence[TaskScore], baseline: Baseline = "second_largest") -> list[Gain]:
    """The relative gain of the largest rung on every task that it and a smaller rung were scored on, by category, best first.

    Tasks whose baseline is not above 0 have no relative gain and are left out; `without_gain` names them.
    """
    sizes = {s.rung: s.params for s in scores if not s.untrained}
    largest = max(sizes, key=lambda r: sizes[r], default="")
    second = max((r for r in sizes if r != largest), key=lambda r: sizes[r], default="")
    out = []
    for (category, task, metric), group in by_task(scores).items():
        rungs = by_rung(group)
        sign = 1.0 if group[0].higher_is_better else -1.0
        smaller = [r for r in rungs if r.rung != largest and (baseline == "best_smaller" or r.rung == second)]
        top = next((r for r in rungs if r.rung == largest), None)
        if top is None or not smaller:
            continue
        base = max(smaller, key=lambda r: sign * r.value)
        if base.value > 0:
            out.append(gain(task, category, metric, base, top, sign))
    return sorted(out, key=lambda g: (g.category, -g.percent, g.task))


def gain(task: str, category: str, metric: str, base: RungScore, top: RungScore, sign: float) -> Gain:
    """100 * (top / base - 1), signed; its error to first order, treating the two scores as independent (an upper bound when
    both are scored on the same items)."""
    ratio = top.value / base.value
    error = None
    if base.stderr is not None and top.stderr is not None:
        error = 100 * math.hypot(top.stderr, ratio * base.stderr) / base.value
    percent = sign * 100 * (ratio - 1)
    return Gain(task=task, category=category, metric=metric, smaller=base, largest=top, percent=percent, stderr=error)


def without_gain(scores: Sequence[TaskScore], shown: Sequence[Gain]) -> list[str]:
    """Tasks that have scores but no relative gain (a rung is missing, or the baseline is 0)."""
    drawn = {(g.category, g.task, g.metric) for g in shown}
    return [f"{task} ({metric})" for category, task, metric in by_task(scores) if (category, task, metric) not in drawn]
