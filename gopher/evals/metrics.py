"""Scores from stored answers, without a model: the harness's own metrics, computed by the harness, and smooth ones beside them.

Of a multiple choice with one right option, over its items:
    acc_bytes    whether the option with the most log-probability per byte, blanks around it apart, is the right one
    gold_bpb     bits per byte of the right option as it was scored, blank in front included
    choice_prob  probability of the right option, exp(log p) normalised over the options
    brier        sum over the options of (probability - 1 if right)^2, 0 to 2 (Brier 1950)
    chance       1 / number of options: what guessing gives acc
Of a group the same over the items of all members.
Of whole documents and of single continuations: bpb, bits per byte over all items together.

Standard errors are those of a mean or ratio over clusters (passages, where items share one, else the items themselves), of
a group within its members, which are the tasks that they are; where no cluster is shared and the harness has one, they
equal the harness's.
"""

import math
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
from gopher.evals.ratios import Items, Ratio, difference, mean_of, pooled
from gopher.evals.scorers import scorer_name

SMOOTH = ("acc_bytes", "gold_bpb", "choice_prob", "brier", "chance")
BOOTSTRAPS = 1000  # of the harness, for its metrics whose standard error has no formula

Ratios = dict[tuple[str, str], Ratio]  # (task or group, metric) -> items
Asked = list[tuple[Request, Answer]]


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """One line of results. `stderr` is None where no formula holds; `n` is the number of items.

    `family` is the category that the task's metadata names; of a group its members', or "like" with a member's name.
    """

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    family: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """All scores of one checkpoint, the items behind those that are made of items, and the tasks that have no score."""

    scores: list[TaskScore]
    items: Ratios
    skipped: list[Skipped]

    def of(self, names: Collection[str]) -> "Scored":
        """What is of these tasks and groups."""
        return Scored(
            scores=[s for s in self.scores if s.task in names],
            items={key: own for key, own in self.items.items() if key[0] in names},
            skipped=[s for s in self.skipped if s.task in names],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What the harness makes of answers: results by task or group, in its own words, and its numbers per item."""

    results: dict[str, dict[str, Any]]
    items: dict[tuple[str, str], dict[int, Any]]  # (task, metric) -> doc_id -> a number, or a pair of them


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
    items: Ratios = {}
    for name, bundle in without(bundles, reasons).items():
        asked = list(zip(bundle.requests, answers[name], strict=True))
        label, clusters = label_of(compiled.tasks[name]), clusters_of(asked)
        harness = [sized(s, found.items) for s in task_scores(name, found.results[name], bundle.n_docs)]
        made = {
            s.metric: ratio for s in harness if (ratio := ratio_of(s, found.items.get((name, s.metric), {}), clusters))
        }
        smooth = {
            metric: own for metric, own in smooth_scores(asked).items() if metric not in {s.metric for s in harness}
        }
        items |= {(name, metric + label): own for metric, own in made.items()}
        items |= {(name, metric): own for metric, own in smooth.items()}
        lines = [replace(with_error(s, made.get(s.metric)), metric=s.metric + label) for s in harness]
        lines += [score_of(name, metric, own) for metric, own in smooth.items()]
        out += [replace(line, family=metadata_of(compiled.tasks[name], "category")) for line in lines]
    groups = {g: members_of(v) for g, v in compiled.groups.items() if g in found.results}
    for name, members in groups.items():
        size = sum(bundles[m].n_docs for m in members)
        harness = task_scores(name, found.results[name], size)
        whole = group_ratios(members, harness, items)
        items |= {(name, metric): own for metric, own in whole.items()}
        family = shared_family([metadata_of(compiled.tasks[m], "category") for m in members]) or f"like {members[0]}"
        out += [replace(line, family=family) for line in group_scores(name, members, harness, whole)]
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
    items: dict[tuple[str, str], dict[int, Any]] = {}
    for task, samples in found["samples"].items():
        for sample in samples:
            for metric in sample["metrics"]:
                if isinstance(value := sample.get(metric), (bool, int, float, tuple)):
                    key = task, metric_name(f"{metric},{sample['filter']}")
                    own = float(value) if isinstance(value, bool) else value
                    items.setdefault(key, {})[int(sample["doc_id"])] = own
    return Found(results=found["results"], items=items)


def members_of(group: Any) -> list[str]:
    return [task.task_name for task in group.get_all_tasks()]


def metric_name(key: str) -> str:
    """The harness's `acc,none` as acc, its `exact_match,strict` as exact_match-strict."""
    metric, _, kept = key.partition(",")
    return metric if kept in ("", "none") else f"{metric}-{kept}"


def label_of(task: Any) -> str:
    """What metrics of the task are named after: the scorer of generated text that its metadata asks for, or nothing."""
    kind = metadata_of(task, "scorer")
    return f"-{scorer_name(kind)}" if kind else ""


def metadata_of(task: Any, key: str) -> str | None:
    metadata = task.config.metadata
    value = metadata.get(key) if isinstance(metadata, dict) else None
    return None if value is None else str(value)


def shared_family(families: Sequence[str | None]) -> str | None:
    return families[0] if len(set(families)) == 1 else None


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


def sized(score: TaskScore, items: Mapping[tuple[str, str], Mapping[int, Any]]) -> TaskScore:
    """The score with the number of items that have it: some metrics are of a part of them."""
    own = items.get((score.task, score.metric))
    return replace(score, n=len(own)) if own else score


def ratio_of(score: TaskScore, items: Mapping[int, Any], clusters: Mapping[int, str]) -> Ratio | None:
    """What the score is of its items: their mean, the perplexity of log-likelihoods, bits per byte; None: none of these."""
    # of rates over documents they are (log-likelihood, bytes or words)
    pairs = {i: own if isinstance(own, tuple) else (own, 1.0) for i, own in items.items()}
    if not all(len(own) == 2 and all(map(is_number, own)) and own[1] > 0 for own in pairs.values()):
        return None
    values, wholes = ({i: float(own[k]) for i, own in pairs.items()} for k in (0, 1))
    mean = replace(mean_of(values, clusters), wholes=wholes)
    perplexity = replace(mean, parts={i: -v for i, v in values.items()}, is_perplexity=True)
    bits = replace(mean, parts={i: -v / math.log(2) for i, v in values.items()})
    return next((r for r in (mean, bits, perplexity) if items and agree(r, score)), None)


def agree(ratio: Ratio, score: TaskScore) -> bool:
    try:
        return math.isclose(ratio.value, score.value, rel_tol=1e-9, abs_tol=1e-9)
    except OverflowError:  # the exponential of what is no log-likelihood
        return False


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def with_error(score: TaskScore, ratio: Ratio | None) -> TaskScore:
    """The score with its standard error over clusters where items share them, or the harness has no error."""
    if ratio is None or (score.stderr is not None and not ratio.shares_texts):
        return score
    return replace(score, stderr=ratio.stderr)


def score_of(task: str, metric: str, ratio: Ratio) -> TaskScore:
    error = None if metric == "chance" else ratio.stderr
    return TaskScore(task=task, metric=metric, value=ratio.value, stderr=error, n=len(ratio.parts))


def group_ratios(members: Sequence[str], harness: Sequence[TaskScore], items: Ratios) -> dict[str, Ratio]:
    """The items of all members together, of the metrics that each of them has; not where the harness means something else."""
    of = {score.metric: score for score in harness}
    shared = {m: {t: items[t, m] for t in members} for m in (*SMOOTH, *of) if all((t, m) in items for t in members)}
    whole = {metric: pooled(own) for metric, own in shared.items()}
    return {metric: own for metric, own in whole.items() if metric not in of or agree(own, of[metric])}


def group_scores(
    group: str, members: Sequence[str], harness: Sequence[TaskScore], whole: Mapping[str, Ratio]
) -> list[TaskScore]:
    """A group's scores: the harness's, the smooth ones over the items of all members, and `members`, how many tasks it has."""
    out = [with_error(s, whole.get(s.metric)) for s in harness]
    out += [score_of(group, metric, own) for metric, own in whole.items() if metric not in {s.metric for s in harness}]
    size = harness[0].n if harness else 0
    return [*out, TaskScore(task=group, metric="members", value=len(members), stderr=None, n=size)]


# ---- smooth metrics


def smooth_scores(asked: Asked) -> dict[str, Ratio]:
    """The metrics of this module's first lines."""
    clusters = clusters_of(asked)
    items: dict[str, Items] = {}
    for doc_id, group in groupby(asked, key=lambda pair: pair[0].doc_id):
        for metric, value in choice_values(list(group)).items():
            items.setdefault(metric, {})[doc_id] = value
    texts = [(r, a) for r, a in asked if r.kind == ROLLING or (r.kind == LIKELIHOOD and r.gold is None)]
    whole = len(texts) == len(asked) and all(r.idx == 0 for r, _ in texts)
    means = {metric: mean_of(own, clusters) for metric, own in items.items()}
    return means | ({"bpb": bits_per_byte(texts)} if whole else {})


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


def bits_per_byte(asked: Asked) -> Ratio:
    """-sum(log2 p) / sum(bytes)."""
    bits = {r.doc_id: -a.nats / math.log(2) for r, a in asked}
    sizes = {r.doc_id: float(len((r.context if r.kind == ROLLING else r.continuation).encode())) for r, _ in asked}
    return replace(mean_of(bits, clusters_of(asked)), wholes=sizes)


def clusters_of(asked: Asked) -> dict[int, str]:
    """doc_id -> cluster; a document of its own is one."""
    return {r.doc_id: r.cluster or f"#{r.doc_id}" for r, _ in asked}


# ---- comparisons


def paired(a: Scored, b: Scored) -> list[TaskScore]:
    """b - a of every metric that is made of items, with the standard error of the difference on the same items."""
    out = []
    for (task, metric), own in b.items.items():
        before = a.items.get((task, metric))
        told = difference(before, own) if before and metric != "chance" else None
        if told is not None:
            out.append(TaskScore(task=task, metric=metric, value=told[0], stderr=told[1], n=len(own.parts)))
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
        out.append(replace(first, value=fmean(values)))
        if metric not in ("chance", "members") and len(values) > 1:
            sd = float(np.std(values, ddof=1))
            out.append(TaskScore(task=task, metric=f"{metric}_seed_sd", value=sd, stderr=None, n=len(values)))
    return out
