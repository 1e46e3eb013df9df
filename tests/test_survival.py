"""A real sweep on Ray under blows: SIGTERM and SIGKILL of workers, a hung worker, the death of Ray's head, `gopher stop` and
Ctrl-C in a terminal. Every time the launch, or the next one, ends with all runs finished."""

import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from studies import TINY, write_text

from gopher.record import RunFolder
from sweeps.backends import LOST_TIMES
from sweeps.backends.ray import answers
from sweeps.serve import server_command, server_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
WORDS = [
    "sweep=demo",
    "rungs=[54k]",
    "extra_seeds={54k: []}",
    "data=local",
    *TINY,
    "tokens=200_000",
    "placement.checkpoint_every_steps=20",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "corpus")


def command(verb: str, text: Path, root: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "sweeps.cli", verb, *WORDS, f"data.path={text}", f"output_root={root}", *more]


def begin(text: Path, root: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("launch", text, root, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def folder(root: Path) -> RunFolder | None:
    paths = list((root / "runs").glob("*/state.json"))
    return RunFolder(paths[0].parent) if paths else None


def until(true: Callable[[], object], what: str, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def step(root: Path) -> int:
    own = folder(root)
    state = own.state() if own else None
    return state.step if state else 0


def train_worker(root: Path) -> int:
    """The process that holds the run."""
    own = folder(root)
    assert own is not None
    return int((own.path / "lock").read_text().split()[1])


def finish(driver: subprocess.Popen[str], root: Path) -> str:
    output, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, output
    own = folder(root)
    state = own.state() if own else None
    assert state is not None and state.state == "finished", output
    return output


def test_sigterm_to_a_worker_is_a_preemption_without_a_lost_step(text: Path, tmp_path: Path) -> None:
    driver = begin(text, tmp_path)
    until(lambda: step(tmp_path) >= 5, "no step")
    os.kill(train_worker(tmp_path), signal.SIGTERM)
    output = finish(driver, tmp_path)
    assert "taken away" in output and output.count("starting it again") == 1
    assert "a worker died" not in output  # a preemption costs no attempt


def test_two_sweeps_that_share_a_run_train_it_once(text: Path, tmp_path: Path) -> None:
    """The second waits for the run that the first has in hand; the first is interrupted, the second then goes on with it."""
    longer = "tokens=800_000"
    first = begin(text, tmp_path, longer)
    until(lambda: step(tmp_path) >= 5, "no step")
    second = begin(text, tmp_path, longer, "name=other")
    until(lambda: (tmp_path / "sweeps" / "other" / "lease.json").exists(), "no second launch")
    time.sleep(20)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=120)
    assert first.returncode == 130
    output = finish(second, tmp_path)
    assert "waiting for it" in output and "starting it again" not in output
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_a_launch_scores_each_run_on_tasks_and_mlflow_has_them(text: Path, tmp_path: Path) -> None:
    from eval_tasks import CHOICE, write_tasks
    from mlflow import MlflowClient

    tasks = write_tasks(tmp_path / "tasks", tasks={"colours": CHOICE})
    words = ["tokens=24_576", "tasks=[colours]", f"tasks_path={tasks}"]
    words += ["placement.named_checkpoints=log", "evals.steps=[1,4]"]
    finish(begin(text, tmp_path, *words), tmp_path)
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id], "tags.kind = 'train'")
    assert run.data.metrics["eval/colours.items"] == 20 and "eval/colours.gold_bpb" in run.data.metrics
    for name in ("eval/colours.acc", "eval/colours.gold_bpb"):
        assert [m.step for m in client.get_metric_history(run.info.run_id, name)] == [0, 1, 4, 24], name
    (table,) = [a.path for a in client.list_artifacts(run.info.run_id, "eval")]
    lines = json.loads(Path(client.download_artifacts(run.info.run_id, table, str(tmp_path))).read_text())["results"]
    assert {"task": "colours", "metric": "acc", "n": 20}.items() <= lines[0].items()
    done = subprocess.run(command("launch", text, tmp_path, *words), capture_output=True, text=True)
    assert done.returncode == 0 and "nothing to start" in done.stderr


def test_a_hung_worker_is_killed_and_the_run_goes_on(text: Path, tmp_path: Path) -> None:
    driver = begin(text, tmp_path, "launch.hang_seconds=30")
    until(lambda: step(tmp_path) >= 5, "no step")
    os.kill(train_worker(tmp_path), signal.SIGSTOP)
    assert "the run hangs" in finish(driver, tmp_path)


def test_a_killed_ray_head_is_replaced(text: Path, tmp_path: Path) -> None:
    driver = begin(text, tmp_path)
    until(lambda: step(tmp_path) >= 5, "no step")
    servers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "gcs_server" in p.name()]
    servers[0].kill()
    assert "is gone" in finish(driver, tmp_path)


