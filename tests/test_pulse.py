"""A task's sign of life: the count grows while its process computes or moves bytes, and stands still while it waits."""

import threading
import time
from pathlib import Path

import pytest

from sweeps import pulse


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.2)
    return tmp_path / "pulse" / "data-x"


def after(path: Path, seconds: float) -> int:
    time.sleep(seconds)
    return int(pulse.read(path) or 0)


def test_waiting_is_no_work(count: Path) -> None:
    assert pulse.read(count) is None
    with pulse.beating(count):
        first = after(count, 0.5)
        assert after(count, 1.0) == first
    assert not count.exists()


def test_computing_is_work(count: Path) -> None:
    with pulse.beating(count):
        end = time.monotonic() + 5
        while time.monotonic() < end and not int(pulse.read(count) or 0):
            sum(range(10_000))
        assert int(pulse.read(count) or 0) > 0


def test_moving_bytes_is_work(count: Path, tmp_path: Path) -> None:
    done = threading.Event()

    def copy() -> None:
        while not done.wait(0.01):
            (tmp_path / "copy").write_bytes(b"x" * 2**16)

    thread = threading.Thread(target=copy)
    with pulse.beating(count):
        thread.start()
        grown = after(count, 1.5)
        done.set()
        thread.join()
    assert grown > 0
