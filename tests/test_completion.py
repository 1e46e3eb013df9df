"""The TAB key: every kind of word completes, in a real bash, quickly, and without a heavy import."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gopher.errors import UsageError
from sweeps.cli import VERBS
from sweeps.completion import ZSH, candidates, keys, script
from sweeps.compose import hydra_session, known_keys

VENV = Path(sys.executable).parent


def complete(line: str) -> list[str]:
    return candidates(line, list(VERBS))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("gopher la", ["launch"]),
        ("gopher launch swe", ["sweep="]),
        ("gopher launch sweep=de", ["sweep=demo", "sweep=demo_lr"]),
        ("gopher launch precision=fl", ["precision=float32"]),
        ("gopher plan optim.l", ["optim.lr="]),
        ("gopher plan axes.optim.l", ["axes.optim.lr="]),
        ("gopher plan axes.precision=", ["axes.precision=[bfloat16_sr", "axes.precision=[float32", "axes.precision=[mixed"]),
        ("gopher plan rungs=[54k,84", ["rungs=[54k,84k"]),
        ("gopher plan rungs=[60", ["rungs=[601k"]),
        ("gopher status format=j", ["format=json"]),
        ("gopher logs x fol", ["follow="]),
        ("gopher logs x follow=t", ["follow=true"]),
        ("gopher eval tasks=[ra", ["tasks=[race_h", "tasks=[race_m"]),
        ("gopher eval tasks=[race_h,wino", ["tasks=[race_h,winogender"]),
        ("gopher forecast fr", ["freeze"]),
        ("gopher completion ", ["bash", "zsh"]),
        ("gopher launch nothing.like.it", []),
    ],
)  # fmt: skip
def test_words_complete(line: str, words: list[str]) -> None:
    assert complete(line) == words


def test_an_empty_line_offers_the_verbs() -> None:
    assert complete("gopher ") == sorted(VERBS)


def test_sweeps_and_runs_on_disk_complete(tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "abc123").mkdir(parents=True)
    (tmp_path / "runs" / "abc123" / "spec.json").write_text(json.dumps({"rung": "54k", "seed": 3}))
    (tmp_path / "runs" / "torn").mkdir()
    assert complete(f"gopher fit output_root={tmp_path} name=m") == ["name=mine"]
    assert complete(f"gopher why output_root={tmp_path} ab") == ["abc123"]
    assert complete(f"gopher logs output_root={tmp_path} 54k") == ["54k/3"]
    assert complete(f"gopher why abc123 output_root={tmp_path} ab") == []


def test_every_key_of_a_composition_is_offered() -> None:
    with hydra_session():
        known = known_keys(())
    leaves = {k for k in known if not any(o.startswith(f"{k}.") for o in known)}
    assert leaves - set(keys()) == set()


def test_another_shell_is_refused() -> None:
    with pytest.raises(UsageError, match="say bash or zsh"):
        script(["fish"])


def in_bash(line: str, cwd: Path) -> list[str]:
    text = f"""source <(gopher completion bash); COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; _gopher; printf '%s\\n' "${{COMPREPLY[@]}}" """
    env = {**os.environ, "PATH": f"{VENV}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "--norc", "-c", text], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_in_a_real_bash(tmp_path: Path) -> None:
    assert in_bash("gopher stat", tmp_path) == ["status"]
    assert in_bash("gopher launch sweep=de", tmp_path) == ["demo", "demo_lr"]  # bash has sweep= already
    assert in_bash("gopher launch rungs=[54k,12", tmp_path) == ["[54k,121k"]


@pytest.mark.skipif(shutil.which("zsh") is None, reason="no zsh here")
def test_the_zsh_script_parses() -> None:
    assert subprocess.run(["zsh", "-n"], input=ZSH, text=True).returncode == 0


def test_a_tab_is_quick_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['gopher', '__complete', 'gopher plan optim.']\nfrom sweeps.cli import main\nmain()\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {m.split(".")[0] for m in done.stdout.split("\n")[-2].split()}
    assert not loaded & {
        "torch",
        "ray",
        "mlflow",
        "hydra",
        "omegaconf",
        "numpy",
        "pandas",
        "rich",
        "scipy",
        "matplotlib",
    }
    best = min(timed([VENV / "gopher", "__complete", "gopher plan optim."]) for _ in range(3))
    assert best < 0.5


def timed(words: list[str | Path]) -> float:
    began = time.monotonic()
    subprocess.run(words, capture_output=True, check=True)
    return time.monotonic() - began
