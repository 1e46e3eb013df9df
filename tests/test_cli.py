"""The command line: help is plain, every mistake is one sentence with the right exit code, JSON goes to stdout alone."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.cli import VERBS


def gopher(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "sweeps.cli", *words], cwd=cwd, capture_output=True, text=True)


def test_help_lists_every_verb(tmp_path: Path) -> None:
    done = gopher(tmp_path, "--help")
    assert done.returncode == 0 and all(verb in done.stdout for verb in VERBS)
    assert len({line.index(what) for line in done.stdout.splitlines() for what in VERBS.values() if what in line}) == 1


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["plann"], 2, "no verb 'plann'; did you mean 'plan'"),
        (["plan", "--format=json"], 2, "--format=json is no option of gopher plan"),
        (["status", "optim.lrr=1"], 2, "did you mean 'optim.lr'"),
        (["plan", "format=jsn"], 2, "format is 'jsn'; use table or json"),
        (["fit", "points=none.csv"], 2, "none.csv"),
        (["fit", "sweep=demo"], 2, "demo"),
        (["forecast", "freez"], 2, "did you mean 'freeze'"),
        (["forecast", "freeze"], 2, "no target is given"),
        (["plan", "cluster.cpus=0"], 2, "cluster.cpus is 0; give 1 or more"),
        (["plan", "cluster.cpus=-1"], 2, "cluster.cpus is -1; give 1 or more"),
        (["plan", "launch.max_attempts=0"], 2, "launch.max_attempts is 0; give 1 or more"),
        (["plan", "launch.max_gpu_hours=-2"], 2, "launch.max_gpu_hours is -2"),
        (["plan", "launch.max_usd=nan", "cluster.usd_per_cpu_hour=1"], 2, "launch.max_usd is nan; give 0 or more"),
        (["plan", "ui.port=0"], 2, "ui.port is 0"),
        (["launch", "tracking=server", "tracking.uri=./mlruns"], 2, "file store"),
    ],
)
def test_mistakes_are_one_sentence_and_exit_with_their_code(
    tmp_path: Path, words: list[str], code: int, sentence: str
) -> None:
    done = gopher(tmp_path, *words)
    assert done.returncode == code, done.stderr
    assert sentence in done.stderr and done.stderr.startswith("gopher: ") and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_unreachable_mlflow_is_an_error_of_the_environment(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = gopher(tmp_path, "launch", "rungs=[54k]", "tracking=server", f"tracking.uri=http://127.0.0.1:{port}")
    assert done.returncode == 3 and "could not be reached" in done.stderr and done.stderr.count("\n") == 1


def test_plan_and_status_as_json(tmp_path: Path) -> None:
    plan = json.loads(gopher(tmp_path, "plan", "sweep=gopher", "format=json").stdout)
    first = plan["runs"][0]
    named = {
        "key",
        "rung",
        "seed",
        "params_total",
        "params_non_embedding",
        "tokens",
        "steps",
        "train_flops",
        "train_flops_6n",
        "flops_convention",
        "state",
    }
    assert [r["workers"] for r in plan["runs"]] == [1, 4, 16, 64, 256, 4096]
    assert first["worker_bytes"] == {
        "parameters": 4 * 43_663_872,
        "gradients": 4 * 43_663_872,
        "moments": 8 * 43_663_872,
    }
    assert (
        named <= set(first)
        and first["params_total"] == 43_663_872
        and first["state"] == "new"
        and len(plan["runs"]) == 6
    )
    status = json.loads(gopher(tmp_path, "status", "sweep=demo", "format=json").stdout)
    assert status["sweep"] == "demo"
    assert {"key", "rung", "seed", "state", "step", "steps", "val_loss", "reason"} <= set(status["runs"][0])
    assert status["runs"][0]["val_loss"] is None


def test_cfg_prints_the_whole_config(tmp_path: Path) -> None:
    done = gopher(tmp_path, "plan", "--cfg", "optim.lr=0.5")
    assert done.returncode == 0 and "lr: 0.5" in done.stdout and "output_root:" in done.stdout
