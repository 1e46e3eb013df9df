"""The mirror into MLflow: every logged number arrives once and only once, whatever is lost on the way.

Real sqlite stores throughout; one slow test talks to a real server through a line that loses requests and answers.
"""

import dataclasses
import http.client
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from logged_study import MANIFEST, SHAPES, finished_folder, log_steps, queued_folder, study_spec

from analysis.points import newest
from gopher.errors import SetupError, UsageError
from gopher.record import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, RunFolder, RunState
from gopher.spec import RunSpec
from sweeps.settings import ClusterSettings, Settings
from sweeps.track import CONFIG_FILE, Tracker, opened_tracker

TOKENS = 60_000  # 59 steps
pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning")  # MLflow's own


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def small_spec(seed: int = 0) -> RunSpec:
    return study_spec("54k", seed, TOKENS)


# ---- a real store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database whose tables exist, made once: it takes seconds."""
    root = tmp_path_factory.mktemp("store")
    Tracker(f"sqlite:///{root / 'mlflow.db'}", "first", root / "mlartifacts", list(SHAPES)).open_sweep("name: first")
    return root


@pytest.fixture
def tracker(store: Path, request: pytest.FixtureRequest) -> Callable[[], Tracker]:
    """Makes writers of this test's own sweep, each as a new driver would."""

    def new() -> Tracker:
        writer = Tracker(
            f"sqlite:///{store / 'mlflow.db'}", request.node.name[:80], store / "mlartifacts", list(SHAPES)
        )
        writer.open_sweep("name: test")
        return writer

    return new


