"""`gopher ui` opens the finished dashboard on loopback and leaves nothing behind; every way to fail says what to do.

The slow test runs a real server in a real process, asks it as a browser would, and interrupts it.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
from logged_study import SHAPES, SUBSETS, finished_folder, study_spec

from analysis.points import points_from_mlflow
from gopher.errors import SetupError, UsageError
from sweeps.serve import (
    check_port,
    experiment_id,
    login,
    refusal,
    server_command,
    server_environment,
    show_dashboard,
    without_login,
)
from sweeps.track import Tracker


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_the_server_listens_on_loopback_alone_and_its_store_stays_off_the_command_line(tmp_path: Path) -> None:
    command = server_command(5000)
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--workers") + 1] == "1"
    environment = server_environment("postgresql+psycopg://ann:secret@db/mlflow", tmp_path)
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg://ann:secret@db/mlflow"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "secret" not in " ".join(command)


def test_a_taken_port_is_told_with_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SetupError, match=rf"port {port} of 127.0.0.1 cannot be used \(address already in use\)"
        ) as raised:
            check_port(port)
        suggested = re.search(r"try ui\.port=(\d+)", str(raised.value))
        assert suggested is not None
        check_port(int(suggested[1]))


@pytest.mark.parametrize("port", [0, -1, 70_000])
def test_a_port_that_cannot_exist_is_refused(port: int) -> None:
    with pytest.raises(UsageError, match=f"ui.port is {port}; give a port between"):
        check_port(port)


def test_nothing_logged_yet_says_so_and_makes_no_database(tmp_path: Path, free_port: int) -> None:
    with pytest.raises(UsageError, match="nothing is logged yet; run gopher launch for sweep 'demo'"):
        show_dashboard(f"sqlite:///{tmp_path / 'mlflow.db'}", "demo", tmp_path, free_port)
    assert list(tmp_path.iterdir()) == []


def test_a_silent_server_elsewhere_is_told_without_the_password(free_port: int, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="could not be reached .*; start it or mend tracking.uri") as raised:
        show_dashboard(f"http://ann:secret@127.0.0.1:{free_port}", "demo", tmp_path, 5000)
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("code", "body", "kind", "cure"),
    [
        (404, '{"error_code": "RESOURCE_DOES_NOT_EXIST"}', UsageError, "launch the sweep first"),
        (401, "You are not authenticated", SetupError, "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        (403, "Invalid Host header - possible DNS rebinding attack detected", SetupError, "--allowed-hosts"),
        (502, "Bad Gateway", SetupError, r"answered 502 \(Bad Gateway\); check tracking.uri"),
    ],
)
def test_a_refusal_says_what_to_do(code: int, body: str, kind: type[Exception], cure: str) -> None:
    with urllib.error.HTTPError("http://host/api", code, "no", None, BytesIO(body.encode())) as error:  # type: ignore[arg-type]
        told = refusal(error, "http://host", "demo")
    assert isinstance(told, kind) and re.search(cure, str(told))


def test_the_login_of_an_address_is_sent_and_not_shown() -> None:
    assert login("http://ann:s%40cret@host:5000/api") == {"Authorization": "Basic YW5uOnNAY3JldA=="}
    assert without_login("https://ann:secret@host:5000/mlflow") == "https://host:5000/mlflow"
    assert without_login("http://host") == "http://host"


# ---- a real server


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """An output root with two finished runs in MLflow."""
    folders = [finished_folder(tmp_path, study_spec(rung, 0, 60_000)) for rung in ("54k", "121k")]
    writer = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "demo", tmp_path / "mlartifacts", list(SHAPES))
    writer.open_sweep("name: demo")
    writer.write_views(list(SUBSETS))
    assert writer.flush(folders, 0) is None
    return tmp_path


SHOW = """
import sys
from pathlib import Path
from sweeps.serve import show_dashboard
root = Path(sys.argv[1])
show_dashboard(f"sqlite:///{root / 'mlflow.db'}", "demo", root, int(sys.argv[2]), say=lambda text: print(text, flush=True))
"""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_the_dashboard_is_served_until_it_is_interrupted(logged: Path, free_port: int, ending: signal.Signals) -> None:
    command = [sys.executable, "-c", SHOW, str(logged), str(free_port)]
    shown = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert shown.stdout is not None and shown.stderr is not None
    try:
        first, second = shown.stdout.readline(), shown.stdout.readline()
        base = f"http://127.0.0.1:{free_port}"
        link = (
            f"{base}/#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey=ladder"
        )
        assert (first, second) == (f"dashboard: {link}\n", "Ctrl-C stops the server\n")
        with urllib.request.urlopen(base, timeout=30) as page:
            assert b"<title>MLflow</title>" in page.read()

        said: list[str] = []
        show_dashboard(base, "demo", logged, 5000, say=said.append)  # the same server, seen from elsewhere
        assert said[0] == f"dashboard: {link}" and len(said) == 2
        own_file = points_from_mlflow(f"sqlite:///{logged / 'mlflow.db'}", "demo")
        assert points_from_mlflow(base, "demo") == own_file and len(own_file) == 2  # a fit reads either
        with pytest.raises(UsageError, match="no experiment 'other'; launch the sweep first"):
            experiment_id(base, "other")
        with pytest.raises(SetupError, match=f"port {free_port} of 127.0.0.1 cannot be used"):
            show_dashboard(f"sqlite:///{logged / 'mlflow.db'}", "demo", logged, free_port)
    finally:
        shown.send_signal(ending)
        out, errors = shown.communicate(timeout=60)
    assert (shown.returncode, out, errors) == (0, "", "")
    check_port(free_port)
    assert not [p for p in server_processes() if str(free_port) in p]


def server_processes() -> list[str]:
    import psutil

    own = [p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"]]
    return [
        " ".join(p.info["cmdline"]) for p in own if "mlflow" in " ".join(p.info["cmdline"]) and p.pid != os.getpid()
    ]


@pytest.mark.slow
def test_a_server_that_cannot_start_is_told_with_its_last_words(tmp_path: Path, free_port: int) -> None:
    (tmp_path / "mlflow.db").write_text("this is no database " * 100)
    started = time.monotonic()
    with pytest.raises(
        SetupError, match=r"server did not start \(.*file is not a database\); .*mlflow-server.log has the whole"
    ):
        show_dashboard(f"sqlite:///{tmp_path / 'mlflow.db'}", "demo", tmp_path, free_port)
    assert time.monotonic() - started < 170
    check_port(free_port)
