"""A sweep that everything happens to ends as one that nothing happened to: no step lost, none counted twice, equal losses.

The short form is part of the default suite; `make chaos` runs the long one (SEED=, FAULTS=) and prints its table.
"""

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
from rich.console import Console
from storm import (
    ACTS,
    CALM_STEPS,
    PLANTED,
    SHORT,
    STRUCK,
    WORKERS,
    Audit,
    Fault,
    Storm,
    audit,
    draw_faults,
    folder_rows,
    launch_words,
    plant,
    spiked,
    struck,
    table_of,
)
from studies import write_text

from gopher.data import prepare
from gopher.record import RunFolder
from gopher.stability import SPIKE_STEPS
from gopher.train import train
from sweeps.study import study_of

TOKENS_PER_STEP = 1024


Calm = Callable[[Path, Path, list[str]], None]  # runs the sweep of (text, root, words) undisturbed


def calm_launch(text: Path, root: Path, more: list[str]) -> None:
    words = launch_words("launch", text, root, more)
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def calm_here(text: Path, root: Path, more: list[str]) -> None:
    """By the training function alone, in this process: neither Ray nor MLflow may change a number."""
    for run in study_of(launch_words("launch", text, root, more)[4:]).runs:
        folder = RunFolder(root / "runs" / run.spec.key)
        folder.create(run.spec, run.placement, {})
        prepare(run.spec.data, run.spec.tokenizer, root)
        train(folder)


def weather(
    tmp_path: Path,
    more: list[str],
    calm: Calm,
    steps: int,
    seed: int,
    faults: list[Fault],
    planted: Sequence[str],
    workers: int,
) -> Audit:
    """A calm sweep, then the same one in a storm; the audit, printed as a table and written to CHAOS_JSON."""
    text = write_text(tmp_path / "text")
    more = [*more, f"tokens={steps * TOKENS_PER_STEP}", f"placement.workers={workers}", f"cluster.cpus={workers}"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    root, draw = tmp_path / "storm", random.Random(seed + 2)
    storm = Storm(text=text, root=root, port=port, more=more, draw=draw, workers_per_run=workers)
    with storm.running():
        calm(text, tmp_path / "calm", more)
        plant(storm.root, sorted(p.name for p in (tmp_path / "calm" / "runs").iterdir()), seed, planted, steps)
        storm.wait_for_server()
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
    assert {f.kind for f in draw_faults(5, len(SHORT), SHORT)} == set(SHORT) < set(STRUCK)


def test_planted_faults_do_not_overlap_and_a_spike_comes_when_it_can_be_seen(tmp_path: Path) -> None:
    for seed in range(50):
        plant(tmp_path, ["a"], seed, PLANTED, CALM_STEPS + 50)
        faults = json.loads((tmp_path / "runs" / "a" / "drill.json").read_text("utf-8"))
        steps = [f["step"] + i for f in faults for i in range(f["steps"])]
        assert len(steps) == len(set(steps)) == len(PLANTED) - 1 + SPIKE_STEPS and max(steps) < CALM_STEPS + 49
        assert min(s for _, s in spiked(tmp_path)) > CALM_STEPS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_spike_that_does_not_come_again_changes_no_number(tmp_path: Path) -> None:
    """Its own rows are written twice, the right ones last; the run before it and behind it is as if nothing had been."""
    steps = CALM_STEPS + 50
    text, more = (
        write_text(tmp_path / "text"),
        ["rungs=[54k]", f"tokens={steps * TOKENS_PER_STEP}", "placement.workers=1"],
    )
    calm_here(text, tmp_path / "calm", more)
    want, root = folder_rows(tmp_path / "calm"), tmp_path / "storm"
    plant(root, [p.name for p in (tmp_path / "calm" / "runs").iterdir()], 1, ("spike",), steps)
    calm_here(text, root, more)
    have = folder_rows(root)
    assert struck(root) == {"spike": 1} and have.keys() == want.keys()
    assert all(have[at][-1] == values[-1] for at, values in want.items())
    twice = {(key, step) for (key, _, step), values in have.items() if len(set(values)) > 1}
    assert twice and twice <= spiked(root)


@pytest.mark.ray
@pytest.mark.timeout(1200)
def test_short_storm(tmp_path: Path) -> None:
    """Two tiny runs, six faults of five kinds, a real MLflow server, about a minute."""
    seed = int(os.environ.get("SEED", "1"))
    faults = draw_faults(seed, len(SHORT), SHORT)
    words = ["rungs=[54k]", "axes.seed=[0,1]"]
    result = weather(tmp_path, words, calm_here, steps=100, seed=seed, faults=faults, planted=("nan",), workers=1)
    assert sum(result.faults.values()) == len(SHORT) + 2, result
    assert result.clean, result


@pytest.mark.chaos
@pytest.mark.ray
@pytest.mark.timeout(3600)
def test_long_storm(tmp_path: Path) -> None:
    seed, count = int(os.environ.get("SEED", "1")), int(os.environ.get("FAULTS", "24"))
    result = weather(
        tmp_path,
        ["rungs=[54k,84k]"],
        calm_launch,
        steps=max(CALM_STEPS + 50, 25 * count),
        seed=seed,
        faults=draw_faults(seed, count),
        planted=PLANTED,
        workers=WORKERS,
    )
    assert sum(result.faults.values()) == count + 2 * len(PLANTED), result
    assert result.clean, result
