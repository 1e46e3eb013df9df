"""Where a run's code and packages come from: recorded with the run, never part of its key."""

import importlib.metadata
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gopher.identity import content_hash

PACKAGES = ("gopher-sweeps", "torch", "ray", "mlflow", "hydra-core", "numpy", "sentencepiece")
DIFF_LIMIT = 200_000  # characters kept of an uncommitted diff


@dataclass(frozen=True, kw_only=True)
class CodeState:
    commit: str | None  # None outside a git checkout
    dirty: bool | None
    diff: str


@cache
def code_state() -> CodeState:
    """The commit that the package's source is at and its uncommitted changes; all None for an installed wheel."""
    source = Path(__file__).resolve().parent.parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    tracked = git(
        "ls-files", "--error-unmatch", "pyproject.toml"
    )  # a wheel inside somebody's repository is not our checkout
    commit = git("rev-parse", "HEAD") if tracked else None
    if commit is None:
        return CodeState(commit=None, dirty=None, diff="")
    diff = git("diff", "HEAD") or ""
    untracked = git("ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml") or ""
    return CodeState(commit=commit.strip(), dirty=bool(diff or untracked), diff=diff[:DIFF_LIMIT])


@cache
def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """What is kept beside a run: code, versions, the resolved config and its hash."""
    code = code_state()
    return {
        "git": {"commit": code.commit, "dirty": code.dirty, "diff": code.diff},
        "versions": versions(),
        "config": config,
        "config_hash": content_hash(config),
    }
