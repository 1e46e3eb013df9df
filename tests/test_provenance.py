"""A run's code is known: commit, changed files and their bounded diff without secret files; a demand for clean code is kept."""

import os
import subprocess
from pathlib import Path

import pytest

from gopher.errors import UsageError
from sweeps.provenance import DIFF_LIMIT, CodeState, check_clean, code_state, keep_diff, provenance


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    (source / "pyproject.toml").write_text("[project]\n")
    (source / "train.py").write_text("lr = 1\n")
    (source / ".env.prod").write_text("KEY=old\n")
    (source / ".gitignore").write_text("ignored/\n")
    git(source, "init", "-q")
    git(source, "add", "-A")
    git(source, "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-q", "-m", "first")
    return source


def git(source: Path, *words: str) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    subprocess.run(["git", "-C", str(source), *words], check=True, env=environment)


def test_a_clean_checkout(checkout: Path) -> None:
    state = code_state(checkout)
    assert state.commit and len(state.commit) == 40 and state.dirty is False and state.diff == ""
    check_clean(state)


def test_changes_are_named_and_kept_but_secrets_are_not(checkout: Path) -> None:
    (checkout / "train.py").write_text("lr = 2\nuri = 'postgresql://me:hunter2@host/db'\n")
    (checkout / ".env.prod").write_text("KEY=hunter2\n")
    (checkout / "new.py").write_text("fresh = True\n")
    (checkout / "my_secrets.yaml").write_text("token: hunter2\n")
    (checkout / "ignored").mkdir()
    (checkout / "ignored" / "x.py").write_text("hidden = 1\n")
    state = code_state(checkout)
    assert set(state.changed) == {"train.py", ".env.prod", "new.py", "my_secrets.yaml"} and state.dirty
    assert "+lr = 2" in state.diff and "+fresh = True" in state.diff
    assert "hunter2" not in state.diff and "hidden" not in state.diff
    with pytest.raises(UsageError, match=r"\.env\.prod, train\.py, my_secrets\.yaml, new\.py differ from commit"):
        check_clean(state)


def test_a_huge_diff_is_cut(checkout: Path) -> None:
    (checkout / "train.py").write_text("x = 1\n" * DIFF_LIMIT)
    state = code_state(checkout)
    assert DIFF_LIMIT < len(state.diff) < DIFF_LIMIT + 100 and state.diff.rstrip().endswith("characters were changed]")


def test_outside_a_checkout_nothing_is_claimed(tmp_path: Path) -> None:
    state = code_state(tmp_path)
    assert (state.commit, state.dirty, state.diff) == (None, None, "")
    check_clean(state)  # an installed wheel is its version
    check_clean(CodeState(commit="c0ffee"))


def test_a_checkout_that_git_will_not_read_is_not_clean(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for root in a container, where the source belongs to somebody else."""
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    state = code_state.__wrapped__(checkout)
    assert (state.commit, state.dirty) == (None, None)
    with pytest.raises(UsageError, match="git cannot say at which commit .*safe.directory"):
        check_clean(state)


def test_runs_share_one_diff_on_disk(tmp_path: Path) -> None:
    folders = [tmp_path / "runs" / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir(parents=True)
        keep_diff(folder)
    kept = [folder / "code.diff" for folder in folders]
    if code_state().dirty:
        assert kept[0].read_text("utf-8") == code_state().diff and kept[0].samefile(kept[1])
    else:
        assert not any(path.exists() for path in kept)


def test_what_is_recorded() -> None:
    said = provenance({"optim": {"lr": 0.1}})
    assert set(said) == {"git", "versions", "config", "config_hash"} and said["config"] == {"optim": {"lr": 0.1}}
    assert said["config_hash"] == provenance({"optim": {"lr": 0.1}})["config_hash"] != provenance({})["config_hash"]
