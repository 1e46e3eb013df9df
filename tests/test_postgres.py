"""A sweep tracked in a real Postgres: every number once, replays included, fits read it back, the password stays in the address.

The server is the one of GOPHER_TEST_POSTGRES=postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE, else a private one,
else these tests skip.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from logged_study import SHAPES, SUBSETS, finished_folder, log_steps, queued_folder, study_spec
from postgres import SCHEME, postgres_server, why_none

from analysis.points import points_from_mlflow
from gopher.record import FINISHED, RUNNING, RunFolder, RunState
from sweeps.track import Tracker

pytestmark = [
    pytest.mark.skipif(why_none() is not None, reason=str(why_none())),
    pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SADeprecationWarning"),  # MLflow's own
]
TOKENS = 60_000  # 59 steps


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """The address of a fresh database, dropped afterwards."""
    import psycopg

    name = f"gopher_{uuid.uuid4().hex[:12]}"
    with (
        postgres_server() as server,
        psycopg.connect(server.replace(SCHEME, "postgresql://"), autocommit=True) as connection,
    ):
        connection.execute(f'create database "{name}"')
        yield server.rpartition("/")[0] + f"/{name}"
        connection.execute(f'drop database "{name}" with (force)')


@pytest.fixture(scope="module")
def study(database: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A ladder of four finished runs whose first was sent in pieces, by two drivers, the second of which lost its notes."""
    root = tmp_path_factory.mktemp("study")
    growing = queued_folder(root, study_spec("54k", 0, TOKENS))
    log_steps(growing, 0, 30)
    growing.write_state(RunState(state=RUNNING, step=30, attempt=1))
    first = driver(database, root)
    assert first.mirror(growing) and first.mirror(growing)
    log_steps(growing, 20, growing.spec().steps)  # a resumed run repeats steps 20 to 30
    growing.write_state(RunState(state=FINISHED, step=growing.spec().steps, attempt=2))
    (growing.path / "mlflow.json").unlink()
    folders = [growing, *(finished_folder(root, study_spec(r, 0, TOKENS)) for r in ("121k", "268k", "601k"))]
    assert driver(database, root).flush(folders, 0) is None
    return database, root


def driver(database: str, root: Path) -> Tracker:
    tracker = Tracker(database, "demo", root / "mlartifacts", list(SHAPES))
    tracker.open_sweep("name: demo")
    tracker.write_views(list(SUBSETS))
    return tracker


def test_every_number_is_there_once(study: tuple[str, Path]) -> None:
    from mlflow import MlflowClient

    database, root = study
    client = MlflowClient(database)
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'train'")
    assert len(runs) == 4
    for run in runs:
        folder = RunFolder(root / "runs" / run.data.tags["trial.id"])
        for name, series in folder.metrics().items():
            sent = client.get_metric_history(run.info.run_id, name)
            assert sorted(m.step for m in sent) == [s for s, v in series.items() if v is not None]
            assert all(m.value == pytest.approx(series[m.step]) for m in sent)


def test_a_fit_reads_postgres_and_never_says_the_password(study: tuple[str, Path]) -> None:
    database, root = study
    assert len(points_from_mlflow(database, "demo")) == 4
    words = ["sweep=demo", f"output_root={root}", "tracking=server", "tracking.uri=${oc.env:STUDY_DATABASE}"]
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "fit", *words, "format=json", "bootstrap=50"],
        capture_output=True,
        text=True,
        env={**os.environ, "STUDY_DATABASE": database},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["n_points"] == 4
    password = database.split(":")[2].split("@")[0]
    assert password not in done.stdout + done.stderr
    kept = [p for p in root.rglob("*") if p.is_file() and password.encode() in p.read_bytes()]
    assert kept == []


def test_a_wrong_password_is_one_sentence_without_it(database: str, tmp_path: Path) -> None:
    user, _, place = database.rpartition("@")
    wrong = f"{user.rpartition(':')[0]}:mistaken-word@{place}"
    done = subprocess.run(
        [sys.executable, "-m", "sweeps.cli", "fit", "sweep=demo", f"output_root={tmp_path}", "tracking=server",
         "tracking.uri=${oc.env:STUDY_DATABASE}"],
        capture_output=True, text=True, env={**os.environ, "STUDY_DATABASE": wrong}, timeout=280,
    )  # fmt: skip
    assert done.returncode == 3 and "mistaken-word" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
