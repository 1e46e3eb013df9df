"""A run may start from another run's checkpoint: its first loss is the parent's last, its key holds what is in the
checkpoint and not where it lies, and weights that are damaged or of another shape or vocabulary are refused."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch.distributed as dist
from distributed import on_ranks
from studies import TINY, demo_spec, stop_at, write_text
from training import drill, kinds, numbers, spoil_after

from gopher.errors import GopherError, UsageError
from gopher.parent import find_parent
from gopher.record import RunFolder
from gopher.spec import DataSpec, ModelSpec, Placement, RunSpec
from gopher.train import train
from sweeps.study import study_of


def run_in(path: Path, shards: tuple[DataSpec, Path], parent: Path | None = None, **changes: object) -> RunFolder:
    found = find_parent(parent) if parent else None
    more = {"parent": found.key if found else None, **changes}
    spec: RunSpec = dataclasses.replace(demo_spec(), data=shards[0], **more)  # type: ignore[arg-type]
    placement = Placement(
        data_dir=str(shards[1]),
        parent_dir=str(found.folder) if found else None,
        micro_batch_sequences=4,
        checkpoint_every_steps=10,
    )
    folder = RunFolder(path)
    folder.create(spec, placement, {})
    return folder


@pytest.fixture(scope="module")
def parent(shards: tuple[DataSpec, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = run_in(tmp_path_factory.mktemp("runs") / "parent", shards)
    train(folder)
    return folder


def train_rank(rank: int, path: str) -> None:
    train(RunFolder(path), rank=rank, world=dist.get_world_size())


@pytest.mark.parametrize("world", [1, 2])
def test_the_child_begins_where_the_parent_ended(
    parent: RunFolder, shards: tuple[DataSpec, Path], tmp_path: Path, world: int
) -> None:
    child = run_in(tmp_path / "child", shards, parent.path, seed=1)
    on_ranks(world, train_rank, str(child.path))
    losses = child.metrics()["val/loss"]
    assert losses[0] == pytest.approx(parent.metrics()["val/loss"][20], abs=1e-6)
    assert losses[20] < losses[0]  # type: ignore[operator]


def test_a_child_that_goes_back_to_its_start_begins_with_the_parent_again(
    parent: RunFolder, shards: tuple[DataSpec, Path], tmp_path: Path
) -> None:
    plain, child = (run_in(tmp_path / name, shards, parent.path, seed=1) for name in ("plain", "child"))
    train(plain)
    train(drill(child, {"step": 3, "fault": "nan"}))
    assert kinds(child) == [("rewind", 3)] and numbers(child) == numbers(plain)


def test_a_child_of_a_spoiled_parent_saves_nothing(
    shards: tuple[DataSpec, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_after(5, monkeypatch)
    spoiled = run_in(tmp_path / "spoiled", shards)
    train(spoiled, should_stop=stop_at(4))
    child = run_in(tmp_path / "child", shards, spoiled.path, seed=1)
    named = dataclasses.replace(child.placement(), named_checkpoints="log")
    child.create(child.spec(), named, {})
    with pytest.raises(GopherError, match="val/loss nan before its first step"):
        train(child)
    assert not list(child.checkpoints.glob("0*"))


def test_a_child_without_its_parents_folder_is_refused(
    parent: RunFolder, shards: tuple[DataSpec, Path], tmp_path: Path
) -> None:
    child = run_in(tmp_path / "child", shards, parent.path, seed=1)
    child.create(child.spec(), dataclasses.replace(child.placement(), parent_dir=None), {})
    with pytest.raises(UsageError, match="its placement has no parent_dir"):
        train(child)


def test_a_parent_is_known_by_its_content(parent: RunFolder, shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(parent.path, moved)
    newest = find_parent(parent.path)
    assert newest.folder.name == "0000000020" and newest.key == find_parent(moved / "checkpoints" / "0000000020").key
    earlier = find_parent(parent.path / "checkpoints" / "0000000010")
    assert earlier.key != newest.key
    plain, child = (run_in(tmp_path / str(i), shards, p).spec() for i, p in enumerate((None, parent.path)))
    assert plain.key == parent.spec().key != child.key


def test_damaged_or_exchanged_weights_are_refused(
    parent: RunFolder, shards: tuple[DataSpec, Path], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(parent.path, moved)
    child = run_in(tmp_path / "child", shards, moved)
    file = next((moved / "checkpoints" / "0000000020").glob("*.distcp"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(GopherError, match="is not the checkpoint"):
        train(child)


def test_misfits_are_told_before_anything_starts(parent: RunFolder, tmp_path: Path) -> None:
    run = parent.spec()
    with pytest.raises(UsageError, match="no checkpoint"):
        find_parent(tmp_path)
    wide = ModelSpec(n_layers=2, n_heads=4, d_head=16, d_model=64, vocab_size=512, context=64)
    with pytest.raises(UsageError, match=r"another shape .*\(model\.\w+ \d+, not \d+"):
        find_parent(parent.path).check_fits(dataclasses.replace(run, model=wide))
    with pytest.raises(UsageError, match="tokenizer"):
        find_parent(parent.path).check_fits(dataclasses.replace(run, tokenizer_key="u" * 12))
    text = write_text(tmp_path / "text")
    words = ["data=local", f"data.path={text}", f"output_root={tmp_path / 'out'}", *TINY]
    with pytest.raises(UsageError, match=r"another shape .*\(model\.\w+ \d+, not \d+"):
        study_of([*words, "rungs=[54k]", f"parent={parent.path}"])
