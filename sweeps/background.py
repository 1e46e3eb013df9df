"""Launches that go on without this terminal: in the background, on the cluster's job server, or anew after Ray was lost."""

import os
import sys
import time
from collections.abc import Callable, Sequence

from sweeps.backends import LOST_TIMES
from sweeps.settings import Settings

MAX_LOST = 50
BACK_OFF_SECONDS = 60.0


def command(words: Sequence[str]) -> list[str]:
    own = [w for w in words if not w.startswith("detach=")]
    return [sys.executable, "-m", "sweeps.cli", "launch", *own]


def detach(words: Sequence[str], settings: Settings, say: Callable[[str], None]) -> int:
    """Start the launch where it outlives this terminal and say how to follow and stop it; exit code 0."""
    follow = f"gopher status sweep={settings.name} watch=true"
    if settings.cluster.address == "local":
        log = settings.sweep_dir / "launch.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        streams = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        driver = [*command(words), "watch=false"]
        pid = os.posix_spawn(driver[0], driver, os.environ, file_actions=streams, setsid=True)
        where = f"process {pid}, log in {log}"
    else:
        from sweeps.backends.ray_jobs import submit

        job = submit([w for w in words if not w.startswith("detach=")])
        where = f"Ray job {job}"
        follow += f"   or   ray job logs {job} --follow"
    say(
        f"{settings.name} goes on in the background ({where})\nfollow: {follow}\nstop: gopher stop sweep={settings.name}"
    )
    return 0


def start_again(words: Sequence[str]) -> bool:
    """Replace this process by a new launch after Ray was lost, with a growing pause; False once that was tried too often.

    A launch goes on from the run folders whatever happened before, so that a new process needs nothing of the old one.
    """
    times = int(os.environ.get(LOST_TIMES, "0")) + 1
    if times > MAX_LOST:
        return False
    os.environ[LOST_TIMES] = str(times)
    time.sleep(min(BACK_OFF_SECONDS, 2.0**times))
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(sys.executable, command(words))
