"""Proves: a checkpoint is whole or absent, damaged ones are passed over, and reading one runs no code.

A torn, truncated or flipped file falls back to the checkpoint before it; a failed write leaves the older ones alone;
any number of ranks reads what another number wrote, bit by bit (2 and 3 real processes).
"""

import json
import os
import pickle
import shutil
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from distributed import on_ranks
from hypothesis import given
from hypothesis import strategies as st
from studies import demo_spec, save

from gopher.checkpoint import Saver, behind_spikes, load_for_inference, newest_complete, restore
from gopher.errors import GopherError, UsageError
from gopher.marker import MARKER, steps_in
from gopher.optim import Adam
from gopher.record import RunFolder
from gopher.shard import build, like, mesh_of, parts, process_group
from gopher.spec import Placement
from gopher.stability import SPIKE_MARGIN_STEPS

torch.set_num_threads(1)
RUN, PLACEMENT = demo_spec(), Placement(data_dir="unused")


def state(seed: int = 0) -> Adam:
    """A sharded model and optimizer with recognisable moments."""
    with mesh_of(PLACEMENT) as mesh:
        adam = Adam(parts(build(demo_spec(seed=seed), PLACEMENT, mesh)), RUN)
    for part, mean, square in zip(adam.parts, adam.mean, adam.square, strict=True):
        mean.copy_(part.local + 1)
        square.copy_(part.local * 2)
    return adam


def whole(adam: Adam) -> list[torch.Tensor]:
    """Every tensor of the state as all ranks together hold it."""
    triples = zip(adam.parts, adam.mean, adam.square, strict=True)
    tensors = [like(part.parameter, x) for part, *moments in triples for x in (part.local, *moments)]
    return [x.full_tensor().clone() for x in tensors]  # type: ignore[attr-defined]


def test_round_trip_into_another_state(tmp_path: Path) -> None:
    with process_group("cpu"):
        written, other = state(seed=0), state(seed=1)
        save(tmp_path, 20, written, RUN.key)
        assert restore(tmp_path, other, RUN.key) == 20
        assert all(torch.equal(a, b) for a, b in zip(whole(written), whole(other), strict=True))


def test_a_whole_model_for_inference(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.create(RUN, PLACEMENT, {})
    with pytest.raises(UsageError, match="has no intact checkpoint; train the run first"):
        load_for_inference(tmp_path)
    with process_group("cpu"):
        adam = state()
        save(folder.checkpoints, 7, adam, RUN.key)
        parameters = whole(adam)[::3]
    model = load_for_inference(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), parameters, strict=True))
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert load_for_inference(tmp_path, step=7, dtype=torch.float64).embedding.dtype == torch.float64
    with pytest.raises(UsageError, match=r"no checkpoint of step 8; it has steps \[7\]"):
        load_for_inference(tmp_path, step=8)
    with process_group("cpu"):
        save(folder.checkpoints, 9, state(), "another run")
    with pytest.raises(GopherError, match="belongs to run another run"):
        load_for_inference(tmp_path)


@pytest.mark.parametrize(
    ("steps", "spare"),
    [([10, 20, 30, 40], 20), ([200, 210, 215], 200), ([1, 2, 3], None), ([200, 400], 200), ([30], 30), ([], None)],
)
def test_one_checkpoint_is_old_enough_for_a_spike(steps: list[int], spare: int | None) -> None:
    assert behind_spikes(steps) == spare


@given(st.lists(st.integers(1, 15), min_size=1, max_size=60), st.integers(1, 3))
def test_frequent_checkpoints_never_lose_the_one_behind_a_spike(gaps: list[int], keep: int) -> None:
    """As `complete` prunes them: whenever a spike is called there is a checkpoint to go back to, not just the start."""
    kept: list[int] = []
    for step in accumulate(gaps):
        kept.append(step)
        spare = behind_spikes(kept)
        kept = [s for s in kept if s in kept[-keep:] or s == spare]
        assert step <= 2 * SPIKE_MARGIN_STEPS + 15 or any(s <= step - SPIKE_MARGIN_STEPS for s in kept)


def test_nothing_to_restore(tmp_path: Path) -> None:
    with process_group("cpu"):
        assert restore(tmp_path / "absent", state(), RUN.key) is None


def test_the_newest_are_kept_and_leftovers_removed(tmp_path: Path) -> None:
    with process_group("cpu"):
        adam = state()
        (tmp_path / ".0000000003.part").mkdir()
        for step in (5, 10, 15):
            save(tmp_path, step, adam, RUN.key)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0000000010", "0000000015"]


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_writer_holds_what_it_wrote_or_read_and_nothing_that_failed(how: str, tmp_path: Path) -> None:
    reasons: list[str] = []

    def before() -> None:
        if reasons:
            raise OSError(reasons.pop())

    with process_group("cpu"):
        placement = Placement(data_dir="-", keep_checkpoints=2, checkpoints=how)
        saver = Saver(tmp_path, state(), RUN.key, placement, 30, before)
        assert saver.restore() is None and not saver.holds(0)
        saver.save(10, {})
        assert saver.holds(10)  # on its way, or there
        saver.finish()
        assert saver.holds(10) and saver.newest == 10
        reasons.append("no room")
        with pytest.raises(GopherError, match="step 20 could not be written .*no room"):
            saver.save(20, {})
            saver.finish()
        assert saver.holds(10) and not saver.holds(20)
        saver.save(20, {})
        saver.finish()
        assert saver.restore(latest=15) == 10
        assert saver.holds(10) and not saver.holds(20)
        saver.close()


