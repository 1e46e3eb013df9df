"""The wheel carries its configs: built, installed apart from the source, `gopher plan` works from it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAPER = {  # V d + L (13 d^2 + 4 d) + d with a vocabulary of 32,000
    "44m": 43_663_872,
    "117m": 116_626_176,
    "417m": 417_277_440,
    "1_4b": 1_374_357_504,
    "7_1b": 7_110_922_240,
    "280b": 279_702_421_504,
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the wheel's content, nothing of the source tree on its path."""
    dist, target = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(dist)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    wheel = next(dist.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run(pip, check=True, capture_output=True)
    return target


def gopher(site: Path, cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from sweeps.cli import main; sys.exit(main())"
    env = {**os.environ, "PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", code, *words], cwd=cwd, env=env, capture_output=True, text=True)


def test_plan_of_the_paper_ladder_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    done = gopher(installed, tmp_path, "plan", "sweep=gopher", "format=json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert {r["rung"]: r["params_total"] for r in plan["runs"]} == PAPER
    assert all(r["tokens"] >= 3e11 and r["flops_convention"].startswith("causal-exact") for r in plan["runs"])
    assert plan["totals"]["runs"] == 6


def test_the_wheel_is_what_ran(installed: Path, tmp_path: Path) -> None:
    code = "import sweeps.conf_dir as c; print(c.CONF_DIR)"
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(installed / "sweeps" / "conf")


def test_planning_writes_nothing_outside_the_output_root(installed: Path, tmp_path: Path) -> None:
    done = gopher(installed, tmp_path, "plan", "sweep=demo", "output_root=elsewhere")
    assert done.returncode == 0, done.stderr
    assert set(os.listdir(tmp_path)) <= {"elsewhere"}
