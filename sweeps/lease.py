"""The lease on a sweep: one driver at a time, across hosts that share the output root, with a heartbeat.

A file created exclusively, so that it needs no lock service: kernel locks do not reach across every network file
system. It is never written again: a heartbeat sets the time of the holder's own open file, so that a driver that slept
cannot touch its successor's, and a full disk takes nobody's lease. Age is told by the file system's own clock, which all
hosts share. A holder that is dead, or has not been heard of for `STALE_SECONDS`, loses the lease to the next launch.
What a driver uses of the cluster stands beside it, in use.<id>.json.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from gopher.errors import SetupError, UsageError
from gopher.record import write_atomic
from gopher.spec_json import build

BEAT_SECONDS = 5.0
STALE_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a sweep, what its driver uses on the cluster, and since when it waits for more."""

    id: str
    host: str
    pid: int
    since: float  # unix seconds, the holder's clock
    cluster: str = ""
    cpus: int = 0
    gpus: int = 0
    head_since: float | None = None  # since when its first waiting task has waited for room; None: nothing waits


@dataclass(frozen=True, kw_only=True)
class Found:
    """A lease on disk and the seconds since its last heartbeat."""

    holder: Holder
    age_seconds: float

    @property
    def live(self) -> bool:
        """Heard of lately, and alive as far as this host can see."""
        return self.age_seconds < STALE_SECONDS and (self.holder.host != socket.gethostname() or alive(self.holder.pid))

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.holder.since))
        return f"process {self.holder.pid} on {self.holder.host} since {since}, last heard {self.age_seconds:.0f} s ago"


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def read(folder: Path) -> Found | None:
    """The lease of a sweep's folder, or None."""
    path = folder / "lease.json"
    try:
        written, holder = path.stat().st_mtime, holder_in(path)
        use, age = use_file(folder, holder.id), max(0.0, file_system_now(folder) - written)
        told = holder_in(use) if use.exists() else holder
        return Found(holder=told if told.id == holder.id else holder, age_seconds=age)  # one that is torn tells nothing
    except FileNotFoundError:
        return None


def use_file(folder: Path, holder_id: str) -> Path:
    """Where a driver tells what it uses: the same holder, with its numbers."""
    return folder / f"use.{holder_id}.json"


def holder_in(path: Path) -> Holder:
    """The holder that a lease names, without what another version wrote beside it; one that cannot be read (a power cut) has
    nobody's name and an age."""
    try:
        written = json.loads(path.read_text("utf-8"))
        return build(Holder, {f.name: written[f.name] for f in fields(Holder) if f.name in written}, "lease.json")
    except (ValueError, TypeError, UsageError):
        return Holder(id="", host=f"an unknown host ({path} cannot be read)", pid=0, since=path.stat().st_mtime)


def file_system_now(folder: Path) -> float:
    """The time that a file written in `folder` now would carry."""
    probe = folder / f".now.{uuid.uuid4().hex}"
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


class Lease:
    """A held lease. `tell` says what the driver uses; a thread keeps the heartbeat; `lost` is set if it was taken over, or
    may have been: after `STALE_SECONDS` in which no heartbeat could be written."""

    def __init__(self, folder: Path, holder: Holder) -> None:
        self.folder, self.holder, self.lost = folder, holder, False
        self._file = open(folder / "lease.json", "rb")  # noqa: SIM115 - closed by `release`
        self._told, self._heard = holder, time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            self._hold()

    def _hold(self) -> None:
        """One heartbeat; what the disk refuses is tried again with the next one."""
        try:
            if holder_in(self.folder / "lease.json").id != self.holder.id:
                self.lost = True
            os.utime(self._file.fileno())
            self._heard = time.monotonic()
        except OSError:
            self.lost = self.lost or time.monotonic() - self._heard > STALE_SECONDS

    def tell(self, **use: int | float | str | None) -> None:
        """What other drivers on the same cluster should know, written at once if it changed; a write that fails is tried again
        by the next call."""
        self.holder = replace(self.holder, **use)  # type: ignore[arg-type]
        if self.holder != self._told:
            self._hold()
            with contextlib.suppress(OSError):
                write_atomic(use_file(self.folder, self.holder.id), json.dumps(asdict(self.holder)) + "\n")
                self._told = self.holder

    def release(self) -> None:
        self._end.set()
        self._thread.join()
        with contextlib.suppress(OSError):  # what stays names a process that is dead
            use_file(self.folder, self.holder.id).unlink(missing_ok=True)
            if holder_in(self.folder / "lease.json").id == self.holder.id:
                remove_stale(self.folder, self.holder.id)
        self._file.close()


@contextmanager
def held(folder: Path, name: str) -> Iterator[Lease]:
    """Hold the sweep. Raises `SetupError` naming a live holder; a stale lease is taken over."""
    folder.mkdir(parents=True, exist_ok=True)
    mine = Holder(id=uuid.uuid4().hex, host=socket.gethostname(), pid=os.getpid(), since=time.time())
    while not create(folder, mine):
        found = read(folder)
        if found is not None and found.live:
            raise SetupError(
                f"sweep '{name}' is being launched by {found}; wait for it, stop it with `gopher stop` or watch it with "
                "`gopher status watch=true`, both with the words of this command"
            )
        if found is not None:
            remove_stale(folder, found.holder.id)
    lease = Lease(folder, mine)
    try:
        yield lease
    finally:
        lease.release()


def create(folder: Path, holder: Holder) -> bool:
    """Put a whole lease in place if there is none: a link fails where the name exists, on network file systems too."""
    part = folder / f".lease.{holder.id}"
    with open(part, "w", encoding="utf-8") as file:
        file.write(json.dumps(asdict(holder)) + "\n")
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave a lease that says nothing
    try:
        os.link(part, folder / "lease.json")
    except FileExistsError:
        return False
    finally:
        part.unlink()
    return True


def remove_stale(folder: Path, stale_id: str) -> None:
    """Take a stale lease away. Of two launches that try, one may catch the other's fresh lease, and puts it back; so does a
    holder that releases its own too late."""
    aside = folder / f".stale.{uuid.uuid4().hex}"
    try:
        os.rename(folder / "lease.json", aside)
    except FileNotFoundError:
        return
    if holder_in(aside).id != stale_id:
        with contextlib.suppress(FileExistsError):  # a third launch got in: the one whose lease this is will notice
            os.link(aside, folder / "lease.json")
    else:
        use_file(folder, stale_id).unlink(missing_ok=True)
    aside.unlink()