@pytest.mark.parametrize(
    "harm", ["truncate", "flip", "remove", "marker {", "marker []", 'marker {"step": 10}', "index"]
)
def test_a_damaged_checkpoint_is_passed_over(harm: str, tmp_path: Path) -> None:
    with process_group("cpu"):
        written, other = state(seed=0), state(seed=1)
        save(tmp_path, 5, written, RUN.key)
        newest = save(tmp_path, 10, written, RUN.key)
        shard = newest / "__0_0.distcp"
        if harm == "truncate":
            os.truncate(shard, shard.stat().st_size - 100)
        elif harm == "flip":
            content = bytearray(shard.read_bytes())
            content[len(content) // 2] ^= 1
            shard.write_bytes(content)
        elif harm == "remove":
            shard.unlink()
        elif harm.startswith("marker "):
            (newest / MARKER).write_text(harm.removeprefix("marker "))
        else:
            (newest / ".metadata").write_bytes(b"")
        with pytest.warns(UserWarning, match="0000000010 is damaged .* using the checkpoint before it"):
            assert restore(tmp_path, other, RUN.key) == 5
        assert all(torch.equal(a, b) for a, b in zip(whole(written), whole(other), strict=True))


def test_an_unfinished_write_is_no_checkpoint(tmp_path: Path) -> None:
    """A folder without its marker, under its part name or its final one, is never taken."""
    with process_group("cpu"):
        made = save(tmp_path, 5, state(), RUN.key)
        shutil.copytree(made, tmp_path / ".0000000009.part")
        shutil.copytree(made, tmp_path / "0000000008")
        (tmp_path / "0000000008" / MARKER).unlink()
        with pytest.warns(UserWarning, match=f"{MARKER} is missing"):
            assert newest_complete(tmp_path) == made


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full to stand for a full disk")
def test_a_full_disk_is_one_sentence_and_harms_nothing(tmp_path: Path) -> None:
    with process_group("cpu"):
        adam = state()
        made = save(tmp_path, 5, adam, RUN.key)
        part = tmp_path / ".0000000010.part"

        class FullDisk(Adam):
            """Puts /dev/full where the shard file will be opened, after leftovers were removed."""

            @property
            def parts(self):  # type: ignore[no-untyped-def]
                part.mkdir(exist_ok=True)
                if not (part / "__0_0.distcp").is_symlink():
                    (part / "__0_0.distcp").symlink_to("/dev/full")
                return self._parts

            @parts.setter
            def parts(self, value):  # type: ignore[no-untyped-def]
                self._parts = value

        full = FullDisk(adam.parts, RUN)
        with pytest.raises(GopherError, match="step 10 could not be written .*No space left.* free some space"):
            save(tmp_path, 10, full, RUN.key)
        assert not part.exists() and newest_complete(tmp_path) == made


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    with process_group("cpu"):
        adam = state()
        save(tmp_path, 5, adam, "another_run")
        with pytest.raises(GopherError, match=f"belongs to run another_run, not to {RUN.key}"):
            restore(tmp_path, adam, RUN.key)


def test_a_checkpoint_of_another_version_is_left_alone(tmp_path: Path) -> None:
    """It is no damaged one: going back to the one before it would lose steps."""
    with process_group("cpu"):
        adam = state()
        save(tmp_path, 5, adam, RUN.key)
        newer = save(tmp_path, 10, adam, RUN.key) / MARKER
        newer.write_text(json.dumps(json.loads(newer.read_text()) | {"format": 9, "new": 1}))
        with pytest.raises(
            UsageError, match="has checkpoint format 9, this version reads 1; use the version that wrote"
        ):
            restore(tmp_path, adam, RUN.key)


def test_fields_that_a_later_version_added_are_passed_over(tmp_path: Path) -> None:
    with process_group("cpu"):
        made = save(tmp_path, 5, state(), RUN.key)
        (made / MARKER).write_text(json.dumps(json.loads((made / MARKER).read_text()) | {"later": 1}))
        assert restore(tmp_path, state(seed=1), RUN.key) == 5


def test_reading_runs_no_code(tmp_path: Path) -> None:
    """An index that would call os.mkdir when unpickled, with honest checksums, is refused and nothing is called."""

    class Trap:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return os.mkdir, (str(tmp_path / "ran"),)

    with process_group("cpu"):
        adam = state()
        made = save(tmp_path, 5, adam, RUN.key)
        (made / ".metadata").write_bytes(pickle.dumps(Trap()))
        forge_marker(made)
        with pytest.raises(GopherError, match=r"names posix\.mkdir"):
            restore(tmp_path, adam, RUN.key)
    assert not (tmp_path / "ran").exists()


def forge_marker(folder: Path) -> None:
    from gopher.checkpoint import fingerprint

    marker = json.loads((folder / MARKER).read_text())
    marker["files"] = {name: fingerprint(folder / name) for name in marker["files"]}
    (folder / MARKER).write_text(json.dumps(marker))


def write(rank: int, folder: str) -> None:
    save(Path(folder), 7, state(seed=0), RUN.key)


def read(rank: int, folder: str) -> None:
    adam = state(seed=1)
    assert restore(Path(folder), adam, RUN.key) == 7
    expected = torch.load(Path(folder) / "expected.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole(adam), expected, strict=True))


@pytest.mark.parametrize(("writers", "readers"), [(2, 3), (3, 1), (1, 2)])
def test_other_numbers_of_ranks_read_the_same_bits(writers: int, readers: int, tmp_path: Path) -> None:
    with process_group("cpu"):
        torch.save(whole(state(seed=0)), tmp_path / "expected.pt")
    on_ranks(writers, write, str(tmp_path))
    assert len(list(steps_in(tmp_path)[-1].glob("*.distcp"))) == writers
    on_ranks(readers, read, str(tmp_path))
