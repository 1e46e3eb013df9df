"""Runs of the tiny model for tests of the loop, and what they left."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from studies import demo_spec

from gopher.optim import Adam
from gopher.record import RunFolder
from gopher.spec import DataSpec, Placement

TIMING = ("perf/", "final/train_seconds", "final/worker_hours")


def run_in(path: Path, shards: tuple[DataSpec, Path], placement: dict | None = None, **changes: object) -> RunFolder:
    """A run folder for 20 steps of the tiny model."""
    spec = dataclasses.replace(demo_spec(), data=shards[0], **changes)  # type: ignore[arg-type]
    how = {"micro_batch_sequences": 4, "checkpoint_every_steps": 5, "log_every_steps": 1, **(placement or {})}
    folder = RunFolder(path)
    folder.create(spec, Placement(data_dir=str(shards[1]), **how), {})
    return folder


def numbers(folder: RunFolder) -> dict[str, dict[int, float | None]]:
    """Everything logged that does not depend on the clock."""
    return {name: series for name, series in folder.metrics().items() if not name.startswith(TIMING)}


def drill(folder: RunFolder, *faults: dict) -> RunFolder:
    (folder.path / "drill.json").write_text(json.dumps(faults))
    return folder


def spoil_after(spoiled: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One parameter is nan after the update of that step, once: the losses up to it are numbers."""
    update, left = Adam.step, iter([True])

    def spoil(self: Adam, step: int, rate: float, scale: torch.Tensor) -> None:
        update(self, step, rate, scale)
        if step == spoiled and next(left, False):
            self.parts[0].local.view(-1)[0] = math.nan

    monkeypatch.setattr(Adam, "step", spoil)


def kinds(folder: RunFolder) -> list[tuple[str, int | None]]:
    return [(e["kind"], e["step"]) for e in folder.events()]


def contents(folder: RunFolder, step: int) -> list[dict]:
    marker = json.loads((folder.checkpoints / f"{step:010d}" / "complete.json").read_text())
    return [mark for name, mark in sorted(marker["files"].items()) if name.endswith(".distcp")]
