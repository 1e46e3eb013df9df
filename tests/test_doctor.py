"""`gopher doctor` finds what was broken on purpose, says the cure, hides passwords, and is quick."""

import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import demo_spec

from gopher.record import RUNNING, RunFolder, RunState
from gopher.spec import Placement
from sweeps import checks
from sweeps.checks import FAIL, NOTE, OK, WARN
from sweeps.settings import ClusterSettings, Settings, TrackingSettings, UiSettings


def settings(root: Path, **others: object) -> Settings:
    return Settings(output_root=str(root), name="s", **others)  # type: ignore[arg-type]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / demo_spec().key)
    folder.create(demo_spec(), Placement(data_dir="data"), {})
    made = folder.checkpoints / f"{20:010d}"
    made.mkdir(parents=True)
    (made / "__0_0.distcp").write_bytes(b"weights")
    mark = {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    (made / "complete.json").write_text(json.dumps({"run": "x", "step": 20, "files": {"__0_0.distcp": mark}}))
    return folder


def test_the_command_is_quick_and_its_json_whole(tmp_path: Path) -> None:
    began = time.monotonic()
    words = [sys.executable, "-m", "sweeps.cli", "doctor", "format=json", f"output_root={tmp_path}"]
    done = subprocess.run(words, capture_output=True, text=True)
    answer = json.loads(done.stdout)
    assert done.returncode == (0 if answer["ok"] else 1), done.stderr
    named = {c["name"]: c for c in answer["checks"]}
    assert {"python", "packages", "gpu", "disk", "ray", "mlflow", "locks", "checkpoints", "clock"} <= set(named)
    assert named["packages"]["verdict"] == OK, named["packages"]["found"]
    assert all(c["cure"] for c in answer["checks"] if c["verdict"] in (WARN, FAIL))
    assert time.monotonic() - began < 20  # 5 s on a machine that is not shared
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("content", "fault"), [(b"weighty", "another SHA-256"), (b"wei", "truncated"), (None, "missing")]
)
def test_a_broken_checkpoint_is_named(run: RunFolder, content: bytes | None, fault: str) -> None:
    where = settings(run.path.parents[1])
    assert checks.checkpoints(where).verdict == OK
    shard = next(run.checkpoints.rglob("*.distcp"))
    shard.unlink() if content is None else shard.write_bytes(content)
    found = checks.checkpoints(where)
    assert found.verdict == WARN and fault in found.found and str(shard.parent) in found.found


def test_a_checkpoint_too_large_to_read_in_time_is_counted(run: RunFolder) -> None:
    marker = next(run.checkpoints.rglob("complete.json"))
    assert checks.fault_of(marker, time.monotonic() - 1) is None


def test_interrupted_runs_and_old_leases_are_named(run: RunFolder) -> None:
    where = settings(run.path.parents[1])
    assert checks.locks(where).verdict == OK
    run.write_state(RunState(state=RUNNING, step=3))
    lease = where.root / "sweeps" / "s" / "lease.json"
    lease.parent.mkdir(parents=True)
    lease.write_text("{}")
    os.utime(lease, (1, 1))
    found = checks.locks(where)
    assert found.verdict == WARN and run.path.name in found.found and "lease of s" in found.found


def test_services_that_do_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = free.getsockname()[1]
    uri = f"postgresql+psycopg://me:hunter2@127.0.0.1:{closed}/db"
    mlflow = checks.store(settings(tmp_path, tracking=TrackingSettings(uri=uri)))
    assert mlflow.verdict == FAIL and "does not answer" in mlflow.found and "hunter2" not in mlflow.found
    ray = checks.ray(settings(tmp_path, cluster=ClusterSettings(address=f"127.0.0.1:{closed}")))
    assert ray.verdict == FAIL and "does not answer" in ray.found
    monkeypatch.setattr(checks, "ANSWER_SECONDS", 0.1)
    for address in ("no-host.invalid", "ray://no-host.invalid"):  # with the usual port
        ray = checks.ray(settings(tmp_path, cluster=ClusterSettings(address=address)))
        assert ray.verdict == FAIL and ray.found == f"{address} does not answer"
    ray = checks.ray(settings(tmp_path, cluster=ClusterSettings(address="host:abc")))
    assert (ray.verdict, ray.found, ray.cure) == (FAIL, "host:abc has no port number", "name it as host:port")
    with socket.create_server(("127.0.0.1", 0)) as server:
        number = server.getsockname()[1]
        taken = checks.port(settings(tmp_path, ui=UiSettings(port=number)))
        reached = checks.ray(settings(tmp_path, cluster=ClusterSettings(address=f"127.0.0.1:{number}")))
    assert taken.verdict == WARN and taken.cure == f"gopher ui ui.port={number + 1}" and reached.verdict == OK


def test_a_store_that_is_none(tmp_path: Path) -> None:
    assert checks.store(settings(tmp_path)).verdict == OK
    (tmp_path / "mlflow.db").write_text("not a database, but long enough to look like one" * 40)
    assert checks.store(settings(tmp_path)).verdict == FAIL
    (tmp_path / "mlflow.db").unlink()
    with sqlite3.connect(tmp_path / "mlflow.db") as base:
        base.execute("CREATE TABLE alembic_version (version_num TEXT)")
        base.execute("CREATE TABLE runs (id TEXT)")
        base.execute("INSERT INTO alembic_version VALUES ('abc')")
    base.close()
    assert "schema abc, 0 runs" in checks.store(settings(tmp_path)).found


def test_a_check_that_breaks_does_not_hide_the_others(tmp_path: Path) -> None:
    (tmp_path / "runs" / "x").mkdir(parents=True)
    (tmp_path / "runs" / "x" / "spec.json").write_text("{}")
    (tmp_path / "runs" / "x" / "state.json").write_text("not json")
    found = checks.all_checks(settings(tmp_path))
    assert found["locks"].verdict == WARN and "checkpoints" in found and found["extras"].verdict in (OK, NOTE)
