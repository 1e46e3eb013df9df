"""A detached launch on a cluster is a job of its Ray, shown on a real head with job server and token: it trains to the end,
with paths of the caller's folder and no secret in its words; it holds its sweep and is stopped; one that fails at once says so."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from studies import TINY, write_text

from gopher.record import FINISHED, STOPPED, RunFolder

SERVER_NEEDS = ("aiohttp_cors", "grpc", "opencensus", "prometheus_client")  # of what `ray[default]` adds to `ray`
absent = any(importlib.util.find_spec(name) is None for name in SERVER_NEEDS)
pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(absent, reason="Ray's job server needs ray[default]; `make test-jobs` has it"),
]
MARK = "GOPHER_TEST_HEAD"  # in the environment of the head and of all that it starts
TOKEN = "0123456789abcdef" * 4
WORDS = ["sweep=demo", "rungs=[54k]", "extra_seeds={54k: []}", "data=local", "data.path=text", "output_root=out", *TINY]


@dataclass(frozen=True, kw_only=True)
class Head:
    """A Ray head with its job server, and the folder from which people launch."""

    address: str
    server: str
    folder: Path
    environment: dict[str, str]  # of the people's shell

    def gopher(self, verb: str, *more: str) -> subprocess.CompletedProcess[str]:
        cluster = ["cluster=ray", f"cluster.address={self.address}"]
        words = [sys.executable, "-m", "sweeps.cli", verb, *WORDS, *cluster, *more]
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300)

    def detached(self, *more: str) -> str:
        """Ray's name of a job that a launch has left in the background."""
        done = self.gopher("launch", "detach=true", "format=json", *more)
        assert done.returncode == 0, done.stderr
        return str(json.loads(done.stdout)["detached"]).removeprefix("Ray job ")

    def ask(self, path: str) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with urllib.request.urlopen(urllib.request.Request(self.server + path, headers=headers), timeout=30) as answer:
            return json.load(answer)

    def ended(self, job: str) -> Any:
        """What the job server tells of a job once it has ended."""
        until(lambda: self.ask(f"/api/jobs/{job}")["status"] not in ("PENDING", "RUNNING"), f"{job} does not end")
        return self.ask(f"/api/jobs/{job}")


def until(true: Callable[[], object], what: str, seconds: float = 200.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as opened:
        sockets = [opened.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(s.getsockname()[1]) for s in sockets]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """On ports and in a folder of its own; afterwards all that it has started is gone, whatever happened."""
    place = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
    folder = tmp_path_factory.mktemp("caller")
    write_text(folder / "text")
    (place / "token").write_text(TOKEN)
    (place / "token").chmod(0o600)
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(place / "token")}
    environment |= {"MLFLOW_URI": f"sqlite:///{folder / 'secret.db'}", "RAY_USAGE_STATS_ENABLED": "0"}
    gcs, dashboard, agent, client = free_ports(4)
    words = [
        "start", "--head", "--block", f"--port={gcs}", "--num-cpus=1", f"--object-store-memory={100 * 2**20}",
        "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", f"--ray-client-server-port={client}", f"--temp-dir={place}",
    ]  # fmt: skip
    said = folder / "head.log"
    with said.open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).with_name("ray"), *words],
            cwd=place,
            env=environment | {MARK: str(place)},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    found = Head(
        address=f"127.0.0.1:{gcs}",
        server=f"http://127.0.0.1:{dashboard}",
        folder=folder,
        environment=environment | {"RAY_ADDRESS": "127.0.0.1:1"},  # of another cluster: the one that is named counts
    )
    try:
        started = lambda: "Ray runtime started" in said.read_text() and serves(found)  # noqa: E731
        until(lambda: process.poll() is not None or started(), "the job server does not start", 180)
        assert process.poll() is None, said.read_text()
        yield found
    finally:
        for own in started_by(place):
            with contextlib.suppress(psutil.NoSuchProcess):
                own.send_signal(signal.SIGKILL)
        process.wait(60)
        until(lambda: not started_by(place), "something of the head is left", 60)
        shutil.rmtree(place)


def serves(head: Head) -> bool:
    with contextlib.suppress(OSError):
        return bool(head.ask("/api/jobs/") == [])
    return False


def started_by(place: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == str(place) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def test_a_job_trains_the_sweep_to_its_end(head: Head) -> None:
    tracking = ["tracking=server", "tracking.uri=${oc.env:MLFLOW_URI}"]
    job = head.detached(*tracking)
    told = head.ended(job)
    log = head.ask(f"/api/jobs/{job}/logs")["logs"]
    assert (told["status"], told["driver_exit_code"]) == ("SUCCEEDED", 0), log
    (run,) = (head.folder / "out" / "runs").iterdir()
    state, losses = RunFolder(run).state(), RunFolder(run).metrics()["train/loss"]
    assert state is not None and state.state == FINISHED and state.step == max(losses) == 24
    assert all(loss is not None and 1 < loss < 8 for loss in losses.values())
    shown = json.loads(head.gopher("status", *tracking, "format=json").stdout)["runs"]
    assert [(r["state"], r["val_loss"] is not None) for r in shown] == [(FINISHED, True)]
    assert (head.folder / "secret.db").exists()  # read from the head's environment, and in no word of the job:
    assert not any(secret in json.dumps(told) + log for secret in (TOKEN, "secret.db"))


def test_a_job_holds_its_sweep_until_it_is_stopped(head: Head) -> None:
    words = ["name=long", "tokens=4_000_000"]
    job = head.detached(*words)
    runs = head.folder / "out" / "runs"
    until(lambda: any((s := RunFolder(p).state()) and s.step > 24 for p in runs.iterdir()), "no step")
    for more in ([], ["detach=true"]):
        second = head.gopher("launch", *words, *more)
        assert second.returncode == 3 and "sweep 'long' is being launched by process" in second.stderr, second.stderr
    stopped = head.gopher("stop", *words)
    assert stopped.returncode == 0 and "1 run(s) write a checkpoint first" in stopped.stderr, stopped.stderr
    assert head.ended(job)["driver_exit_code"] == 130
    (run,) = json.loads(head.gopher("status", *words, "format=json").stdout)["runs"]
    assert run["state"] == STOPPED and 0 < run["step"] < run["steps"]


def test_a_job_that_ends_before_it_drives_is_told_with_its_words_and_its_code(head: Head) -> None:
    done = head.gopher(
        "launch", "name=lost", "detach=true", "format=json", "tracking=server", "tracking.uri=http://127.0.0.1:1"
    )
    assert done.returncode == 3, done.stderr
    assert json.loads(done.stdout) == {"sweep": "lost", "detached": None, "exit_code": 3}
    assert "127.0.0.1:1" in done.stderr and "background" not in done.stderr


def test_a_wrong_token_is_told_with_the_cure(head: Head, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f" * 64)
    head.environment["RAY_AUTH_TOKEN_PATH"], own = str(tmp_path / "token"), head.environment["RAY_AUTH_TOKEN_PATH"]
    try:
        done = head.gopher("launch", "name=refused", "detach=true")
    finally:
        head.environment["RAY_AUTH_TOKEN_PATH"] = own
    assert done.returncode == 3 and "takes no job without its token; export RAY_AUTH_MODE=token" in done.stderr
    assert not (head.folder / "out" / "sweeps" / "refused").exists()
