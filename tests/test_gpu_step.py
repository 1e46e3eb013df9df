"""The benchmark of a GPU's training steps runs, on a CPU and tiny models; what it prints there means nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

GPU_STEP = Path(__file__).parents[1] / "benchmarks" / "gpu_step.py"


def measured(*words: str, timeout_s: int = 300) -> tuple[dict[str, dict[str, Any]], str]:
    """(rows by name, what was printed on the way), from another folder than the repository."""
    command = [sys.executable, str(GPU_STEP), "--rounds", "1", "--json", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, cwd="/")
    assert done.returncode == 0, done.stderr[-2000:]
    return {r["name"]: r for r in json.loads(done.stdout)["rows"]}, done.stderr


def test_gpu_step_runs_on_a_cpu() -> None:
    rows, said = measured("--device", "cpu", "--rungs", "tiny")
    assert list(rows) == ["tiny against rotary", "tiny against eager"]
    assert all(r["ratio"] > 0 and r["seconds"] > 0 and r["tokens_per_s"] > 0 for r in rows.values())
    assert all(name in said for name in rows)  # the table is printed as it grows


def test_what_is_not_measured_is_named_with_its_reason() -> None:
    rows, _ = measured("--device", "cpu", "--rungs", "tiny,44m", "--limit-s", "0.5")
    assert list(rows) == ["tiny against rotary", "44m against rotary"]
    assert all(r["ratio"] is None and r["reason"] == "not measured: no time left of 0.5 s" for r in rows.values())


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_precision_compiled_in_one_process() -> None:
    """No variant runs uncompiled because another shape came first: that would be an error."""
    words = ["--device", "cpu", "--compile", "--here", "--rungs", "tiny,tiny-mixed,tiny-rounded"]
    rows, _ = measured(*words, timeout_s=1700)
    names = [f"{rung} against {other}" for rung in ("tiny", "tiny-mixed") for other in ("rotary", "eager")]
    assert list(rows) == [*names, "tiny-rounded against rotary"]
    assert all(r["ratio"] > 0 for r in rows.values())


@pytest.mark.parametrize("rung", ["tiny-mixed", "tiny-rounded"])
def test_mixed_and_rounded_variants_run(rung: str) -> None:
    rows, _ = measured("--device", "cpu", "--here", "--rungs", rung, "--micro-batches", "3")
    found = rows[f"{rung} against rotary"]
    assert found["ratio"] > 0 and found["sequences"] == 3 * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_every_precision_on_a_device() -> None:
    rows, said = measured("--rungs", "tiny,tiny-mixed,tiny-rounded", timeout_s=290)
    assert all(r["ratio"] is not None and r["ratio"] > 0 for r in rows.values()), said
    assert "triton attention" in said
