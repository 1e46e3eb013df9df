"""Sharded checkpoints that are whole or absent.

checkpoints/<step, 10 digits>/ is written under another name, synced, hashed by the rank that wrote each file, marked
with complete.json and renamed at last. A reader takes the newest folder whose files have the recorded sizes and
SHA-256 sums. Any number of ranks reads what any other number wrote.
"""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from gopher.errors import GopherError, UsageError
from gopher.marker import MARKER, Marker, once_named, read_marker, steps_in
from gopher.model import Transformer
from gopher.optim import Adam, Part
from gopher.parent import find_parent
from gopher.record import RunFolder, write_atomic
from gopher.shard import DTYPES, like
from gopher.shard_files import load_into
from gopher.spec import Placement, RunSpec, named_steps
from gopher.stability import SPIKE_MARGIN_STEPS

Tell = Callable[[str], Any]


class NotWritten(GopherError):
    """A checkpoint could not be written; another try may find room."""


class Saver:
    """Writes one run's checkpoints, between steps or beside them, and keeps the newest few and the named ones.

    All ranks make the same calls. On any failure nothing is left behind, older checkpoints stay, and every rank raises
    the same `GopherError`. With `placement.checkpoints=async` the state is copied, written by a thread over a process
    group of its own, and published by the `finish` after that; at most one is on its way.
    """

    def __init__(
        self,
        folder: Path,
        adam: Adam,
        run_key: str,
        placement: Placement,
        steps: int,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        """`before` is called on the first rank when a checkpoint is about to be published; an OSError keeps it from that."""
        self.folder, self._adam, self._run_key, self._before = folder, adam, run_key, before
        self._keep = placement.keep_checkpoints
        self.named = named_steps(placement, steps) | gather(once_named(folder))[0]  # also after a rewind
        self._thread = ThreadPoolExecutor(max_workers=1) if placement.checkpoints == "async" else None
        self._group = dist.new_group(backend="gloo") if self._thread else None
        self.newest: int | None = None  # step of the newest whole checkpoint of this course
        self._writing: tuple[int, dict[str, Any], Future[Written]] | None = None

    def restore(self, latest: int | None = None, tell: Tell = warnings.warn) -> int | None:
        """`gopher.checkpoint.restore` into the state that is saved."""
        self.newest = restore(self.folder, self._adam, self._run_key, latest, tell)
        return self.newest

    def holds(self, step: int) -> bool:
        """Whether the checkpoint of `step` is the newest one or on its way."""
        return step == self.newest or (self._writing is not None and step == self._writing[0])

    def save(self, step: int, notes: dict[str, Any]) -> None:
        """Write the state after `step` steps, or begin to; `notes` (JSON) is what `notes_of` reads."""
        self.finish()
        writer = begin(self.folder, step)
        if self._thread is None:
            own = outcome(lambda: save_shards(tensors(self._adam), storage_writer=writer), Path(writer.path))
            self._complete(step, notes, own)
            return
        copied: Future[Any]
        try:
            copied = async_save(  # type: ignore[assignment]  # a Future, as no stager of our own is given
                tensors(self._adam), storage_writer=writer, process_group=self._group
            )
        except (CheckpointException, OSError, RuntimeError) as failure:
            copied = Future()
            copied.set_exception(failure)
        self._writing = step, notes, self._thread.submit(outcome, copied.result, Path(writer.path))

    @property
    def written(self) -> bool:
        """Whether this rank's part of a checkpoint that is on its way is on disk; `finish` then waits for nobody."""
        return self._writing is not None and self._writing[2].done()

    def finish(self) -> None:
        """Publish what is on its way, waiting for it."""
        if self._writing is not None:
            (step, notes, future), self._writing = self._writing, None
            self._complete(step, notes, future.result())

    def _complete(self, step: int, notes: dict[str, Any], own: "Written") -> None:
        """Publish what all ranks wrote and drop old checkpoints.

        The newest `keep` stay, the named ones, and the newest that a loss spike after it may go back to.
        """
        folder, first = self.folder, dist.get_rank() == 0
        gathered = gather(own)
        errors = [w.error for w in gathered if w.error]
        if not errors:
            merged = {name: mark for w in gathered for name, mark in w.files.items()}
            marker = Marker(run=self._run_key, step=step, files=merged, notes=notes, named=step in self.named)
            errors = [e for e in gather(publish(folder, step, marker, self._before) if first else None) if e]
        if errors:
            if first:
                remove_parts(folder)
            raise NotWritten(
                f"the checkpoint of step {step} could not be written to {folder} ({errors[0]}); older checkpoints are kept, "
                "free some space there and start the run again"
            )
        self.newest = step
        if first:
            passing = [s for s in (int(p.name) for p in steps_in(folder)) if s <= step and s not in self.named]
            for old in set(passing[: -self._keep]) - {step, behind_spikes(passing)}:
                shutil.rmtree(folder / f"{old:010d}", ignore_errors=True)

    def close(self) -> None:
        """Let go of thread and group; a gang that trains run after run would run out of them."""
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            if self._writing is None:
                dist.destroy_process_group(self._group)


@dataclass(frozen=True, kw_only=True)
class Written:
    """What one rank wrote: file name -> size and SHA-256, or why it could not."""

    files: dict[str, Any]
    error: str | None = None


def begin(folder: Path, step: int) -> FileSystemWriter:
    """The writer into a fresh folder under another name; what a killed writer left is removed."""
    if dist.get_rank() == 0:
        remove_parts(folder)
    dist.barrier()
    return FileSystemWriter(part_of(folder, step), single_file_per_rank=True, sync_files=True)


def outcome(write: Callable[[], Any], part: Path) -> Written:
    """What of this rank is in `part` once `write` has returned, which writes or waits for what is being written."""
    try:
        write()
        return Written(files={path.name: fingerprint(path) for path in own_files(part)})
    except (CheckpointException, OSError, RuntimeError) as failure:
        return Written(files={}, error=reason(failure))


def behind_spikes(steps: list[int]) -> int | None:
    """Of checkpoints at ascending `steps`, the one to go back to should a spike show right after the last; None: the start.

    Until one is old enough it is the first, which will be: otherwise frequent checkpoints would leave only the start.
    """
    old = [s for s in steps if s <= steps[-1] - SPIKE_MARGIN_STEPS]
    return old[-1] if old else steps[0] if steps and steps[0] > SPIKE_MARGIN_STEPS else None


def drop_after(folder: Path, step: int) -> None:
    """Remove checkpoints of a course that was given up: a restart must not take them for the newest."""
    if dist.get_rank() == 0:
        for path in steps_in(folder):
            if int(path.name) > step:
                shutil.rmtree(path, ignore_errors=True)
    dist.barrier()


def publish(folder: Path, step: int, marker: Marker, before: Callable[[], None]) -> str | None:
    """Mark and rename a written checkpoint; None, or why it failed."""
    final, part = folder / f"{step:010d}", part_of(folder, step)
    try:
        before()
        write_atomic(part / MARKER, json.dumps(asdict(marker), indent=1, sort_keys=True) + "\n")
        shutil.rmtree(final, ignore_errors=True)
        os.replace(part, final)
        sync_folder(final.parent)
    except OSError as failure:
        return reason(failure)
    return None


def restore(
    folder: Path, adam: Adam, run_key: str, latest: int | None = None, tell: Tell = warnings.warn
) -> int | None:
    """Load the newest intact checkpoint (of step `latest` or before) into the model and `adam` on all ranks; its step,
    or None without one. Damaged ones are passed over and told."""
    path = newest_complete(folder, latest, tell)
    if path is None:
        return None
    marker = read_marker(path)
    if marker.run != run_key:
        raise UsageError(
            f"{path} belongs to run {marker.run}, not to {run_key}; move it away or use another output folder"
        )
    load_into(tensors(adam), path)
    return marker.step


def notes_of(folder: Path, step: int) -> dict[str, Any]:
    """What `Saver.save` was given beside the state after `step` steps; of step 0, which needs no checkpoint, nothing."""
    return read_marker(folder / f"{step:010d}").notes if step else {}


def adopt(path: Path, parts: Iterable[Part], parent: str) -> None:
    """Load the weights of another run's checkpoint, which must be intact and be the one that `parent` identifies."""
    if find_parent(path).key != parent or any(gather(damage(path))):
        raise UsageError(
            f"{path} is not the checkpoint {parent} that the run was planned with; restore it, or launch with the parent there is"
        )
    load_into({f"model/{part.name}": like(part.parameter, part.local) for part in parts}, path)


def tensors(adam: Adam) -> dict[str, Any]:
    """Parameters and moments as whole (sharded) tensors, sharing memory with the training state."""
    state: dict[str, Any] = {}
    for part, mean, square in zip(adam.parts, adam.mean, adam.square, strict=True):
        state[f"model/{part.name}"] = like(part.parameter, part.local)
        state[f"mean/{part.name}"] = like(part.parameter, mean)
        state[f"square/{part.name}"] = like(part.parameter, square)
    return state


# ---- one whole model


def load_for_inference(
    run_folder: Path | str, *, step: int | None = None, device: str = "cpu", dtype: torch.dtype | None = None
) -> Transformer:
    """The run's model after `step` steps (default: its newest intact checkpoint), on one device, in evaluation mode.

    `dtype` defaults to that of the run's parameters.
    """
    folder = RunFolder(run_folder)
    return model_of(chosen(folder.checkpoints, step), folder.spec(), device, dtype)


def model_of(path: Path, run: RunSpec, device: str = "cpu", dtype: torch.dtype | None = None) -> Transformer:
    """The same of the checkpoint at `path`, which is known to be intact."""
    owner = read_marker(path).run
    if owner != run.key:
        raise UsageError(f"{path} belongs to run {owner}, not to {run.key}; copy whole run folders, not parts of them")
    with torch.device("meta"):
        model = Transformer(run.model)
    model.to(DTYPES[run.precision.parameters]).to_empty(device="cpu")
    state: dict[str, Any] = {f"model/{name}": p.detach() for name, p in model.named_parameters()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # said even when asked for
        load_into(state, path, no_dist=True)
    return model.to(device=device, dtype=dtype).requires_grad_(False).eval()


def chosen(folder: Path, step: int | None) -> Path:
    """The intact checkpoint of `step`, or the newest one."""
    if step is None:
        path = newest_complete(folder)
        if path is None:
            raise UsageError(f"{folder} has no intact checkpoint; train the run first")
        return path
    path, kept = folder / f"{step:010d}", [int(p.name) for p in steps_in(folder)]
    if step not in kept:
        raise UsageError(f"{folder} has no checkpoint of step {step}; it has steps {kept}")
    if problem := damage(path):
        kept.remove(step)
        cure = f"choose another of the steps {kept}" if kept else "restore it, or train the run again"
        raise UsageError(f"{path} is damaged ({problem}); {cure}")
    return path


# ---- which checkpoint


def newest_complete(folder: Path, latest: int | None = None, tell: Tell = warnings.warn) -> Path | None:
    """The newest checkpoint whose files are all intact; a damaged one is told and the one before is tried.

    With a process group every rank checks a share of the files, and all agree.
    """
    for path in reversed(steps_in(folder)):
        if latest is not None and int(path.name) > latest:
            continue
        problems = [p for p in gather(damage(path)) if p]
        if not problems:
            return path
        tell(f"{path} is damaged ({problems[0]}); using the checkpoint before it")
    return None


def damage(path: Path) -> str | None:
    """What is wrong with this rank's share of the files of a checkpoint, or None."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    try:
        files = sorted(read_marker(path).files.items())
        for name, recorded in files[rank::world]:
            if (path / name).stat().st_size != recorded["bytes"]:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {recorded['bytes']}"
            if fingerprint(path / name) != recorded:
                return f"{name} does not have the recorded SHA-256"
    except FileNotFoundError as missing:
        return f"{Path(missing.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as failure:
        return reason(failure)
    return None


# ---- files


def own_files(part: Path) -> list[Path]:
    """What this rank wrote; rank 0 also answers for the index."""
    names = list(part.glob(f"__{dist.get_rank()}_*"))
    return sorted(names + ([part / ".metadata"] if dist.get_rank() == 0 else []))


def fingerprint(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def part_of(folder: Path, step: int) -> Path:
    """A checkpoint while it is being written."""
    return folder / f".{step:010d}.part"


def remove_parts(folder: Path) -> None:
    for part in folder.glob(".*.part"):
        shutil.rmtree(part, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def gather(value: Any) -> list[Any]:
    """`value` of every rank."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return [value]
    out: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(out, value)
    return out


def reason(failure: BaseException) -> str:
    """The innermost cause, one line."""
    if isinstance(failure, CheckpointException) and failure.failures:
        failure = next(iter(failure.failures.values()))[0]
    return f"{type(failure).__name__}: {failure}".splitlines()[0]