def client_of(writer: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(writer.uri)


def train_runs(writer: Tracker, kind: str = "train") -> list[Any]:
    client = client_of(writer)
    experiment = client.get_experiment_by_name(writer.sweep)
    return list(client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'"))


def history(writer: Tracker, run: Any, metric: str) -> list[tuple[int, float]]:
    return sorted((m.step, m.value) for m in client_of(writer).get_metric_history(run.info.run_id, metric))


def assert_exact(writer: Tracker, folder: RunFolder) -> Any:
    """MLflow has one run of the folder's spec, with each number of the log once."""
    runs = [r for r in train_runs(writer) if r.data.tags["trial.id"] == folder.spec().key]
    assert len(runs) == 1
    for metric, points in folder.metrics().items():
        assert history(writer, runs[0], metric) == sorted(points.items()), metric
    return runs[0]


def test_a_run_arrives_whole_with_its_parts(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    folder = finished_folder(tmp_path, small_spec())
    shards = Path(folder.placement().data_dir)
    shards.mkdir(parents=True)
    (shards / "manifest.json").write_text(json.dumps(MANIFEST))
    writer = tracker()
    assert writer.flush([folder], 0) is None and writer.delivered([folder])
    run = assert_exact(writer, folder)
    assert run.info.status == "FINISHED" and run.info.end_time >= run.info.start_time
    assert run.data.params["data.unique_tokens"] == "60000" and run.data.params["rung"] == "54k"
    assert run.data.tags["data.sha256"] == "da7a" and run.data.tags["tokenizer.sha256"] == "70c3"
    assert run.data.tags["status.state"] == FINISHED and "metrics.missing" not in run.data.tags
    files = [f.path for f in client_of(writer).list_artifacts(run.info.run_id, "config")]
    assert files == ["config/resolved.json"]
    (parent,) = train_runs(writer, kind="sweep")
    assert parent.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id


def test_a_growing_log_is_followed(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    folder = queued_folder(tmp_path, small_spec())
    writer = tracker()
    assert writer.mirror(folder)
    assert train_runs(writer)[0].info.status == "SCHEDULED"
    folder.write_state(RunState(state=RUNNING, attempt=1))
    for first, last in ((0, 20), (21, 21), (22, 59)):
        log_steps(folder, first, last)
        assert writer.mirror(folder)
        assert assert_exact(writer, folder).info.status == "RUNNING"
    folder.write_state(RunState(state=FINISHED, step=59, attempt=1))
    assert not writer.delivered([folder])
    assert writer.mirror(folder) and writer.delivered([folder])
    assert assert_exact(writer, folder).info.status == "FINISHED"


def test_a_replay_under_another_driver_doubles_nothing(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    folder = queued_folder(tmp_path, small_spec())
    log_steps(folder, 0, 30)
    assert tracker().mirror(folder)
    log_steps(folder, 20, 59)
    first = folder.metrics()["train/loss"][20]
    assert first is not None
    folder.log(20, {"train/loss": first * (1 + 1e-6)})  # a repeated step on another number of workers may differ
    writer = tracker()
    assert writer.mirror(folder)
    losses = history(writer, train_runs(writer)[0], "train/loss")
    assert [step for step, _ in losses] == [1, 10, 20, 30, 40, 50, 59]
    assert dict(losses)[20] == first


def test_what_a_rewound_run_computes_anew_is_its_newest_number(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    folder = queued_folder(tmp_path, small_spec())
    log_steps(folder, 0, 59)
    writer = tracker()
    assert writer.mirror(folder)
    folder.log(59, {"val/loss": 1.0})
    assert writer.mirror(folder)
    (folder.path / "mlflow.json").unlink()
    writer = tracker()
    assert writer.mirror(folder)
    (run,) = train_runs(writer)
    assert run.data.metrics["val/loss"] == 1.0
    assert newest(client_of(writer), run.info.run_id, "val/loss")[59] == 1.0
    assert [step for step, _ in history(writer, run, "val/loss")].count(59) == 2


def test_a_lost_note_doubles_nothing(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    folder = queued_folder(tmp_path, small_spec())
    log_steps(folder, 0, 30)
    assert tracker().mirror(folder)
    (folder.path / "mlflow.json").unlink()
    log_steps(folder, 31, 59)
    writer = tracker()
    assert writer.mirror(folder)
    assert_exact(writer, folder)


def test_a_run_deleted_in_mlflow_is_written_anew(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    folder = finished_folder(tmp_path, small_spec())
    writer = tracker()
    assert writer.mirror(folder)
    client_of(writer).delete_run(train_runs(writer)[0].info.run_id)
    again = tracker()
    assert not again.delivered([folder]) and again.mirror(folder)
    assert assert_exact(again, folder).info.status == "FINISHED"


def test_without_its_database_nothing_counts_as_delivered(store: Path, tmp_path: Path) -> None:
    folder = finished_folder(tmp_path, small_spec())
    database = tmp_path / "mlflow.db"
    shutil.copy(store / "mlflow.db", database)
    writer = Tracker(f"sqlite:///{database}", "first", tmp_path / "mlartifacts", list(SHAPES))
    writer.open_sweep("name: first")
    assert writer.flush([folder], 0) is None and writer.delivered([folder])
    database.unlink()
    assert not writer.delivered([folder])


def test_events_and_cost_reach_mlflow_once(tmp_path: Path) -> None:
    folder = finished_folder(tmp_path, small_spec())
    state = folder.state()
    assert state is not None
    folder.write_state(dataclasses.replace(state, train_seconds=3600.0))
    folder.event("rewind", 12, "step 13 has loss nan; going on from step 10")
    priced = Settings(output_root=str(tmp_path), name="demo", cluster=ClusterSettings(usd_per_cpu_hour=0.25))
    writer = opened_tracker(priced, list(SHAPES))
    assert writer.flush([folder], 0) is None and writer.delivered([folder])
    folder.event("warning", 40, "a checkpoint of postgresql://ann:secret@db could not be written")
    assert not writer.delivered([folder])
    (folder.path / "mlflow.json").unlink()
    again = opened_tracker(priced, list(SHAPES))
    assert again.flush([folder], 0) is None
    (run,) = train_runs(again)
    assert run.data.tags["events"] == "1 rewind, 1 warning"
    assert "step 12: rewind: step 13 has loss nan" in run.data.tags["mlflow.note.content"]
    assert "secret" not in run.data.tags["mlflow.note.content"]
    assert [m.value for m in again._client.get_metric_history(run.info.run_id, "final/usd")] == [0.25]


@pytest.mark.parametrize(("state", "status"), [(FAILED, "FAILED"), (STOPPED, "KILLED")])
def test_an_end_has_its_reason_and_can_be_taken_back(
    tracker: Callable[[], Tracker], tmp_path: Path, state: str, status: str
) -> None:
    folder = queued_folder(tmp_path, small_spec())
    log_steps(folder, 0, 20)
    folder.log(30, {"train/loss": float("nan"), "train/lr": 0.01})
    with open(folder.path / "metrics.jsonl", "a", encoding="utf-8") as log:
        log.write('{"step": 31, "met')  # killed while writing
    folder.write_state(RunState(state=state, step=30, attempt=1, reason="loss is not finite at step 30"))
    writer = tracker()
    assert writer.flush([folder], 0) is None
    (run,) = train_runs(writer)
    assert run.info.status == status and run.data.tags["status.reason"] == "loss is not finite at step 30"
    assert run.data.tags["metrics.missing"] == "train/loss from step 30"
    assert [step for step, _ in history(writer, run, "train/loss")] == [1, 10, 20]
    folder.write_state(RunState(state=QUEUED, attempt=1))
    assert writer.mirror(folder)
    assert train_runs(writer)[0].info.status == "SCHEDULED"


def test_two_sweeps_share_a_run_folder(store: Path, tmp_path: Path) -> None:
    folder = finished_folder(tmp_path, small_spec())
    for name in ("shared-a", "shared-b", "shared-a"):
        writer = Tracker(f"sqlite:///{store / 'mlflow.db'}", name, store / "mlartifacts", list(SHAPES))
        writer.open_sweep("name: x")
        assert writer.flush([folder], 0) is None
        assert_exact(writer, folder)


def test_a_report_lands_on_the_sweep(tracker: Callable[[], Tracker], tmp_path: Path) -> None:
    writer = tracker()
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "loss.png").write_bytes(b"\x89PNG")
    (tmp_path / "report.html").write_text("<html></html>")
    note = "Loss falls\n\n![curve](get-artifact?path=report/figures/loss.png&run_uuid={parent})"
    fit = {"law": "power_law", "points": [{"rung": "54k", "params_non_embedding": 53_792.0, "loss": 4.85}]}
    run_id = writer.log_report(fit, tmp_path, note, {"fit/alpha": 0.1, "fit/E": float("nan")})
    (logged,), (parent,) = train_runs(writer, kind="fit"), train_runs(writer, kind="sweep")
    assert logged.info.run_id == run_id and logged.data.metrics == {"fit/alpha": 0.1}
    assert logged.data.tags["mlflow.parentRunId"] == parent.info.run_id
    shown = parent.data.tags["mlflow.note.content"]
    assert shown.startswith("Loss falls\n") and f"run_uuid={parent.info.run_id})" in shown and "| 54k | 54k |" in shown
    for run in (logged, parent):
        assert "report/report.html" in [f.path for f in client_of(writer).list_artifacts(run.info.run_id, "report")]


def test_an_experiment_in_the_trash_is_no_place_for_a_sweep(tracker: Callable[[], Tracker]) -> None:
    writer = tracker()
    client = client_of(writer)
    client.delete_experiment(client.get_experiment_by_name(writer.sweep).experiment_id)
    with pytest.raises(UsageError, match="in the trash; restore it, or give the sweep another name"):
        tracker()


def test_an_unreachable_server_at_the_start_is_told_with_the_cure(free_port: int, tmp_path: Path) -> None:
    writer = Tracker(f"http://127.0.0.1:{free_port}", "demo", tmp_path, list(SHAPES))
    with pytest.raises(
        SetupError, match=f"MLflow at http://127.0.0.1:{free_port} could not be reached .*; start it, mend tracking.uri"
    ):
        writer.open_sweep("name: demo")


def test_a_missing_driver_is_told_with_the_cure(tmp_path: Path) -> None:
    writer = Tracker("mysql+pymysql://ann:secret@127.0.0.1/mlflow", "demo", tmp_path, list(SHAPES))
    with pytest.raises(SetupError, match="database driver is missing .*pip install") as raised:
        writer.open_sweep("name: demo")
    assert "secret" not in str(raised.value)


def test_the_environment_is_quiet_unless_the_user_speaks() -> None:
    """Telemetry is off for any way of saying DO_NOT_TRACK; importing this module loads no mlflow."""
    code = (
        "import os, sys; os.environ.pop('MLFLOW_DISABLE_TELEMETRY', None); import sweeps.track, sweeps.mlflow_client as t; "
        "assert 'mlflow' not in sys.modules; {}t.import_mlflow(); print(os.environ['MLFLOW_DISABLE_TELEMETRY'])"
    )
    user = "os.environ.update(DO_NOT_TRACK='1', MLFLOW_DISABLE_TELEMETRY='false'); "
    done = subprocess.run([sys.executable, "-c", code.format(user)], capture_output=True, text=True, check=True)
    assert done.stdout == "true\n" and done.stderr == ""


def kept_config(writer: Tracker) -> str:
    """config/sweep.yaml of the parent run."""
    (parent,) = writer._client.search_runs([writer._experiment], "tags.kind = 'sweep'")
    return Path(writer._client.download_artifacts(parent.info.run_id, CONFIG_FILE)).read_text()


def test_the_config_of_the_first_launch_is_kept(tmp_path: Path) -> None:
    """Whatever had opened the sweep before it, and whatever comes after."""
    for config in ("", "name: first", "name: second"):
        writer = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "kept", tmp_path / "mlartifacts", list(SHAPES))
        writer.open_sweep(config)
    assert kept_config(writer) == "name: first"


# ---- a real server behind a bad line


class BadLine(http.server.BaseHTTPRequestHandler):
    """Passes requests on to a server. Lost ones never arrive; of swallowed ones only the answer is lost."""

    upstream = 0
    weather = {"pass": 1.0, "lose": 0.0, "swallow": 0.0}
    lose_next_file = False
    draw = random.Random(0)
    protocol_version = "HTTP/1.1"

    def forward(self) -> None:
        fate = self.draw.choices(list(self.weather), list(self.weather.values()))[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.close_connection = True
        if "mlflow-artifacts" in self.path and BadLine.lose_next_file:
            BadLine.lose_next_file = False
            return
        if fate == "lose":
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
        upstream.request(self.command, self.path, body, dict(self.headers) | {"Host": "127.0.0.1"})
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if fate == "swallow":
            return
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.getheader("Content-Type", "application/json"))
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")  # else a client may send its next request just before it sees the end
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_PATCH = forward

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def bad_line(tmp_path: Path, free_port: int) -> Iterator[str]:
    """The address of the line to a real MLflow server; `BadLine.weather` says how bad it is."""
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(free_port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "mlartifacts")]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    quiet = subprocess.DEVNULL
    server = subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet, start_new_session=True)
    BadLine.upstream = free_port
    line = http.server.ThreadingHTTPServer(("127.0.0.1", 0), BadLine)
    threading.Thread(target=line.serve_forever, daemon=True).start()
    try:
        wait_for(free_port)
        yield f"http://127.0.0.1:{line.server_address[1]}"
    finally:
        line.shutdown()
        line.server_close()
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def wait_for(port: int, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError(f"no server on port {port} after {seconds} s")


@pytest.mark.slow
def test_a_bad_line_loses_and_doubles_nothing(bad_line: str, tmp_path: Path) -> None:
    """A dead line means a backlog; a line that drops requests and answers at random still delivers each number once."""
    folders = [finished_folder(tmp_path, small_spec(seed)) for seed in (0, 1)]
    writer = Tracker(bad_line, "far", tmp_path / "mlartifacts", list(SHAPES))
    BadLine.lose_next_file = True
    with pytest.raises(SetupError, match="could not be reached"):
        writer.open_sweep("name: far")
    writer.open_sweep("name: far")
    assert kept_config(writer) == "name: far"

    BadLine.weather = {"pass": 0.0, "lose": 1.0, "swallow": 0.0}
    left = writer.flush(folders, 0)
    assert left is not None and "did not take the logs of 2 runs" in left and "the same command delivers them" in left
    assert not writer.mirror(folders[0])  # left alone for a while

    BadLine.weather = {"pass": 0.5, "lose": 0.25, "swallow": 0.25}
    tries = 0
    while writer.flush(folders, 0) is not None:
        tries += 1
        assert tries < 100
    BadLine.weather = {"pass": 1.0, "lose": 0.0, "swallow": 0.0}
    assert tries > 3 and len(train_runs(writer)) == 2
    for folder in folders:
        assert assert_exact(writer, folder).info.status == "FINISHED"
