"""The sign of life of a task that logs no steps (text, evaluations): a count that grows only while its process works.

It works in a stretch of time in which it has computed or moved bytes. A download or a file system that stalls, a
deadlock and a stopped process do neither; what spins in a loop is not told from work.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from gopher.record import write_atomic

BEAT_SECONDS = 5.0
BUSY = 0.1  # cores in use: an idle Ray worker stays far below
MOVED_BYTES = 2**16  # read or written per beat


@contextlib.contextmanager
def beating(path: Path) -> Iterator[None]:
    """Keep the count in `path` while inside."""
    end = threading.Event()
    thread = threading.Thread(target=beat, args=(path, end), daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def beat(path: Path, end: threading.Event) -> None:
    count, before, moved = 0, used(), bytes_moved()
    while True:
        with contextlib.suppress(OSError):  # a full disk is no reason to stop working
            write_atomic(path, f"{count}\n")
        began = time.monotonic()
        if end.wait(BEAT_SECONDS):
            return
        busy = (used() - before) / (time.monotonic() - began)
        count += busy > BUSY or bytes_moved() - moved > MOVED_BYTES
        before, moved = used(), bytes_moved()


def read(path: Path) -> str | None:
    """The count as last written, or None before the first."""
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        return None


def used() -> float:
    """CPU seconds of this process."""
    return sum(os.times()[:2])


def bytes_moved() -> int:
    """Bytes that this process has read and written through files and pipes; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text("utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines[:2])  # rchar, wchar