def test_stop_while_a_lost_ray_is_waited_for(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOST_TIMES, "5")  # the next pause is a minute
    driver = begin(text, tmp_path, "format=json")
    until(lambda: step(tmp_path) >= 5, "no step")
    servers = [p for p in psutil.Process(driver.pid).children(recursive=True) if "gcs_server" in p.name()]
    servers[0].kill()
    assert driver.stdout is not None
    said = ""
    while "starting again" not in " ".join(said.split()):
        line = driver.stdout.readline()
        assert line, said
        said += line
    stopped = subprocess.run(command("stop", text, tmp_path), capture_output=True, text=True)
    output, _ = driver.communicate(timeout=30)
    assert (stopped.returncode, driver.returncode) == (0, 130) and "asked process" in stopped.stderr, output
    assert '"sweep": "demo"' in output


def test_stop_from_another_terminal_then_resume(text: Path, tmp_path: Path) -> None:
    driver = begin(text, tmp_path)
    until(lambda: step(tmp_path) >= 5, "no step")
    stopped = subprocess.run(command("stop", text, tmp_path), capture_output=True, text=True)
    assert stopped.returncode == 0 and "asked process" in stopped.stderr
    driver.communicate(timeout=60)
    assert driver.returncode == 130
    status = json.loads(subprocess.check_output([*command("status", text, tmp_path), "format=json"], text=True))
    assert status["runs"][0]["state"] == "stopped" and status["runs"][0]["step"] >= 5
    subprocess.run(command("resume", text, tmp_path), check=True, capture_output=True)
    assert folder(tmp_path).state().state == "finished"  # type: ignore[union-attr]


def test_ctrl_c_in_a_terminal_asks(text: Path, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command("launch", text, tmp_path, "watch=false"))
    until(lambda: step(tmp_path) >= 5, "no step")
    os.write(terminal, b"\x03")
    seen = read_until(terminal, "[s]top")
    os.write(terminal, b"s\n")
    seen += read_until(terminal, None)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 130, seen
    state = folder(tmp_path).state()  # type: ignore[union-attr]
    assert state is not None and state.state == "stopped"


def test_ctrl_c_while_ray_starts_asks_once_it_has(text: Path, tmp_path: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(sys.executable, command("launch", text, tmp_path, "watch=false"))
    read_until(terminal, "starting Ray")
    time.sleep(0.7)
    os.write(terminal, b"\x03")
    seen = read_until(terminal, "[s]top")
    os.write(terminal, b"s\n")
    seen += read_until(terminal, None)
    _, code = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(code) == 130 and "as soon as what starts has started" in seen, seen
    assert not (tmp_path / "sweeps" / "demo" / "lease.json").exists()


def read_until(terminal: int, mark: str | None) -> str:
    """What the terminal shows up to `mark`, or to its end."""
    seen = ""
    while mark is None or mark not in seen:
        try:
            part = os.read(terminal, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part.decode("utf-8", "replace")
    return seen


def test_mlflow_away_for_the_whole_run(text: Path, tmp_path: Path) -> None:
    """The run is trained, the launch says what was not delivered; with the server there the next launch sends it, once."""
    from mlflow import MlflowClient

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    place, short = f"http://127.0.0.1:{port}", ["tokens=24_576", "tracking=server", "launch.patience_seconds=5"]
    words = [*short, f"tracking.uri={place}", "tracking.required=false"]
    driver = begin(text, tmp_path, *words)
    output, _ = driver.communicate(timeout=300)
    own = folder(tmp_path)
    assert driver.returncode == 3 and "the next launch sends it" in output, output
    assert own is not None and (state := own.state()) is not None and state.state == "finished"
    served = subprocess.Popen(
        server_command(port), env=server_environment(f"sqlite:///{tmp_path / 'served.db'}", tmp_path),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: answers("127.0.0.1", port, 1), "the server did not start", 120)
        for _ in range(2):  # the second finds nothing to do and doubles nothing
            driver = begin(text, tmp_path, *words)
            output, _ = driver.communicate(timeout=300)
            assert driver.returncode == 0, output
        client = MlflowClient(place)
        (run,) = client.search_runs([client.get_experiment_by_name("demo").experiment_id], "tags.kind = 'train'")
        for name, series in own.metrics().items():
            sent = [m.step for m in client.get_metric_history(run.info.run_id, name)]
            assert sent == [s for s, v in series.items() if v is not None], name
    finally:
        served.terminate()
        served.wait(60)


def test_a_lost_node_is_replaced_by_another(text: Path, tmp_path: Path) -> None:
    """The machine that trains goes, with its raylet and all workers; the run goes on where Ray finds room again."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        driver = begin(text, tmp_path, "cluster=ray", f"cluster.address={cluster.address}")
        until(lambda: step(tmp_path) >= 25, "no step beyond the first checkpoint")
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        output = finish(driver, tmp_path)
    finally:
        cluster.shutdown()
    assert "starting it again" in output
    own = folder(tmp_path)
    assert own is not None and (state := own.state()) is not None and state.attempt >= 2
