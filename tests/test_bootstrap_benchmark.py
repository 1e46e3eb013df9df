"""The bootstrap's benchmark runs, and its published procedure descends the published objective."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_bootstrap_benchmark_prints_its_rows() -> None:
    words = [
        sys.executable,
        str(BENCHMARKS / "bootstrap.py"),
        "--resamples",
        "40",
        "--sample",
        "2",
        "--starts",
        "1",
        "--json",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["rows"]
    assert {"name", "baseline", "ratio", "goal"} <= set(rows[0]) and len(rows) == 4
    assert all(r["ours_worse_share"] == 0 for r in rows if "ours_worse_share" in r)


def test_the_published_procedure_has_the_gradient_of_its_objective() -> None:
    bench = runpy.run_path(str(BENCHMARKS / "bootstrap.py"))
    rng = np.random.default_rng(0)
    n, d, loss = 10 ** rng.uniform(7, 10, 30), 10 ** rng.uniform(9, 11, 30), rng.uniform(2, 4, 30)
    steps = np.eye(5) * 1e-6
    value = [
        (
            bench["published_value"](bench["HOFFMANN"] + h, n, d, loss)
            - bench["published_value"](bench["HOFFMANN"] - h, n, d, loss)
        )
        / 2e-6
        for h in steps
    ]
    np.testing.assert_allclose(bench["published_slope"](bench["HOFFMANN"], n, d, loss), value, rtol=1e-4, atol=1e-6)
