"""A detached launch outlives its terminal and says how to follow and stop it; a job server that isn't there is one sentence;
a launch whose Ray was lost begins anew with the same words."""

import subprocess
import sys
import time
from pathlib import Path

from sweeps.backends import LOST_TIMES
from sweeps.background import MAX_LOST, command, detach
from sweeps.settings import Settings


def test_the_words_of_a_launch_are_kept_but_for_detach() -> None:
    words = command(["sweep=demo", "detach=true", "axes.seed=[1,2]"])
    assert words == [sys.executable, "-m", "sweeps.cli", "launch", "sweep=demo", "axes.seed=[1,2]"]


def test_a_detached_launch_runs_in_a_session_of_its_own_and_writes_a_log(tmp_path: Path) -> None:
    said: list[str] = []
    settings = Settings(output_root=str(tmp_path), name="demo")
    assert detach(["sweep=nowhere"], settings, said.append) == 0  # the driver itself fails: its sentence is in the log
    assert "follow: gopher status sweep=demo watch=true" in said[0] and "stop: gopher stop sweep=demo" in said[0]
    log, deadline = tmp_path / "sweeps" / "demo" / "launch.log", time.monotonic() + 20
    while "nowhere" not in log.read_text() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "nowhere" in log.read_text()


def test_a_missing_job_server_is_told_with_the_cure(tmp_path: Path) -> None:
    code = (
        "from sweeps.backends.ray_jobs import submit\nfrom gopher.errors import SetupError\n"
        "try: submit(['sweep=demo'])\nexcept SetupError as error: print(error)"
    )
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "no Ray job server answers at http://127.0.0.1:1" in done.stdout and "ray[default]" in done.stdout, (
        done.stderr
    )


def test_a_lost_ray_is_waited_for_a_bounded_number_of_times() -> None:
    code = "from sweeps.background import start_again; print(start_again(['sweep=demo']))"
    environment = {"PATH": "/usr/bin:/bin", LOST_TIMES: str(MAX_LOST)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "False\n"
