"""The lease: one holder, named to the second with its last heartbeat; a dead or silent holder's lease is taken over, once."""

import errno
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gopher.errors import SetupError
from sweeps import lease
from sweeps.lease import STALE_SECONDS, Holder, create, read, remove_stale, use_file


def stranger(**who: object) -> Holder:
    return replace(Holder(id="x", host="elsewhere", pid=1, since=1e9), **who)  # type: ignore[arg-type]


def age(folder: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(folder / "lease.json", (then, then))


def test_a_second_launch_is_told_who_holds_the_sweep(tmp_path: Path) -> None:
    with lease.held(tmp_path, "demo"):
        code = (
            "from pathlib import Path; from sweeps import lease; from gopher.errors import SetupError\n"
            f"try:\n    with lease.held(Path({str(tmp_path)!r}), 'demo'): pass\nexcept SetupError as error: print(error)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert f"sweep 'demo' is being launched by process {os.getpid()} on " in done.stdout
        assert "last heard" in done.stdout and "stop it with `gopher stop`" in done.stdout
    with lease.held(tmp_path, "demo"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lease_of_another_host_holds_until_its_heartbeat_is_old(tmp_path: Path) -> None:
    create(tmp_path, stranger())
    with pytest.raises(SetupError, match="process 1 on elsewhere since 2001"), lease.held(tmp_path, "demo"):
        pass
    age(tmp_path, STALE_SECONDS + 5)
    with lease.held(tmp_path, "demo") as mine:
        assert read(tmp_path).holder.id == mine.holder.id  # type: ignore[union-attr]


def test_the_lease_of_a_dead_process_of_this_host_is_taken_at_once(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from sweeps import lease\n"
        f"with lease.held(Path({str(tmp_path)!r}), 'demo'): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    assert (tmp_path / "lease.json").exists()
    with lease.held(tmp_path, "demo") as mine:
        assert mine.holder.pid == os.getpid()


def test_a_holder_whose_lease_was_taken_over_learns_it_and_leaves_the_new_one(tmp_path: Path) -> None:
    with lease.held(tmp_path, "demo") as mine:
        (tmp_path / "lease.json").write_text(json.dumps(asdict(stranger())))
        mine.tell(cpus=3)
        assert mine.lost
    assert read(tmp_path).holder.id == "x"  # type: ignore[union-attr]


def test_a_fresh_lease_caught_while_removing_a_stale_one_is_put_back(tmp_path: Path) -> None:
    create(tmp_path, stranger(id="fresh"))
    remove_stale(tmp_path, "stale")
    assert read(tmp_path).holder.id == "fresh"  # type: ignore[union-attr]
    remove_stale(tmp_path, "fresh")
    assert read(tmp_path) is None


@pytest.mark.parametrize("torn", ["", '{"id": "x", "ho', '{"id": "x", "unheard_of": 1}'])
def test_a_lease_that_cannot_be_read_holds_until_it_is_old(tmp_path: Path, torn: str) -> None:
    (tmp_path / "lease.json").write_text(torn)
    with pytest.raises(SetupError, match="cannot be read"), lease.held(tmp_path, "demo"):
        pass
    age(tmp_path, STALE_SECONDS + 5)
    with lease.held(tmp_path, "demo") as mine:
        assert read(tmp_path).holder.id == mine.holder.id  # type: ignore[union-attr]
    assert list(tmp_path.iterdir()) == []


def test_neighbours_read_what_a_driver_tells(tmp_path: Path) -> None:
    with lease.held(tmp_path, "demo") as mine:
        mine.tell(cluster="c", cpus=4, head_since=7.0)
        found = read(tmp_path)
    assert found is not None and found.live and (found.holder.cpus, found.holder.head_since) == (4, 7.0)


def test_what_another_version_tells_beside_it_is_passed_over(tmp_path: Path) -> None:
    """Drivers of the first versions also wrote how large their waiting task was."""
    theirs = stranger()
    use_file(tmp_path, "x").write_text(json.dumps(asdict(theirs) | {"cpus": 4, "head_cpus": 8, "head_gpus": 0}))
    (tmp_path / "lease.json").write_text(json.dumps(asdict(theirs) | {"head_cpus": 0, "head_gpus": 0}))
    found = read(tmp_path)
    assert found is not None and found.holder == replace(theirs, cpus=4)
    assert lease.holder_in(tmp_path / "lease.json") == theirs


def test_a_disk_that_refuses_writes_for_a_while_takes_nobodys_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    refused: list[str] = []

    def refuse(*_: object) -> None:
        refused.append("write")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with lease.held(tmp_path, "demo") as mine, monkeypatch.context() as full:
        full.setattr(os, "utime", refuse)
        full.setattr(lease, "write_atomic", refuse)
        mine.tell(cpus=3)
        while len(refused) < 5:
            time.sleep(0.01)
        assert not mine.lost
        full.undo()
        age(tmp_path, 60)
        while read(tmp_path).age_seconds > 30:  # type: ignore[union-attr]
            time.sleep(0.01)  # the heart beats again
        mine.tell(cpus=3)
        assert read(tmp_path).holder.cpus == 3  # type: ignore[union-attr]
        monkeypatch.setattr(lease, "STALE_SECONDS", -1.0)
        full.setattr(os, "utime", refuse)
        while not mine.lost:
            time.sleep(0.01)


def test_a_holder_that_slept_touches_nothing_of_its_successor(tmp_path: Path) -> None:
    """Between its look at the lease and its heartbeat another launch has taken over."""
    with lease.held(tmp_path, "demo") as mine:
        remove_stale(tmp_path, mine.holder.id)
        create(tmp_path, stranger())
        age(tmp_path, 60)
        os.utime(mine._file.fileno())
        assert read(tmp_path).age_seconds > 50 and not mine.lost  # type: ignore[union-attr]
    assert read(tmp_path).holder.id == "x"  # type: ignore[union-attr]


def test_a_stale_lease_beside_a_torn_use_file_is_taken_over(tmp_path: Path) -> None:
    create(tmp_path, stranger())
    use_file(tmp_path, "x").write_text('{"id": "x", "ho')
    age(tmp_path, STALE_SECONDS + 5)
    assert read(tmp_path).holder == stranger()  # type: ignore[union-attr]
    with lease.held(tmp_path, "demo"):
        pass
    assert list(tmp_path.iterdir()) == []
