"""What a sweep costs before anything trains: composing, hashing and deduplicating 10^4 runs; `gopher status` of 1,000.

Each figure is taken in a fresh process, so that imports and the start of Python count and the peak memory is its own.

    python benchmarks/compose.py            a table
    python benchmarks/compose.py --json     rows of name, baseline (the limit), ratio (measured / limit), goal
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from show import show

from gopher.record import RunState
from gopher.spec_json import to_json
from sweeps import launched
from sweeps.provenance import versions
from sweeps.settings import Settings
from sweeps.study import study_of

RUNS, SECONDS_LIMIT, BYTES_LIMIT = 10_000, 20.0, 2**30
STATUS_RUNS, STATUS_SECONDS_LIMIT = 1_000, 2.0
COMPOSE = """
import resource, sys
from sweeps.study import study_of
print(len({run.spec.key for run in study_of(sys.argv[1:]).runs}), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def overrides(runs: int, root: str) -> list[str]:
    """A sweep of `runs` runs, a multiple of 50: five rungs x ten learning rates x seeds, every fourth seed named twice."""
    seeds = [*range(runs // 50), *range(0, runs // 50, 4)]
    rates = [f"{0.001 * (i + 1):.3f}" for i in range(10)]
    axes = [f"axes.seed=[{','.join(map(str, seeds))}]", f"axes.optim.lr=[{','.join(rates)}]"]
    return ["sweep=demo", *axes, "extra_seeds={54k: [], 84k: []}", f"output_root={root}"]


def timed(words: list[str]) -> tuple[float, str]:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def composing(root: str) -> list[dict[str, object]]:
    seconds, said = timed(["-c", COMPOSE, *overrides(RUNS, root)])
    runs, peak = (int(word) for word in said.split())
    assert runs == RUNS, f"{runs} distinct runs instead of {RUNS}"
    return [
        row(f"seconds to compose {RUNS:,} runs", seconds, SECONDS_LIMIT),
        row(f"peak memory with {RUNS:,} runs, GB", peak / 2**30, BYTES_LIMIT / 2**30),
    ]


def standing(root: str) -> dict[str, object]:
    """`gopher status` as people call it, over what a launch leaves: its record, and folders with a spec and a state."""
    words = overrides(STATUS_RUNS, root)
    study = study_of(words)
    launched.keep(study, words, Settings(output_root=root, name=study.name))
    for run in study.runs:
        folder = Path(root) / "runs" / run.spec.key
        folder.mkdir(parents=True)
        (folder / "spec.json").write_text(to_json(run.spec))
        (folder / "state.json").write_text(
            json.dumps(vars(RunState(state="finished", step=run.spec.steps, val_loss=4.0)))
        )
    seconds = min(timed(["-m", "sweeps.cli", "status", *words])[0] for _ in range(3))
    return row(f"seconds of gopher status over {STATUS_RUNS:,} runs, best of 3", seconds, STATUS_SECONDS_LIMIT)


def row(name: str, measured: float, limit: float) -> dict[str, object]:
    ratio = measured / limit
    return {"name": name, "measured": measured, "baseline": limit, "ratio": ratio, "goal": "< 1", "met": ratio < 1}


def main() -> None:
    with tempfile.TemporaryDirectory() as root:
        rows = [*composing(root), standing(root)]
    show(rows, "before anything trains", versions())


if __name__ == "__main__":
    main()
