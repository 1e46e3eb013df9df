"""Launches that go on without this terminal: in the background, on the cluster's job server, or anew after Ray was lost."""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gopher.errors import SetupError, UsageError
from sweeps import lease
from sweeps.backends import LOST_TIMES
from sweeps.backends.ray_jobs import SubmittedJob, submit
from sweeps.launched import ADDRESS, ADDRESS_WORD, command_line, key_of
from sweeps.redact import hide_secrets
from sweeps.settings import Settings

MAX_LOST = 50
BACK_OFF_SECONDS = 60.0
BEGIN_SECONDS = 120.0  # how long a detached launch may take until it drives, before its start is no longer waited for
LINES_SHOWN = 5  # of the log of a launch that has ended at once


def own_words(words: Sequence[str]) -> list[str]:
    """The words of the driver itself, which does not detach again."""
    return [*(w for w in words if key_of(w) != "detach"), "detach=false"]


def command(words: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "sweeps.cli", "launch", *own_words(words)]


def without_password(words: Sequence[str], settings: Settings) -> tuple[list[str], dict[str, str]]:
    """The words and what the environment must have: a command line is seen by every user of the machine."""
    uri = settings.tracking.uri
    if uri is None or hide_secrets(uri) == uri:
        return list(words), {}
    others = [w for w in words if key_of(w) != "tracking.uri"]
    return [*others, ADDRESS_WORD], {ADDRESS: uri}


@dataclass(frozen=True, kw_only=True)
class Spawned:
    """A driver in a session of its own on this machine; its output is what `log` holds behind the first `before` bytes."""

    pid: int
    log: Path
    before: int

    def exit_code(self) -> int | None:
        ended, status = os.waitpid(self.pid, os.WNOHANG)
        if not ended:
            return None
        return max(1, code) if (code := os.waitstatus_to_exitcode(status)) else 0

    def output(self) -> str:
        return self.log.read_bytes()[self.before :].decode("utf-8", "replace")


def detach(words: Sequence[str], settings: Settings, say: Callable[[str], None]) -> int:
    """Start the launch where it outlives this terminal and say how to follow and stop it; exit code 0.

    One that ends before it drives anything is told with its own last words and its exit code.
    """
    if (found := lease.read(settings.sweep_dir)) is not None and found.live:
        raise SetupError(f"sweep '{settings.name}' is being launched by {found}; wait for it or stop it")
    follow = command_line("status", words, "watch=true")
    started: Spawned | SubmittedJob
    if settings.cluster.address == "local":
        started = spawn(words, settings, settings.sweep_dir / "launch.log")
        where = f"process {started.pid}, log in {started.log}"
    else:
        started = submit_job(words, settings)
        where = f"Ray job {started.name}"
        follow += f"   or   ray job logs {started.name} --follow --address {started.server}"
    code = code_if_ended(started, settings)
    if code is not None:
        say(hide_secrets("\n".join(started.output().splitlines()[-LINES_SHOWN:])))
        if settings.format == "json":
            print(json.dumps({"sweep": settings.name, "detached": None, "exit_code": code}))
        return code
    stop = command_line("stop", words)
    say(hide_secrets(f"{settings.name} goes on in the background ({where})\nfollow: {follow}\nstop: {stop}"))
    if settings.format == "json":
        print(json.dumps({"sweep": settings.name, "detached": where}))
    return 0


def spawn(words: Sequence[str], settings: Settings, log: Path) -> Spawned:
    """Start a driver that writes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    before = log.stat().st_size if log.exists() else 0
    streams = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    own, address = without_password(words, settings)
    driver = [*command(own), "watch=false"]
    pid = os.posix_spawn(driver[0], driver, {**os.environ, **address}, file_actions=streams, setsid=True)
    return Spawned(pid=pid, log=log, before=before)


def code_if_ended(started: Spawned | SubmittedJob, settings: Settings) -> int | None:
    """The exit code of a driver that ends before it drives; None once it does, which its lease tells, or takes long."""
    deadline = time.monotonic() + BEGIN_SECONDS
    while time.monotonic() < deadline:
        code = started.exit_code()
        if code is not None:
            return code
        found = lease.read(settings.sweep_dir)
        ours = found is not None and (not isinstance(started, Spawned) or found.holder.pid == started.pid)
        if found is not None and ours and found.live and found.holder.cluster:
            return None
        time.sleep(0.2)
    return None


def submit_job(words: Sequence[str], settings: Settings) -> SubmittedJob:
    """The job that drives the sweep; the output root is the same folder there, whatever folder it starts in."""
    if any(key_of(w) == "tracking.uri" and hide_secrets(w) != w for w in words):
        raise UsageError(
            "tracking.uri holds a password, which a Ray job shows to everybody who sees the cluster; "
            "export it as MLFLOW_URI where Ray's head is started and write 'tracking.uri=${oc.env:MLFLOW_URI}'"
        )
    return submit(job_words(words, settings), settings.cluster.address)


def job_words(words: Sequence[str], settings: Settings) -> list[str]:
    """The driver's own words, with the output root as an absolute path."""
    # a quoted value of Hydra's: backslashes are themselves but before a quotation mark
    root = re.sub(r'(\\+)(?="|$)', r"\1\1", str(settings.root)).replace('"', '\\"')
    return [*(w for w in own_words(words) if key_of(w) != "output_root"), f'output_root="{root}"']


def times_lost() -> int:
    """How often this launch has lost Ray, with the loss that is at hand."""
    return int(os.environ.get(LOST_TIMES, "0")) + 1


def back_off(stopped: Callable[[], bool]) -> None:
    """The pause before a new launch after Ray was lost: longer each time, over at once when `stopped()`."""
    deadline = time.monotonic() + min(BACK_OFF_SECONDS, 2.0 ** times_lost())
    while time.monotonic() < deadline and not stopped():
        time.sleep(0.5)


def start_again(words: Sequence[str], settings: Settings) -> bool:
    """Replace this process by a new launch after Ray was lost; False once that was tried too often.

    A launch goes on from the run folders whatever happened before, so that a new process needs nothing of the old one.
    """
    times = times_lost()
    if times > MAX_LOST:
        return False
    own, address = without_password(words, settings)
    os.environ.update({LOST_TIMES: str(times), **address})
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command(own))
