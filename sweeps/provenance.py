"""Where a run's code and packages come from: recorded with the run, never part of its key."""

import importlib.metadata
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.identity import content_hash
from gopher.record import write_atomic
from sweeps.redact import hide_secrets, redacted

PACKAGES = ("gopher-sweeps", "torch", "ray", "mlflow", "hydra-core", "numpy", "sentencepiece")
SOURCE = Path(__file__).resolve().parent.parent
DIFF_LIMIT = 200_000  # characters kept of uncommitted changes
NAMED = 5  # changed files told in a refusal
# files that tend to hold secrets stay out of the diff; a change in them still counts as one
SECRET_FILES = (
    ".env*",
    "*.env",
    "*.pem",
    "*.key",
    "*.p12",
    "id_*",
    "*secret*",
    "*credential*",
    "*password*",
    ".netrc",
    ".pgpass",
)


@dataclass(frozen=True, kw_only=True)
class CodeState:
    commit: str | None  # None outside a git checkout
    changed: tuple[str, ...] = ()  # files that differ from the commit, new sources included
    diff: str = ""
    unknown: str | None = None  # why git could not say what was changed, where there should be a checkout

    @property
    def dirty(self) -> bool | None:
        return None if self.commit is None or self.unknown else bool(self.changed)


@cache
def code_state(source: Path = SOURCE) -> CodeState:
    """The commit that the package's source is at and its uncommitted changes; all None for an installed wheel."""
    if not (source / "pyproject.toml").exists():
        return CodeState(commit=None)  # an installed wheel, which its version names, maybe inside somebody's repository
    commit = git(source, "rev-parse", "HEAD") if git(source, "ls-files", "--error-unmatch", "pyproject.toml") else None
    if commit is None:
        return CodeState(commit=None, unknown=f"git cannot say at which commit {source} is")
    listed = git(source, "diff", "--name-only", "--relative", "HEAD")
    others = git(source, "ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml")
    if listed is None or others is None:
        return CodeState(commit=commit.strip(), unknown=f"git cannot say what is changed in {source}")
    changed, new = lines(listed), lines(others)
    hidden = [f":(exclude,glob,icase)**/{pattern}" for pattern in SECRET_FILES]
    parts = [git(source, "diff", "--relative", "HEAD", "--", ".", *hidden) or ""]
    shown = lines(git(source, "ls-files", "--others", "--exclude-standard", "--", "*.py", "*.yaml", *hidden))
    for name in shown:
        if sum(map(len, parts)) > DIFF_LIMIT:
            break
        parts.append(git(source, "diff", "--no-index", "--", "/dev/null", name) or "")
    return CodeState(commit=commit.strip(), changed=(*changed, *new), diff=bounded(hide_secrets("".join(parts))))


def git(source: Path, *words: str) -> str | None:
    """What git says in `source`, or None when it fails or is absent."""
    try:
        done = subprocess.run(
            ["git", "-C", str(source), *words], capture_output=True, text=True, errors="replace", timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    differs = done.returncode == 1 and "--no-index" in words  # its way of saying that the files differ
    return done.stdout if done.returncode == 0 or differs else None


def lines(text: str | None) -> list[str]:
    return (text or "").splitlines()


def bounded(diff: str) -> str:
    if len(diff) <= DIFF_LIMIT:
        return diff
    return diff[:DIFF_LIMIT] + f"\n[cut here: {len(diff) - DIFF_LIMIT:,} more characters were changed]\n"


def check_clean(code: CodeState) -> None:
    """Raises `UsageError` naming the files when the code differs from its commit (`code.require_clean=true`), or when
    nobody can tell."""
    if code.unknown:
        raise UsageError(
            f"code.require_clean is true but {code.unknown}; allow git to read it (`git config --global --add "
            f"safe.directory {SOURCE}` where another user owns it), or set code.require_clean=false"
        )
    if code.dirty:
        more = f" and {len(code.changed) - NAMED} more" if len(code.changed) > NAMED else ""
        raise UsageError(
            f"code.require_clean is true but {', '.join(code.changed[:NAMED])}{more} differ from commit {str(code.commit)[:9]}; "
            "commit the changes or set code.require_clean=false"
        )


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
    """What is kept beside a run: code, versions, the resolved config without secrets and its hash."""
    code, config = code_state(), redacted(config)
    return {
        "git": {"commit": code.commit, "dirty": code.dirty, "changed": list(code.changed)},
        "versions": versions(),
        "config": config,
        "config_hash": content_hash(config),
    }


def keep_diff(run_folder: Path) -> None:
    """Keep the uncommitted changes as `code.diff` in a run's folder; no file when there are none.

    The runs of a sweep share one file by hard links below `code/` of the output root, where the file system has them.
    """
    kept, diff = run_folder / "code.diff", code_state().diff
    kept.unlink(missing_ok=True)
    if not diff:
        return
    shared = run_folder.parents[1] / "code" / f"{content_hash(diff)[:12]}.diff"
    if not shared.exists():
        write_atomic(shared, diff)
    try:
        os.link(shared, kept)
    except OSError:
        write_atomic(kept, diff)
