"""Scores from stored answers, without a model: the harness's own metrics, computed by the harness, and smooth ones beside them.

Of a multiple choice with one right option, over its items:
    acc_bytes    whether the option with the most log-probability per byte, blanks around it apart, is the right one
    gold_bpb     bits per byte of the right option as it was scored, blank in front included
    choice_prob  probability of the right option, exp(log p) normalised over the options
    brier        sum over the options of (probability - 1 if right)^2, 0 to 2 (Brier 1950)
    chance       1 / number of options: what guessing gives acc
Of a group the same over the items of all members.
Of whole documents and of single continuations: bpb, bits per byte over all items together.

Standard errors are those of a mean over clusters (passages, where items share one, else the items themselves; of a group
its members); where no cluster is shared they equal the harness's.
"""

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import fmean
from typing import Any

import numpy as np

from gopher.evals.answers import Answer
from gopher.evals.bundle import LIKELIHOOD, ROLLING, Bundle, Request
from gopher.evals.compile import Compiled, one_line
from gopher.evals.items import Skipped, quiet
from gopher.evals.scorers import scorer_name

SMOOTH = ("acc_bytes", "gold_bpb", "choice_prob", "brier", "chance")
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
    """All scores of one checkpoint, the items behind those that are means of items, and the tasks that have no score."""

    scores: list[TaskScore]
    items: dict[tuple[str, str], Items]  # (task, metric) -> items
    skipped: list[Skipped]


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the harness makes of answers: results by task or group, in its own words, and its numbers per item."""

    results: dict[str, dict[str, Any]]
    items: dict[tuple[str, str], Items]


def scored(compiled: Compiled, answers: Mapping[str, Sequence[Answer]]) -> Scored:
    """All metrics of the tasks whose answers are given, and of their groups.

    A task whose answers are no numbers, or whose own code fails on them, has no score but a reason; the others go on.
    """
    bundles = {name: bundle for name, bundle in compiled.bundles.items() if name in answers}
    reasons = {name: why for name in bundles if (why := not_finite(answers[name]))}
    try:
        found = by_harness(compiled, without(bundles, reasons), answers)
    except Exception:  # of any task's own code
        reasons |= failing(compiled, without(bundles, reasons), answers)
        found = by_harness(compiled, without(bundles, reasons), answers)
    out: list[TaskScore] = []
    items: dict[tuple[str, str], Items] = {}
    for name, bundle in without(bundles, reasons).items():
        asked = list(zip(bundle.requests, answers[name], strict=True))
        label = label_of(compiled.tasks[name])
        harness = [sized(s, found.items) for s in task_scores(name, found.results[name], bundle.n_docs)]
        means = {s.metric: own for s in harness if (own := mean_items(s, found.items))}
        harness = [clustered(s, means.get(s.metric, {}), clusters_of(asked)) for s in harness]
        smooth, smooth_items = smooth_scores(name, asked, known={s.metric for s in harness})
        items |= smooth_items | {(name, metric + label): own for metric, own in means.items()}
        out += [*(replace(s, metric=s.metric + label) for s in harness), *smooth]
    groups = {g: members_of(v) for g, v in compiled.groups.items() if g in found.results}
    for name, members in groups.items():
        size = sum(bundles[m].n_docs for m in members)
        out += group_scores(name, members, task_scores(name, found.results[name], size), items)
    return Scored(scores=out, items=items, skipped=[Skipped(task=t, reason=why) for t, why in reasons.items()])


def named(found: Scored, label: str, unchanged: Collection[str]) -> Scored:
    """The scores with `label` behind the names of their metrics, but those of the `unchanged` tasks and of no model."""

    def name(task: str, metric: str) -> str:
        return metric if task in unchanged or metric in ("chance", "members") else metric + label

    scores = [replace(s, metric=name(s.task, s.metric)) for s in found.scores]
    items = {(task, name(task, metric)): own for (task, metric), own in found.items.items()}
    return replace(found, scores=scores, items=items)


def without(bundles: Mapping[str, Bundle], names: Iterable[str]) -> dict[str, Bundle]:
    return {name: bundle for name, bundle in bundles.items() if name not in set(names)}


def not_finite(answers: Sequence[Answer]) -> str | None:
    """Why no score can be made of the answers, or None: the harness would take NaN for a choice like any other."""
    bad = sum(a.text is None and not (a.log_prob is not None and math.isfinite(a.log_prob)) for a in answers)
    return f"{bad} of {len(answers)} log-probabilities are not finite: the checkpoint has diverged" if bad else None


def failing(
    compiled: Compiled, bundles: Mapping[str, Bundle], answers: Mapping[str, Sequence[Answer]]
) -> dict[str, str]:
    """Task -> why its own code fails, of those that fail alone too."""
    out = {}
    for name, bundle in bundles.items():
        try:
            by_harness(compiled, {name: bundle}, answers)
        except Exception as error:
            out[name] = f"its metrics fail with {type(error).__name__}: {one_line(error)}"
    return out


# ---- by the harness


def by_harness(compiled: Compiled, bundles: Mapping[str, Bundle], answers: Mapping[str, Sequence[Answer]]) -> Found:
    """What `lm_eval.evaluate` makes of the answers: the tasks get their requests from the bundles, nothing is rendered."""
    import lm_eval

    from gopher.evals.replay import Rendered, Replay

    if not bundles:
        return Found(results={}, items={})
    groups = {g: v for g, v in compiled.groups.items() if set(members_of(v)) <= set(bundles)}
    (limit,) = {bundle.made_of["limit"] for bundle in bundles.values()}
    for name, bundle in bundles.items():
        compiled.tasks[name].build_all_requests = Rendered(compiled.tasks[name], bundle)
    chosen: Any = {"tasks": {name: compiled.tasks[name] for name in bundles}, "groups": groups, "group_map": {}}
    with quiet():
        found: Any = lm_eval.evaluate(Replay(bundles, answers), chosen, limit=limit, bootstrap_iters=BOOTSTRAPS)
    items: dict[tuple[str, str], Items] = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(value := sample.get(metric), (bool, int, float)):
                    key = task, metric_name(f"{metric},{sample['filter']}")
                    items.setdefault(key, {})[int(sample["doc_id"])] = float(value)
    return Found(results=found["results"], items=items)


def members_of(group: Any) -> list[str]:
    return [task.task_name for task in group.get_all_tasks()]


def metric_name(key: str) -> str:
    """The harness's `acc,none` as acc, its `exact_match,strict` as exact_match-strict."""
    metric, _, kept = key.partition(",")
    return metric if kept in ("", "none") else f"{metric}-{kept}"


