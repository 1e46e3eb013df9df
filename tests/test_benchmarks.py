"""The benchmark of a GPU's training steps runs, on a CPU and a tiny model; what it prints there means nothing."""

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_gpu_step_runs_on_a_cpu() -> None:
    words = [
        sys.executable,
        str(BENCHMARKS / "gpu_step.py"),
        "--device",
        "cpu",
        "--rungs",
        "tiny",
        "--rounds",
        "1",
        "--json",
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads(done.stdout)["rows"]
    assert [r["name"] for r in rows] == ["tiny against rotary", "tiny against eager"]
    assert all(r["ratio"] > 0 for r in rows)
