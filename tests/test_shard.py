"""Tensor parallelism and FSDP2 together compute what one rank computes: initial bits, losses, norms, and checkpoints that
any other mesh reads. Whether gathered parameters are freed or kept changes no bit."""

import dataclasses
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed import on_ranks
from studies import demo_spec, save, stop_at

from gopher import shard
from gopher.errors import UsageError
from gopher.model import Transformer
from gopher.optim import Adam
from gopher.record import FINISHED, STOPPED, RunFolder
from gopher.shard_files import load_into
from gopher.size import train_bytes
from gopher.spec import DataSpec, Placement, PrecisionSpec, RunSpec
from gopher.train import train

NARROW = PrecisionSpec(parameters="bfloat16", compute="bfloat16", stochastic_rounding=True)


def spec_of(data: DataSpec, **changes: object) -> RunSpec:
    """Ten steps of a tiny model with four heads."""
    spec = demo_spec(tokens=10_240)
    optim = dataclasses.replace(spec.optim, warmup_steps=2)
    model = dataclasses.replace(spec.model, n_heads=4, d_head=spec.model.d_model // 4)
    return dataclasses.replace(spec, data=data, model=model, optim=optim, **changes)  # type: ignore[arg-type]


def folder_of(path: Path, shards: tuple[DataSpec, Path], world: int, together: int, **changes: object) -> RunFolder:
    folder = RunFolder(path)
    how = Placement(
        data_dir=str(shards[1]),
        workers=world,
        tensor_parallel=together,
        micro_batch_sequences=4,
        checkpoint_every_steps=5,
        log_every_steps=1,
    )
    folder.create(spec_of(shards[0], **changes), how, {})
    return folder


def train_to(rank: int, path: Path, world: int, stop_after: int | None) -> None:
    should_stop = None if stop_after is None else stop_at(stop_after)
    state = train(RunFolder(path), rank=rank, world=world, should_stop=should_stop)
    assert state.state == (FINISHED if stop_after is None else STOPPED)


def losses(folder: RunFolder) -> dict[str, list[float | None]]:
    found = folder.metrics()
    return {name: list(found[name].values()) for name in ("train/loss", "train/grad_norm", "val/loss")}


@pytest.fixture(scope="module")
def alone(shards: tuple[DataSpec, Path], tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = folder_of(tmp_path_factory.mktemp("runs") / "alone", shards, 1, 1)
    train_to(0, folder.path, 1, None)
    return folder


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("world", "together"), [(2, 2), pytest.param(4, 2, marks=SLOW), pytest.param(4, 4, marks=SLOW)]
)
def test_losses_are_those_of_one_rank(
    shards: tuple[DataSpec, Path], alone: RunFolder, tmp_path: Path, world: int, together: int
) -> None:
    folder = folder_of(tmp_path / "run", shards, world, together)
    on_ranks(world, train_to, folder.path, world, None)
    for name, exact in losses(alone).items():
        assert losses(folder)[name] == pytest.approx(exact, abs=1e-5, rel=1e-5), name


def train_quietly(rank: int, path: Path, world: int) -> None:
    warnings.simplefilter("ignore")  # the compiler imports what torch deprecates
    train_to(rank, path, world, None)


@pytest.mark.slow
@pytest.mark.parametrize(("together", "recompute"), [(1, "none"), (2, "none"), (2, "full")])
def test_compiled_blocks_compute_the_same(
    shards: tuple[DataSpec, Path], alone: RunFolder, tmp_path: Path, together: int, recompute: str
) -> None:
    """By torch's own compiler, on two ranks."""
    folder = folder_of(tmp_path / "run", shards, 2, together)
    how = dataclasses.replace(folder.placement(), compile=True, activation_checkpointing=recompute)
    folder.create(folder.spec(), how, {})
    on_ranks(2, train_quietly, folder.path, 2)
    for name, exact in losses(alone).items():
        assert losses(folder)[name] == pytest.approx(exact, abs=1e-5, rel=1e-5), name


def test_a_run_moves_between_meshes(shards: tuple[DataSpec, Path], alone: RunFolder, tmp_path: Path) -> None:
    """Four steps on a mesh of 2 x 2, the rest on one rank."""
    folder = folder_of(tmp_path / "run", shards, 4, 2)
    on_ranks(4, train_to, folder.path, 4, 3)
    folder.create(folder.spec(), dataclasses.replace(folder.placement(), workers=1, tensor_parallel=1), {})
    train_to(0, folder.path, 1, None)
    for name, exact in losses(alone).items():
        assert losses(folder)[name] == pytest.approx(exact, abs=1e-5, rel=1e-5), name


def save_first_steps(rank: int, path: Path, spec: RunSpec, together: int, world: int) -> None:
    """Checkpoint 0: the parameters as initialised. Checkpoint 1: the same after an update by made-up gradients.

    What the ranks hold is what `train_bytes` says of one, on average.
    """
    placement = Placement(data_dir="-", workers=world, tensor_parallel=together)
    with shard.mesh_of(placement) as mesh:
        adam = Adam(shard.parts(shard.build(spec, placement, mesh)), spec)
        held = torch.tensor(float(sum(part.local.nbytes for part in adam.parts)))
        dist.all_reduce(held)
        assert held.item() / world == train_bytes(spec, world, together).parameters
        save(path, 0, adam, spec.key, keep=2)
        for part in adam.parts:
            part.parameter.grad = part.parameter.detach().sign()
        adam.step(1, 1e-2, 1.0)
        save(path, 1, adam, spec.key, keep=2)


@pytest.mark.parametrize("precision", [pytest.param(PrecisionSpec(), marks=SLOW), NARROW], ids=["float32", "rounded"])
def test_initial_values_and_rounding_are_the_same_bits(precision: PrecisionSpec, tmp_path: Path) -> None:
    spec = spec_of(demo_spec().data, precision=precision)
    on_ranks(1, save_first_steps, tmp_path / "one", spec, 1, 1)
    on_ranks(4, save_first_steps, tmp_path / "four", spec, 2, 4)
    for step in (0, 1):
        one, four = (whole(tmp_path / name, spec, step) for name in ("one", "four"))
        for name, value in one.items():
            assert torch.equal(value, four[name]), (step, name)


def whole(folder: Path, spec: RunSpec, step: int) -> dict[str, torch.Tensor]:
    state = {f"model/{n}": p.detach() for n, p in Transformer(spec.model).named_parameters()}
    state = {n: torch.zeros_like(x, dtype=shard.DTYPES[spec.precision.parameters]) for n, x in state.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said even when asked for
        load_into(state, folder / f"{step:010d}", no_dist=True)
    return state


def train_both(rank: int, paths: list[Path]) -> None:
    for path in paths:
        train_to(rank, path, 2, None)


def test_freeing_or_keeping_gathered_parameters_changes_no_bit(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    kept, freed = (folder_of(tmp_path / name, shards, 2, 1) for name in ("never", "always"))
    for folder in (kept, freed):
        how = dataclasses.replace(folder.placement(), reshard_after_forward=folder.path.name)
        folder.create(folder.spec(), how, {})
    on_ranks(2, train_both, [kept.path, freed.path])
    assert losses(kept) == losses(freed)


def test_heads_that_cannot_be_shared_out_are_refused(shards: tuple[DataSpec, Path], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "run", shards, 3, 3)
    with pytest.raises(UsageError, match="tensor_parallel is 3 but .* has 4 heads; use a number that divides them"):
        train(folder, rank=0, world=3)
    with pytest.raises(UsageError, match="workers is 3, not a multiple of placement.tensor_parallel=2"):
        Placement(data_dir="-", workers=3, tensor_parallel=2)
