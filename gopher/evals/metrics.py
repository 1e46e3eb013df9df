"""Scores from stored answers, without a model: the harness's own metrics, computed by the harness, and smooth ones beside them.

Of a multiple choice with one right option, over its items:
    gold_bpb     bits per byte of the right option as it was scored, blank in front included
    choice_prob  probability of the right option, exp(log p) normalised over the options
    brier        sum over the options of (probability - 1 if right)^2, 0 to 2 (Brier 1950)
    chance       1 / number of options: what guessing gives acc
Of whole documents and of single continuations: bpb, bits per byte over all items together.

Standard errors are those of a mean over clusters (passages, where items share one, else the items themselves); where no
cluster is shared they equal the harness's.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

import numpy as np

from gopher.evals.answers import Answer
from gopher.evals.bundle import LIKELIHOOD, ROLLING, Bundle, Request
from gopher.evals.compile import Compiled
from gopher.evals.items import quiet

BOOTSTRAPS = 1000  # of the harness, for its metrics whose standard error has no formula

Items = dict[int, float]  # doc_id -> value
Asked = list[tuple[Request, Answer]]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One line of results. `stderr` is None where no formula holds; `n` is the number of items."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """All scores of one checkpoint, and the items behind those that are means of items."""

    scores: list[TaskScore]
    items: dict[tuple[str, str], Items]  # (task, metric) -> items


def scored(compiled: Compiled, answers: Mapping[str, Sequence[Answer]]) -> Scored:
    """All metrics of the tasks whose answers are given, and of their groups."""
    bundles = {name: bundle for name, bundle in compiled.bundles.items() if name in answers}
    groups = {g: v for g, v in compiled.groups.items() if {t.task_name for t in v.get_all_tasks()} <= set(bundles)}
    results, items = by_harness(compiled.tasks, groups, bundles, answers)
    out = []
    for name, bundle in bundles.items():
        asked = list(zip(bundle.requests, answers[name], strict=True))
        own, own_items = smooth_scores(name, asked)
        items |= own_items
        harness = [clustered(s, items, clusters_of(asked)) for s in task_scores(name, results[name], bundle.n_docs)]
        out += [*harness, *own]
    for name, group in groups.items():
        if name in results:
            out += task_scores(name, results[name], sum(bundles[t.task_name].n_docs for t in group.get_all_tasks()))
    return Scored(scores=out, items=items)


# ---- by the harness


def by_harness(
    tasks: Mapping[str, Any],
    groups: Mapping[str, Any],
    bundles: Mapping[str, Bundle],
    answers: Mapping[str, Sequence[Answer]],
) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], Items]]:
    """What `lm_eval.evaluate` makes of the answers: the tasks get their requests from the bundles, nothing is rendered."""
    import lm_eval

    from gopher.evals.replay import Rendered, Replay

    (limit,) = {bundle.made_of["limit"] for bundle in bundles.values()}
    for name, bundle in bundles.items():
        tasks[name].build_all_requests = Rendered(tasks[name], bundle)
    chosen: Any = {"tasks": {name: tasks[name] for name in bundles}, "groups": dict(groups), "group_map": {}}
    with quiet():
        found: Any = lm_eval.evaluate(Replay(bundles, answers), chosen, limit=limit, bootstrap_iters=BOOTSTRAPS)
    items: dict[tuple[str, str], Items] = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(value := sample.get(metric), (bool, int, float)):
                    key = task, metric_name(f"{metric},{sample['filter']}")
                    items.setdefault(key, {})[int(sample["doc_id"])] = float(value)
    return found["results"], items


def metric_name(key: str) -> str:
    """The harness's `acc,none` as acc, its `exact_match,strict` as exact_match-strict."""
    metric, _, kept = key.partition(",")
    return metric if kept in ("", "none") else f"{metric}-{kept}"


def task_scores(task: str, values: Mapping[str, Any], n: int) -> list[TaskScore]:
    """The harness's results of one task or group; what is no number is left out, not made 0."""
    out = []
    for key, value in values.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr") and is_number(value):
            stderr = values.get(f"{metric}_stderr,{kept}")
            error = float(stderr) if stderr is not None and is_number(stderr) else None
            out.append(TaskScore(task=task, metric=metric_name(key), value=float(value), stderr=error, n=n))
    return out


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.floating)) and not isinstance(value, bool) and math.isfinite(value)


def clustered(score: TaskScore, items: Mapping[tuple[str, str], Items], clusters: Mapping[int, str]) -> TaskScore:
    """The score with its standard error over clusters, where items share them and the score is their mean."""
    own = items.get((score.task, score.metric), {})
    shared = len(set(clusters.values())) < len(clusters)
    if not shared or set(own) != set(clusters) or not math.isclose(fmean(own.values()), score.value, abs_tol=1e-9):
        return score
    error = ratio_error(list(own.values()), [1.0] * len(own), [clusters[i] for i in own])
    return TaskScore(task=score.task, metric=score.metric, value=score.value, stderr=error, n=score.n)


# ---- smooth metrics


