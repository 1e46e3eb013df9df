"""Which runs of a sweep count: finished, finite, one of each, one evaluation version, the best learning rate of the rung."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from analysis.rows import Excluded, Point
from analysis.sizes import SIZES, designs
from analysis.tasks import is_lower_better

KNOBS = {"learning_rate": "learning rate", "batch_tokens": "batch"}
EDGE_GRID = 3  # values from which a best one at the edge shows that the grid missed the optimum
SEARCH_RUNS, SEARCH_SD = 5, 0.01  # runs of one design, and their scatter of ln loss, that no seeds explain


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What decides whether a run counts, beyond its numbers."""

    state: str  # finished | running | failed | ...
    reason: str
    evaluation: str  # eval.version, of task scores eval.scores; empty when not tagged
    started: int


def keep_sound_runs(
    candidates: Iterable[tuple[Point, RunFacts]], metric: str, best: bool = True
) -> tuple[tuple[Point, ...], tuple[Excluded, ...], tuple[str, ...]]:
    """(kept, left out with reasons, notes) of the training runs of one experiment; with `best` one setting of each design."""
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
    points = tuple(point for point, _ in sound)
    kept, tuned, notes = best_learning_rates(points, is_lower_better(metric)) if best else (points, (), ())
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


def best_learning_rates(
    points: tuple[Point, ...], lower: bool = True
) -> tuple[tuple[Point, ...], tuple[Excluded, ...], tuple[str, ...]]:
    """(kept, left out, notes): of each design the learning rate, and batch where it varies, with the best mean over seeds: the
    lowest loss, or without `lower` the highest score.

    A rung whose best rate or batch lies at the edge of a grid of three or more is left out: its optimum was not bracketed
    and its loss says more about the grid than about its size. With two values it is kept and noted.
    """
    sizes = {name: np.array([getattr(p, name) or np.nan for p in points], float) for name in (*SIZES, "unique_tokens")}
    groups = designs(sizes, [(p.family, p.rung) for p in points])
    kept: list[Point] = []
    out: list[Excluded] = []
    notes: list[str] = []
    for members in ([points[i] for i in rows] for rows in groups):
        tuned = [
            n
            for n in KNOBS
            if len({getattr(p, n) for p in members}) > 1 and None not in {getattr(p, n) for p in members}
        ]
        if not tuned:
            kept += members
            continue
        best = best_setting(members, tuned, lower)
        edges = [edge for name in tuned if (edge := edge_of(members, best, name)) is not None]
        if missed := [edge for edge in edges if edge.tried >= EDGE_GRID]:
            out += [left_out(p, f"best {missed[0].told}; widen the grid") for p in members]
            continue
        is_best = [all(getattr(p, n) == v for n, v in best.items()) for p in members]
        chosen = [p for p, ok in zip(members, is_best, strict=True) if ok]
        mean = float(np.mean([p.loss for p in chosen]))
        kept += chosen
        out += [left_out(p, not_best(p, best, mean)) for p, ok in zip(members, is_best, strict=True) if not ok]
        notes += [f"rung {members[0].rung}: the best {e.told}, so the true best may lie outside" for e in edges]
    return tuple(kept), tuple(out), tuple(notes)


def best_setting(members: list[Point], tuned: list[str], lower: bool) -> dict[str, float]:
    losses: dict[tuple[float, ...], list[float]] = defaultdict(list)
    for p in members:
        losses[tuple(getattr(p, n) for n in tuned)].append(p.loss)
    sign = 1 if lower else -1
    best = min(sorted(losses), key=lambda setting: sign * float(np.mean(losses[setting])))
    return dict(zip(tuned, best, strict=True))


@dataclass(frozen=True, kw_only=True)
class Edge:
    """A best value at the end of those tried beside it."""

    tried: int
    told: str


def edge_of(members: list[Point], best: dict[str, float], name: str) -> Edge | None:
    """Whether the best value of one knob is the smallest or largest that was tried, the others at their best."""
    beside = [p for p in members if all(getattr(p, n) == v for n, v in best.items() if n != name)]
    grid = sorted({getattr(p, name) for p in beside})
    if len(grid) < 2 or best[name] not in (grid[0], grid[-1]):
        return None
    side = "smallest" if best[name] == grid[0] else "largest"
    told = f"{KNOBS[name]} {best[name]:g} is the {side} of its grid ({', '.join(f'{v:g}' for v in grid)})"
    return Edge(tried=len(grid), told=told)


def not_best(p: Point, best: dict[str, float], mean: float) -> str:
    name = next(n for n, v in best.items() if getattr(p, n) != v)
    return f"{KNOBS[name]} {getattr(p, name):g} is not the best of its rung ({best[name]:g}, mean {p.loss_name} {mean:.4f})"


def untuned(points: tuple[Point, ...]) -> tuple[str, ...]:
    """A warning where many runs of one design scatter by more than seeds do: a search over settings, averaged as if it were seeds."""
    groups: dict[tuple[object, ...], list[float]] = defaultdict(list)
    for p in points:
        design = (p.family, p.params_total, p.params_non_embedding, p.tokens, p.unique_tokens, p.flops, p.step)
        groups[design].append(p.loss)
    wide = [v for v in groups.values() if len(v) >= SEARCH_RUNS and min(v) > 0 and float(np.std(np.log(v))) > SEARCH_SD]
    if not wide:
        return ()
    spread = max(max(v) / min(v) for v in wide)
    return (
        f"{len(wide)} design(s) have up to {max(map(len, wide))} runs each whose losses differ by up to {100 * (spread - 1):.0f} %, "
        "more than seeds do: if they are a search over settings, map columns.learning_rate and columns.batch_tokens so that "
        "the best of each design counts, or keep the best runs with where=",
    )
