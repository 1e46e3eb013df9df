"""Real ranks for tests: processes with a gloo group that meet through a file."""

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing


def on_ranks(world: int, function: Callable[..., None], *arguments: Any) -> None:
    """Call `function(rank, *arguments)` in `world` processes of one process group; an exception in any is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(join, (world, Path(folder) / "store", function, arguments), nprocs=world)


def join(rank: int, world: int, store: Path, function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        function(rank, *arguments)
    finally:
        dist.destroy_process_group()