def smooth_scores(task: str, asked: Asked) -> tuple[list[TaskScore], dict[tuple[str, str], Items]]:
    """The metrics of this module's first lines, and the items of those that are means."""
    clusters = clusters_of(asked)
    items: dict[tuple[str, str], Items] = {}
    for doc_id, group in groupby(asked, key=lambda pair: pair[0].doc_id):
        for metric, value in choice_values(list(group)).items():
            items.setdefault((task, metric), {})[doc_id] = value
    out = [mean_score(task, metric, values, clusters) for (_, metric), values in items.items()]
    texts = [(r, a) for r, a in asked if r.kind == ROLLING or (r.kind == LIKELIHOOD and r.gold is None)]
    whole = len(texts) == len(asked) and all(r.idx == 0 for r, _ in texts)
    return [*out, *([bits_per_byte(task, texts)] if whole else [])], items


def choice_values(asked: Asked) -> dict[str, float]:
    """The metrics of one item; none where it has no single right option."""
    gold = asked[0][0].gold
    options = [(r, a) for r, a in asked if r.kind == LIKELIHOOD and r.context]  # those behind "" ask for the prior
    if gold is None or gold >= len(options) or any(a.log_prob is None for _, a in options):
        return {}
    log_probs = np.array([a.log_prob for _, a in options])
    probabilities = np.exp(log_probs - log_probs.max())
    probabilities /= probabilities.sum()
    right = np.eye(len(options))[gold]
    size = len(options[gold][0].continuation.encode())
    return {
        "gold_bpb": float(-log_probs[gold] / math.log(2) / size),
        "choice_prob": float(probabilities[gold]),
        "brier": float(((probabilities - right) ** 2).sum()),
        "chance": 1 / len(options),
    }


def mean_score(task: str, metric: str, items: Items, clusters: Mapping[int, str]) -> TaskScore:
    error = ratio_error(list(items.values()), [1.0] * len(items), [clusters[i] for i in items])
    known = None if metric == "chance" else error
    return TaskScore(task=task, metric=metric, value=fmean(items.values()), stderr=known, n=len(items))


def bits_per_byte(task: str, asked: Asked) -> TaskScore:
    """-sum(log2 p) / sum(bytes), with the standard error of a ratio."""
    bits = [-(a.log_prob or 0.0) / math.log(2) for _, a in asked]
    sizes = [float(len((r.context if r.kind == ROLLING else r.continuation).encode())) for r, _ in asked]
    clusters = clusters_of(asked)
    error = ratio_error(bits, sizes, [clusters[r.doc_id] for r, _ in asked])
    return TaskScore(task=task, metric="bpb", value=sum(bits) / sum(sizes), stderr=error, n=len(asked))


def clusters_of(asked: Asked) -> dict[int, str]:
    """doc_id -> cluster; a document of its own is one."""
    return {r.doc_id: r.cluster or f"#{r.doc_id}" for r, _ in asked}


def ratio_error(parts: Sequence[float], wholes: Sequence[float], clusters: Iterable[str]) -> float | None:
    """Standard error of sum(parts) / sum(wholes) over clusters, linearised (Cochran 1977, section 6.3); None for one cluster.

    With every whole 1 and every cluster of one item it is the usual s / sqrt(n).
    """
    ratio = sum(parts) / sum(wholes)
    residuals: defaultdict[str, float] = defaultdict(float)
    for part, whole, cluster in zip(parts, wholes, clusters, strict=True):
        residuals[cluster] += part - ratio * whole
    count = len(residuals)
    if count < 2:
        return None
    return math.sqrt(count / (count - 1) * sum(r * r for r in residuals.values())) / sum(wholes)


# ---- comparisons


def paired(a: Scored, b: Scored, compiled: Compiled) -> list[TaskScore]:
    """b - a of every metric that is a mean of items, with the standard error of the difference on the same items."""
    out = []
    for (task, metric), items in b.items.items():
        before = a.items.get((task, metric), {})
        if metric == "chance" or set(before) != set(items):
            continue
        requests = compiled.bundles[task].requests
        clusters = {r.doc_id: r.cluster or f"#{r.doc_id}" for r in requests}
        differences = {i: value - before[i] for i, value in items.items()}
        out.append(mean_score(task, metric, differences, clusters))
    return out


def over_seeds(by_seed: Sequence[Sequence[TaskScore]]) -> list[TaskScore]:
    """Means over few-shot seeds, each with `<metric>_seed_sd`, the standard deviation over seeds, as a line of its own.

    The standard error of the mean is that of the first seed: the items are the same, so more seeds do not shrink it.
    """
    if len(by_seed) == 1:
        return list(by_seed[0])
    found: dict[tuple[str, str], list[TaskScore]] = {}
    for line in (line for lines in by_seed for line in lines):
        found.setdefault((line.task, line.metric), []).append(line)
    out = []
    for (task, metric), lines in found.items():
        values = [line.value for line in lines]
        first = lines[0]
        out.append(TaskScore(task=task, metric=metric, value=fmean(values), stderr=first.stderr, n=first.n))
        if metric != "chance" and len(values) > 1:
            sd = float(np.std(values, ddof=1))
            out.append(TaskScore(task=task, metric=f"{metric}_seed_sd", value=sd, stderr=None, n=len(values)))
    return out
