"""What `gopher ui` does: an MLflow server on loopback over the output root's store, or the link to a server elsewhere.

The server never listens on anything but 127.0.0.1; to look from another machine, forward the port over ssh.
"""

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from gopher.errors import SetupError, UsageError
from sweeps.dashboard import dashboard_url
from sweeps.redact import hide_secrets

HOST = "127.0.0.1"
START_SECONDS = 180.0  # usually 5 to 20; longer on a machine that is busy training
STOP_SECONDS = 5.0
ANSWER_SECONDS = 30.0
SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # its workers cost 800 MB and nothing here needs them
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}


def show_dashboard(
    uri: str, sweep: str, root: Path, port: int, open_browser: bool = False, say: Callable[[str], None] = print
) -> None:
    """Say the link of the sweep's dashboard. A local store is served until Ctrl-C; of a server elsewhere there is only the link."""
    if uri.startswith(("http://", "https://")):
        say(f"dashboard: {dashboard_url(without_login(uri), experiment_id(uri, sweep))}")
        say("this server runs elsewhere; there is nothing to stop here")
        return
    check_store(uri, sweep)
    with running_server(uri, root, port) as (base, server):
        link = dashboard_url(base, experiment_id(base, sweep))
        say(f"dashboard: {link}")
        say("Ctrl-C stops the server")
        if open_browser:
            webbrowser.open(link)
        try:
            server.wait()
        except KeyboardInterrupt:
            return
        raise SetupError(f"the MLflow server has ended ({last_words(root)}); start it again with gopher ui")


def check_store(uri: str, sweep: str) -> None:
    """Refuse an sqlite file that is not there: MLflow would make an empty one and show nothing."""
    database = uri.removeprefix("sqlite:///")
    if uri.startswith("sqlite:///") and not Path(database).is_file():
        raise UsageError(f"{database} does not exist, so nothing is logged yet; run gopher launch for sweep '{sweep}'")


# ---- the server


@contextmanager
def running_server(uri: str, root: Path, port: int) -> Iterator[tuple[str, "subprocess.Popen[bytes]"]]:
    """(address, process) of an MLflow server that answers; it is gone when the block ends, however it ends."""
    check_port(port)
    root.mkdir(parents=True, exist_ok=True)
    with open(log_file(root), "wb") as log:
        server = subprocess.Popen(
            server_command(port),
            env=server_environment(uri, root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours: we stop the server, in order
        )
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        wait_until_healthy(port, server, root)
        yield f"http://{HOST}:{port}", server
    finally:
        stop(server)
        signal.signal(signal.SIGTERM, before)


def server_command(port: int) -> list[str]:
    return [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]


def server_environment(uri: str, root: Path) -> dict[str, str]:
    """The environment of the server. The store goes this way, because a command line shows its password to every user."""
    store = {"MLFLOW_BACKEND_STORE_URI": uri, "MLFLOW_ARTIFACTS_DESTINATION": str(root / "mlartifacts")}
    return {**SETTINGS, **os.environ, **store}


def check_port(port: int) -> None:
    if not 1 <= port <= 65535:
        raise UsageError(f"ui.port is {port}; give a port between 1 and 65535")
    if error := cannot_listen(port):
        free = next((p for p in range(max(port, 1023) + 1, 65536) if not cannot_listen(p)), None)
        raise SetupError(f"port {port} of {HOST} cannot be used ({error}); try ui.port={free or 5000}")


def cannot_listen(port: int) -> str | None:
    """Why no server can listen on this port now, or None."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError as error:
        return os.strerror(error.errno).lower() if error.errno else str(error)
    return None


def wait_until_healthy(port: int, server: "subprocess.Popen[bytes]", root: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise SetupError(
                f"the MLflow server did not start ({last_words(root)}); {log_file(root)} has the whole story"
            )
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=ANSWER_SECONDS):
                return
        except OSError:
            time.sleep(0.2)
    raise SetupError(
        f"the MLflow server did not answer within {START_SECONDS:.0f} s; see {log_file(root)}, or try again when the machine is less busy"
    )


def stop(server: "subprocess.Popen[bytes]") -> None:
    """End the server and its workers; a browser that keeps a connection open does not keep them alive."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
        except ProcessLookupError:
            break
        try:
            server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def interrupt(number: int, frame: FrameType | None) -> None:
    """SIGTERM as Ctrl-C: the server must not outlive its owner."""
    raise KeyboardInterrupt


def log_file(root: Path) -> Path:
    return root / "mlflow-server.log"


def last_words(root: Path) -> str:
    """Why the server ended: the last exception in its log, or its last line."""
    lines = log_file(root).read_text("utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
    causes = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt): ", line)]
    return hide_secrets(causes[-1] if causes else lines[-1])[:300]


# ---- questions to a server, without loading mlflow


def experiment_id(base: str, sweep: str) -> str:
    """The id of the sweep's experiment on a server."""
    name = urllib.parse.quote(sweep, safe="")
    try:
        found = ask(f"{base.rstrip('/')}/api/2.0/mlflow/experiments/get-by-name?experiment_name={name}")
    except urllib.error.HTTPError as error:
        raise refusal(error, without_login(base), sweep) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise SetupError(
            f"MLflow at {without_login(base)} could not be reached ({reason}); start it or mend tracking.uri"
        ) from None
    return str(found["experiment"]["experiment_id"])


def ask(url: str) -> Any:
    request = urllib.request.Request(without_login(url), headers=login(url))
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
        return json.load(answer)


def refusal(error: urllib.error.HTTPError, base: str, sweep: str) -> SetupError | UsageError:
    """What an HTTP error of a server means and what to do about it."""
    text = error.read().decode("utf-8", errors="replace")[:200]
    if error.code == 404 and "RESOURCE_DOES_NOT_EXIST" in text:
        return UsageError(f"MLflow at {base} has no experiment '{sweep}'; launch the sweep first, or mend name")
    if error.code == 401:
        return SetupError(
            f"MLflow at {base} asks for a login; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        )
    if error.code == 403 and "Host" in text:
        return SetupError(
            f"MLflow at {base} refuses requests under this host name; its owner must start it with --allowed-hosts"
        )
    return SetupError(f"MLflow at {base} answered {error.code} ({text.strip() or error.reason}); check tracking.uri")


def login(url: str) -> dict[str, str]:
    """The header that MLflow's own client would send: from the address, or from the environment."""
    parts, env = urllib.parse.urlsplit(url), os.environ
    user = urllib.parse.unquote(parts.username or "") or env.get("MLFLOW_TRACKING_USERNAME", "")
    password = urllib.parse.unquote(parts.password or "") or env.get("MLFLOW_TRACKING_PASSWORD", "")
    if user:
        return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}
    token = env.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def without_login(url: str) -> str:
    """The address without user and password."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
