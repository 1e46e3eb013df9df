"""The main job for real: Ray Train, FSDP2, MLflow. A launch that is killed and launched again, and one with two workers per run,
give the losses of each other to 1e-5; what MLflow holds is what the run folders hold, once; a finished sweep starts nothing."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from studies import TINY, write_text

from gopher.record import RunFolder
from sweeps.status import NEW

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
HANG_SECONDS = 400
WORDS = [
    "sweep=demo",
    "rungs=[54k,121k]",
    "extra_seeds={54k: [], 121k: []}",
    "data=local",
    *TINY,
    "placement.checkpoint_every_steps=4",
]


def command(verb: str, text: Path, root: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-X",
        "faulthandler",
        "-m",
        "sweeps.cli",
        verb,
        *WORDS,
        f"data.path={text}",
        f"output_root={root}",
        *more,
    ]


def gopher(verb: str, text: Path, root: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """The ended command; one that hangs is told with the stacks of all its threads."""
    words = command(verb, text, root, *more)
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err[-20_000:]
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def status(text: Path, root: Path) -> list[dict]:
    return json.loads(gopher("status", text, root, "format=json").stdout)["runs"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def killed_and_resumed(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep whose driver was killed with SIGKILL in mid-run and launched again."""
    root = tmp_path_factory.mktemp("killed")
    driver = subprocess.Popen(command("launch", text, root), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for_step(driver, root, 5)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    gopher("launch", text, root)
    return root


def wait_for_step(driver: subprocess.Popen[bytes], root: Path, step: int) -> None:
    """Until some run has logged `step`."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        states = [RunFolder(p).state() for p in (root / "runs").glob("*")]
        if any(s is not None and s.step >= step for s in states):
            return
        assert driver.poll() is None, "the driver ended by itself"
        time.sleep(0.2)
    raise AssertionError("no run started in time")


@pytest.fixture(scope="module")
def two_workers(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same sweep, undisturbed, with two FSDP workers per run."""
    root = tmp_path_factory.mktemp("two")
    gopher("launch", text, root, "placement.workers=2")
    return root


def losses(root: Path) -> dict[str, dict[int, float | None]]:
    folders = {p.name: RunFolder(p).metrics() for p in sorted((root / "runs").glob("*"))}
    return {
        f"{key} {name}": folders[key][name] for key in folders for name in ("train/loss", "val/loss", "val/bpb_prose")
    }


def test_all_runs_finish_after_the_driver_was_killed(killed_and_resumed: Path, text: Path) -> None:
    rows = status(text, killed_and_resumed)
    assert [r["state"] for r in rows] == ["finished", "finished"]
    assert all(r["step"] == r["steps"] and r["val_loss"] < 6 for r in rows)


def test_world_size_and_interruption_change_no_loss(killed_and_resumed: Path, two_workers: Path) -> None:
    one, two = losses(killed_and_resumed), losses(two_workers)
    assert one.keys() == two.keys() and len(one) == 6
    for name, series in one.items():
        assert series.keys() == two[name].keys(), name
        for step, value in series.items():
            assert value == pytest.approx(two[name][step], abs=1e-5), (name, step)


def test_mlflow_holds_every_value_of_the_run_folders_once(killed_and_resumed: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{killed_and_resumed / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'train'")
    assert len(runs) == 2 and all(r.info.status == "FINISHED" for r in runs)
    for run in runs:
        series = RunFolder(killed_and_resumed / "runs" / run.data.tags["trial.id"]).metrics()
        for name in ("train/loss", "val/loss", "final/val_loss"):
            stored = {m.step: m.value for m in client.get_metric_history(run.info.run_id, name)}
            assert stored == series[name] and len(client.get_metric_history(run.info.run_id, name)) == len(stored)
        assert {"data.sha256", "tokenizer.sha256", "config.hash", "git.commit"} <= run.data.tags.keys()


def test_a_finished_sweep_starts_nothing(killed_and_resumed: Path, text: Path) -> None:
    done = gopher("launch", text, killed_and_resumed)
    assert "nothing to start: all 2 runs" in done.stderr


def test_another_seed_is_new_and_shares_text_and_tokenizer(killed_and_resumed: Path, text: Path) -> None:
    plan = json.loads(gopher("plan", text, killed_and_resumed, "format=json", "axes.seed=[0,1]").stdout)["runs"]
    assert [r["state"] for r in plan if r["seed"] == 0] == ["finished", "finished"]
    assert [r["state"] for r in plan if r["seed"] == 1] == [NEW, NEW]
    assert len(list((killed_and_resumed / "data").iterdir())) == 1


@pytest.mark.slow
def test_a_run_that_cannot_work_is_named_and_the_others_finish(text: Path, killed_and_resumed: Path) -> None:
    """A learning rate that diverges: exit 1, the reason with the run, the good run untouched."""
    words = command(
        "launch", text, killed_and_resumed, "rungs=[54k]", "axes.optim.lr=[0.01,1.0e+9]", "optim.clip_norm=1.0e+9"
    )
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "did not finish" in done.stderr and "lower optim.lr" in done.stderr
    states = {RunFolder(p).spec().optim.lr: RunFolder(p).state() for p in (killed_and_resumed / "runs").glob("*")}
    assert states[1e9] is not None and states[1e9].state == "failed"
