"""A sweep that everything happens to ends as one that nothing happened to: no step lost, none counted twice, equal losses.

The short form is part of the default suite; `make chaos` runs the long one (SEED=, FAULTS=) and prints its table.
"""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from storm import ACTS, PLANTED, STRUCK, Audit, Fault, Storm, audit, draw_faults, launch_words, plant, struck, table_of
from studies import write_text

TOKENS_PER_STEP = 1024


def calm_sweep(text: Path, root: Path, more: list[str]) -> list[str]:
    """Run the sweep undisturbed; the keys of its runs."""
    words = launch_words("launch", text, root, more)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return sorted(p.name for p in (root / "runs").iterdir())


def weather(tmp_path: Path, rungs: str, steps: int, seed: int, faults: list[Fault], planted: Sequence[str]) -> Audit:
    """A calm sweep, then the same one in a storm; the audit, printed as a table and written to CHAOS_JSON."""
    text = write_text(tmp_path / "text")
    more = [f"rungs=[{rungs}]", f"tokens={steps * TOKENS_PER_STEP}"]
    keys = calm_sweep(text, tmp_path / "calm", more)
    plant(tmp_path / "storm", keys, seed, planted, steps)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    storm = Storm(text=text, root=tmp_path / "storm", port=port, more=more, draw=random.Random(seed + 2))
    with storm.running():
        for fault in faults:
            if not storm.strike(fault):
                break
        while not storm.ended():
            assert storm.launches < 3 * len(faults) + 10, (storm.root / "driver.log").read_text()[-3000:]
            storm.driver().wait(timeout=300)
        result = audit(tmp_path / "calm", storm, storm.done + struck(storm.root))
    Console(file=sys.__stdout__).print(table_of(result, seed))
    if place := os.environ.get("CHAOS_JSON"):
        Path(place).write_text(json.dumps({"seed": seed, **asdict(result)}, indent=2) + "\n", "utf-8")
    return result


def test_a_storm_is_the_same_for_the_same_seed_and_has_every_kind() -> None:
    assert draw_faults(7, 30) == draw_faults(7, 30) != draw_faults(8, 30)
    assert {f.kind for f in draw_faults(1, len(STRUCK))} == set(STRUCK) == set(ACTS)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_short_storm(tmp_path: Path) -> None:
    kinds = ("MLflow blocked", "driver killed", "checkpoint damaged", "second launch")
    faults = [Fault(kind=kind, after_steps=4) for kind in kinds]
    result = weather(tmp_path, "54k", steps=160, seed=3, faults=faults, planted=("nan", "nan"))
    assert sum(result.faults.values()) == 6, result
    assert result.clean, result


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_long_storm(tmp_path: Path) -> None:
    seed, count = int(os.environ.get("SEED", "1")), int(os.environ.get("FAULTS", "24"))
    result = weather(
        tmp_path,
        "54k,84k",
        steps=max(200, 25 * count),
        seed=seed,
        faults=draw_faults(seed, count),
        planted=PLANTED,
    )
    assert sum(result.faults.values()) == count + 8, result
    assert result.clean, result