def label_of(task: Any) -> str:
    """What metrics of the task are named after: the scorer of generated text that its metadata asks for, or nothing."""
    metadata = task.config.metadata
    kind = metadata.get("scorer") if isinstance(metadata, dict) else None
    return f"-{scorer_name(kind)}" if kind else ""


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


def sized(score: TaskScore, items: Mapping[tuple[str, str], Items]) -> TaskScore:
    """The score with the number of items that have it: some metrics are of a part of them."""
    own = items.get((score.task, score.metric))
    return replace(score, n=len(own)) if own else score


def mean_items(score: TaskScore, items: Mapping[tuple[str, str], Items]) -> Items:
    """The items of a score that is their mean; of others (a perplexity's are log-likelihoods) none."""
    own = items.get((score.task, score.metric), {})
    return own if own and math.isclose(fmean(own.values()), score.value, rel_tol=1e-9, abs_tol=1e-9) else {}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.floating)) and not isinstance(value, bool) and math.isfinite(value)


def clustered(score: TaskScore, items: Items, clusters: Mapping[int, str]) -> TaskScore:
    """The score, which is the mean of `items`, with its standard error over clusters, where items share them."""
    names = [clusters[i] for i in items]
    if len(set(names)) == len(names):
        return score
    return replace(score, stderr=ratio_error(list(items.values()), [1.0] * len(items), names))


