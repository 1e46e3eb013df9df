"""Orchestration overhead of a sweep: wall time of `gopher launch` against the training time that the cores cannot avoid.

The limit is the shortest time in which runs of these lengths, which are not divisible, fit on the cores: no scheduler
can finish earlier. Beyond a dozen runs it is the larger of (training seconds of all runs / cores) and (the longest run).
Training seconds are what each run's own clock counted inside training, evaluation and checkpoints.

    python benchmarks/overhead.py                      the demo sweep, several minutes
    python benchmarks/overhead.py tokens=100000        any overrides of `gopher launch`
    python benchmarks/overhead.py --json
"""

import sys
import tempfile
import time
from pathlib import Path

from show import show

from gopher.record import RunFolder
from sweeps.backends.ray import usable_cpus
from sweeps.compose import compose, hydra_session
from sweeps.provenance import versions
from sweeps.study import load_study
from sweeps.verbs import launch

GOAL = "<= 10 % + 20 s"
EXACT_RUNS = 12


def packed(seconds: list[float], seats: int) -> float:
    """The shortest time in which tasks of these lengths end on so many seats: exact up to `EXACT_RUNS`, else a lower bound."""
    if len(seconds) > EXACT_RUNS:
        return max(sum(seconds) / seats, max(seconds))
    ends = {(0.0,) * seats}
    for length in seconds:
        ends = {tuple(sorted((*e[:i], e[i] + length, *e[i + 1 :]))) for e in ends for i in range(seats)}
    return min(e[-1] for e in ends)


def measure(overrides: list[str]) -> dict[str, object]:
    """Seconds of one launch into an empty folder: wall, training per run, and the packing limit."""
    with tempfile.TemporaryDirectory() as root, hydra_session():
        words = [*overrides, f"output_root={root}"]
        began = time.perf_counter()
        code = launch.run(compose, words)
        wall = time.perf_counter() - began
        if code != 0:
            raise SystemExit(code)
        runs = load_study(compose, words).runs
        states = [RunFolder(Path(root) / "runs" / r.spec.key).state() for r in runs]
    seconds = [s.train_seconds for s in states if s is not None]
    cores = usable_cpus()
    limit = packed(seconds, cores)
    row = {"name": "launch wall time / packing limit", "baseline": f"{cores} cores, {len(seconds)} runs: {limit:.1f} s"}
    row |= {"ratio": wall / limit, "goal": GOAL, "wall_seconds": wall, "limit_seconds": limit}
    return row | {"overhead_seconds": wall - limit, "met": wall <= 1.1 * limit + 20}


def main() -> None:
    overrides = [w for w in sys.argv[1:] if w != "--json"] or ["sweep=demo"]
    show([measure(overrides)], f"orchestration overhead of {' '.join(overrides)}", versions())


if __name__ == "__main__":
    main()
