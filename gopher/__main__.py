"""`python -m gopher train RUN_DIR`: one run from its spec.json, under torchrun or alone."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from gopher.errors import GopherError, SetupError
from gopher.record import ASKED, PREEMPTED, STOPPED, RunFolder

STOP_OF: dict[int, str] = {
    signal.SIGINT: ASKED,
    signal.SIGTERM: PREEMPTED,
}  # SIGTERM is how schedulers announce the end


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gopher", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    train = verbs.add_parser("train", help="train one run to its end, resuming from its newest checkpoint")
    train.add_argument("run_dir", type=Path, help="folder with spec.json and placement.json")
    arguments = parser.parse_args(argv)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("gopher").setLevel(logging.INFO)  # which attention runs, and why
    try:
        return train_run(RunFolder(arguments.run_dir))
    except GopherError as error:
        print(error, file=sys.stderr)
        return error.exit_code


def train_run(folder: RunFolder) -> int:
    """0 when the run finished, 130 when a signal stopped it at a checkpoint."""
    stopping: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: stopping.append(caught))
    device = folder.placement().device
    import torch
    import torch.distributed as dist

    from gopher.train import train

    if device == "cuda" and not torch.cuda.is_available():
        raise SetupError("device is cuda and torch sees no CUDA device here; use a machine with one, or device=cpu")
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        join_group(device)
    try:
        state = train(
            folder, rank=rank, world=world, should_stop=lambda: STOP_OF.get(stopping[-1]) if stopping else None
        )
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 130 if state.state == STOPPED else 0


def join_group(device: str) -> None:
    """The process group of the torchrun environment; one GPU per local rank."""
    import torch
    import torch.distributed as dist

    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")


if __name__ == "__main__":
    sys.exit(main())