def group_scores(
    group: str, members: Sequence[str], harness: Sequence[TaskScore], items: Mapping[tuple[str, str], Items]
) -> list[TaskScore]:
    """A group's scores: the harness's, the smooth ones over the items of all members, and `members`, how many tasks it has.

    A member (a subject) is a cluster.
    """
    pooled = {m: s for m in (*SMOOTH, *(h.metric for h in harness)) if (s := over_members(group, m, members, items))}
    out = []
    for score in harness:
        same = pooled.get(score.metric)
        agrees = same is not None and math.isclose(same.value, score.value, rel_tol=1e-9, abs_tol=1e-9)
        out.append(same if same is not None and agrees else score)
    smooth = [s for m, s in pooled.items() if m in SMOOTH and m not in {h.metric for h in harness}]
    size = harness[0].n if harness else 0
    return [*out, *smooth, TaskScore(task=group, metric="members", value=len(members), stderr=None, n=size)]


def over_members(
    group: str, metric: str, members: Sequence[str], items: Mapping[tuple[str, str], Items]
) -> TaskScore | None:
    """The mean over all items of all members, or None where a member has no such items."""
    if not all((m, metric) in items for m in members):
        return None
    values = {(m, i): v for m in members for i, v in items[m, metric].items()}
    error = ratio_error(list(values.values()), [1.0] * len(values), [m for m, _ in values])
    known = None if metric == "chance" else error
    return TaskScore(task=group, metric=metric, value=fmean(values.values()), stderr=known, n=len(values))


# ---- smooth metrics


def smooth_scores(
    task: str, asked: Asked, known: Collection[str] = ()
) -> tuple[list[TaskScore], dict[tuple[str, str], Items]]:
    """The metrics of this module's first lines but the `known` ones, and the items of those that are means."""
    clusters = clusters_of(asked)
    items: dict[tuple[str, str], Items] = {}
    for doc_id, group in groupby(asked, key=lambda pair: pair[0].doc_id):
        for metric, value in choice_values(list(group)).items():
            if metric not in known:
                items.setdefault((task, metric), {})[doc_id] = value
    out = [mean_score(task, metric, values, clusters) for (_, metric), values in items.items()]
    texts = [(r, a) for r, a in asked if r.kind == ROLLING or (r.kind == LIKELIHOOD and r.gold is None)]
    whole = len(texts) == len(asked) and all(r.idx == 0 for r, _ in texts)
    return [*out, *([bits_per_byte(task, texts)] if whole else [])], items


def choice_values(asked: Asked) -> dict[str, float]:
    """The metrics of one item; none where it has no single right option."""
    gold = asked[0][0].gold
    options = [(r, a) for r, a in asked if r.kind == LIKELIHOOD]
    if any(r.context for r, _ in options):
        options = [(r, a) for r, a in options if r.context]  # those behind "" ask for the prior
    if gold is None or gold >= len(options):
        return {}
    log_probs = np.array([a.nats for _, a in options])
    probabilities = np.exp(log_probs - log_probs.max())
    probabilities /= probabilities.sum()
    right = np.eye(len(options))[gold]
    size = len(options[gold][0].continuation.encode())
    lengths = np.array([max(1, len(r.continuation.strip().encode())) for r, _ in options])
    return {
        "acc_bytes": float(np.argmax(log_probs / lengths) == gold),
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
    bits = [-a.nats / math.log(2) for _, a in asked]
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
        if metric not in ("chance", "members") and len(values) > 1:
            sd = float(np.std(values, ddof=1))
            out.append(TaskScore(task=task, metric=f"{metric}_seed_sd", value=sd, stderr=None, n=len(values)))
    return out
