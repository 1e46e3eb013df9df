"""Proves: training outlives a disk that fills up, and what was torn or damaged in its folder; it ends with the same numbers."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from studies import disk_of, stop_at
from training import kinds, numbers, run_in

from gopher.errors import GopherError
from gopher.marker import read_marker
from gopher.record import ASKED, FINISHED, PREEMPTED, STOPPED, RunFolder
from gopher.spec import DataSpec
from gopher.train import train


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for two checkpoints of the tiny model and the record."""
    with disk_of("1600k", tmp_path / "disk") as disk:
        yield disk


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    shards: tuple[DataSpec, Path], finished: RunFolder, small_disk: Path, mode: str
) -> None:
    """Training goes on, says so, and keeps the last whole checkpoint; with space again the run ends as if nothing had been."""
    folder = run_in(small_disk / "run", shards, {"checkpoints": mode, "keep_checkpoints": 1})
    train(folder, should_stop=stop_at(4))  # one checkpoint, of step 5
    filler = small_disk / "filler"
    free = shutil.disk_usage(small_disk).free
    filler.write_bytes(b"x" * (free - 60_000))  # leaves the record its kilobytes
    with pytest.raises(GopherError, match="the checkpoint of step 20 could not be written .* free some space"):
        train(folder)
    assert [p.name for p in folder.checkpoints.iterdir()] == ["0000000005"]
    assert [e["kind"] for e in folder.events()] == ["warning", "warning"]  # steps 10 and 15
    filler.unlink()
    assert train(folder).state == FINISHED
    assert numbers(folder) == numbers(finished)


@pytest.mark.filterwarnings("ignore:the checkpoint of step")
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_a_stop_without_room_for_a_checkpoint_says_where_the_run_resumes(
    shards: tuple[DataSpec, Path], finished: RunFolder, small_disk: Path, mode: str
) -> None:
    filler = small_disk / "filler"
    folder = run_in(small_disk / "run", shards, {"checkpoints": mode, "checkpoint_every_steps": 100})
    filler.write_bytes(b"x" * (shutil.disk_usage(small_disk).free - 60_000))
    state = train(folder, should_stop=stop_at(3))
    assert (state.state, state.step, state.reason) == (STOPPED, 0, "asked to stop; the run resumes from step 0")
    filler.unlink()
    assert train(folder).state == FINISHED and numbers(folder) == numbers(finished)


@pytest.mark.filterwarnings("ignore:the checkpoint of step", "ignore:the record in")
def test_a_disk_without_a_byte_left_stops_nothing(
    shards: tuple[DataSpec, Path], finished: RunFolder, small_disk: Path
) -> None:
    """Neither training nor a stop: what the record had no room for is written once there is some."""
    folder, calls, filler = run_in(small_disk / "run", shards), iter(range(1000)), small_disk / "filler"

    def fill_then_stop() -> str | None:
        step = next(calls)
        if step == 6:
            fill(filler)
        return PREEMPTED if step == 9 else None

    state = train(folder, should_stop=fill_then_stop)
    assert (state.state, state.cause, state.step) == (STOPPED, PREEMPTED, 5)  # the step of the checkpoint there is
    filler.unlink()
    calls = iter(range(1000))

    def fill_then_free() -> None:
        step = next(calls)
        if step == 2:
            fill(filler)
        if step == 11:
            filler.unlink()

    assert train(folder, should_stop=fill_then_free).state == FINISHED
    assert numbers(folder) == numbers(finished)
    assert ("warning", 10) in kinds(folder)


def fill(path: Path) -> None:
    """Take every byte there is."""
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.mark.filterwarnings("ignore:.* is damaged")
def test_a_stop_names_no_checkpoint_that_was_passed_over(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run", shards)
    train(folder, should_stop=stop_at(9))
    (folder.checkpoints / "0000000010" / ".metadata").write_bytes(b"")
    (folder.checkpoints / "0000000010").rename(folder.checkpoints / "0000000015")
    shutil.copytree(folder.checkpoints / "0000000005", folder.checkpoints / "0000000005.old")
    state = train(folder, should_stop=stop_at(0))
    assert (state.state, state.step, state.reason) == (STOPPED, 6, "asked to stop; the run resumes from step 6")
    assert sorted(p.name for p in folder.checkpoints.iterdir()) == [
        "0000000005",
        "0000000005.old",
        "0000000006",
        "0000000015",
    ]


@pytest.mark.filterwarnings("ignore:.* is damaged")
@pytest.mark.parametrize("marker", ["{", None])
def test_a_damaged_checkpoint_of_step_0_is_written_again(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path, marker: str | None
) -> None:
    folder = run_in(tmp_path / "run", shards, {"named_checkpoints": "log", "checkpoint_every_steps": 100})
    train(folder, should_stop=stop_at(0))
    shutil.rmtree(folder.checkpoints / "0000000001")
    first = folder.checkpoints / "0000000000" / "complete.json"
    first.write_text(marker) if marker else first.unlink()
    assert train(folder).state == FINISHED and numbers(folder) == numbers(finished)
    assert read_marker(first.parent).named


@pytest.mark.filterwarnings("ignore:.* is damaged")
def test_a_torn_event_and_a_damaged_checkpoint_together(
    shards: tuple[DataSpec, Path], finished: RunFolder, tmp_path: Path
) -> None:
    folder, calls = run_in(tmp_path / "run", shards), iter(range(100))
    train(folder, should_stop=lambda: ASKED if next(calls) == 11 else None)
    (folder.checkpoints / "0000000012" / ".metadata").write_bytes(b"")
    (folder.path / "events.jsonl").write_text('{"kind": "warn')
    assert train(folder).state == FINISHED
    assert [e["kind"] for e in folder.events()] == ["warning"] and numbers(folder) == numbers(finished)
