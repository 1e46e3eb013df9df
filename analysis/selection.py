"""Which runs of a sweep count: finished, finite, one of each, one evaluation version, the best learning rate of the rung."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analysis.rows import Excluded, Point

EDGE_GRID = 3  # learning rates from which a best one at the edge shows that the grid missed the optimum


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What decides whether a run counts, beyond its numbers."""

    state: str  # finished | running | failed | ...
    reason: str
    evaluation: str  # eval.version, empty when not tagged
    started: int


def keep_sound_runs(
    candidates: Iterable[tuple[Point, RunFacts]], metric: str
) -> tuple[tuple[Point, ...], tuple[Excluded, ...], tuple[str, ...]]:
    """(kept, left out with reasons, notes) of the training runs of one experiment."""
    known = list(candidates)
    out: list[Excluded] = []
    sound: list[tuple[Point, RunFacts]] = []
    for point, facts in known:
        fault = run_fault(point, facts, metric)
        if fault:
            out.append(left_out(point, fault))
        else:
            sound.append((point, facts))
    sound, twins = one_of_each(sound)
    sound, mixed = one_evaluation(sound)
    kept, tuned, notes = best_learning_rates(tuple(point for point, _ in sound))
    return kept, (*out, *twins, *mixed, *tuned), notes


def run_fault(point: Point, facts: RunFacts, metric: str) -> str | None:
    """Why a run has no usable value, or None."""
    if facts.state != "finished":
        return f"state is {facts.state}" + (f": {facts.reason}" if facts.reason else "")
    if math.isnan(point.loss):
        return f"{metric} is missing or NaN"
    if not math.isfinite(point.loss):
        return f"{metric} is {point.loss}: the run diverged"
    if point.loss <= 0 and ("loss" in metric or "bpb" in metric):
        return f"{metric} is {point.loss:g}, which no loss can be"
    return None


def left_out(point: Point, reason: str) -> Excluded:
    return Excluded(run_id=point.run_id, reason=reason, rung=point.rung, seed=point.seed)


def one_of_each(runs: list[tuple[Point, RunFacts]]) -> tuple[list[tuple[Point, RunFacts]], list[Excluded]]:
    """The latest of several runs with one identity."""
    latest: dict[str, tuple[Point, RunFacts]] = {}
    out = []
    for point, facts in sorted(runs, key=lambda pair: pair[1].started):
        if point.run_id in latest:
            out.append(
                left_out(latest[point.run_id][0], f"duplicate: a later run has the same identity {point.run_id}")
            )
        latest[point.run_id] = (point, facts)
    return list(latest.values()), out


def one_evaluation(runs: list[tuple[Point, RunFacts]]) -> tuple[list[tuple[Point, RunFacts]], list[Excluded]]:
    """Runs of the most common evaluation version; scores of different versions cannot be compared."""
    counts = Counter(facts.evaluation for _, facts in runs)
    if len(counts) < 2:
        return runs, []
    main = max(sorted(counts), key=lambda version: counts[version])
    out = [
        left_out(
            p,
            f"evaluation version {f.evaluation or 'unknown'} differs from {main or 'unknown'} of most runs; evaluate again",
        )
        for p, f in runs
        if f.evaluation != main
    ]
    return [pair for pair in runs if pair[1].evaluation == main], out


def best_learning_rates(points: tuple[Point, ...]) -> tuple[tuple[Point, ...], tuple[Excluded, ...], tuple[str, ...]]:
    """(kept, left out, notes): per rung and budget the learning rate with the lowest mean loss over seeds.

    A rung whose best rate lies at the edge of a grid of three or more is left out: its optimum was not bracketed and its
    loss says more about the grid than about its size. With two rates it is kept and noted.
    """
    groups: dict[tuple[object, ...], list[Point]] = defaultdict(list)
    for p in points:
        groups[p.family, p.rung, p.params_total, p.params_non_embedding, p.tokens, p.unique_tokens].append(p)
    kept: list[Point] = []
    out: list[Excluded] = []
    notes: list[str] = []
    for members in groups.values():
        rates = sorted({p.learning_rate for p in members if p.learning_rate is not None})
        if len(rates) < 2 or any(p.learning_rate is None for p in members):
            kept += members
            continue
        means = {rate: float(np.mean([p.loss for p in members if p.learning_rate == rate])) for rate in rates}
        best = min(rates, key=lambda rate: means[rate])
        edge = best in (rates[0], rates[-1])
        side = "smallest" if best == rates[0] else "largest"
        if edge and len(rates) >= EDGE_GRID:
            told = f"best learning rate {best:g} is the {side} of its grid ({', '.join(f'{r:g}' for r in rates)}); widen the grid"
            out += [left_out(p, told) for p in members]
            continue
        kept += [p for p in members if p.learning_rate == best]
        reason = f"learning rate {{}} is not the best of its rung ({best:g}, mean loss {means[best]:.4f})"
        out += [left_out(p, reason.format(f"{p.learning_rate:g}")) for p in members if p.learning_rate != best]
        if edge:
            notes.append(
                f"rung {members[0].rung}: the best learning rate {best:g} is the {side} of its grid, so the true best may lie outside"
            )
    return tuple(kept), tuple(out), tuple(notes)
