"""What a training run says of itself while it trains: state, events, metrics and speed, written by rank 0.

A full disk does not end a run: what finds no room waits in memory, in order, and is written as soon as there is some.
"""

import dataclasses
import errno
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

from gopher.record import FINISHED, RUNNING, RunFolder, RunState

PROGRESS_SECONDS = 2.0  # between records of progress


class Journal:
    """What rank 0 writes about a run; the other ranks call the same methods and write nothing."""

    def __init__(self, folder: RunFolder, rank: int, before: RunState | None) -> None:
        self.folder, self.rank = folder, rank
        before = before or RunState(state=RUNNING)
        self.now = dataclasses.replace(
            before, attempt=before.attempt + 1, reason=None, cause=None, tokens_per_second=None
        )
        self.earlier, self.began = before.train_seconds, time.perf_counter()
        self.tokens, self.steps, self.seconds = 0, 0, 0.0
        self.late: list[tuple[Callable[..., None], dict[str, Any]]] = []  # what the disk had no room for, in order

    @property
    def train_seconds(self) -> float:
        return self.earlier + time.perf_counter() - self.began

    def start(self, step: int) -> None:
        """Training begins: seconds count from here (imports and building are not training)."""
        self.began = time.perf_counter()
        self.state(RUNNING, step)

    def progress(self, step: int) -> None:
        """Keep the record's step and time of progress recent; most calls do nothing."""
        if time.time() - self.now.progressed_at > PROGRESS_SECONDS:
            self.state(RUNNING, step)

    def event(self, kind: str, step: int | None, sentence: str, **facts: Any) -> None:
        self._append(self.folder.event, kind=kind, step=step, sentence=sentence, **facts)

    def events(self) -> list[dict[str, Any]]:
        """The run's events as the first rank reads them, on every rank."""
        late = [words for write, words in self.late if write == self.folder.event]
        found = [self.folder.events() + late if self.rank == 0 else None]
        dist.broadcast_object_list(found, src=0)
        return found[0] or []

    def warn(self, sentence: str) -> None:
        """A warning, kept with the run."""
        warnings.warn(sentence, stacklevel=2)
        self.event("warning", self.now.step, sentence)

    def count(self, tokens: int, seconds: float) -> None:
        self.tokens, self.steps, self.seconds = self.tokens + tokens, self.steps + 1, self.seconds + seconds

    def speed(self) -> dict[str, float | None]:
        """Speed of the steps since the last call, evaluation and checkpoints apart."""
        tokens_per_second, step_seconds = self.tokens / self.seconds, self.seconds / self.steps
        self.now = dataclasses.replace(self.now, tokens_per_second=tokens_per_second)
        self.tokens, self.steps, self.seconds = 0, 0, 0.0
        return {"perf/tokens_per_s": tokens_per_second, "perf/step_s": step_seconds}

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        self.now = dataclasses.replace(
            self.now,
            train_loss=metrics.get("train/loss", self.now.train_loss),
            val_loss=metrics.get("val/loss", self.now.val_loss),
        )
        self._append(self.folder.log, step=step, metrics=metrics)

    def _append(self, write: Callable[..., None], **words: Any) -> None:
        """Append to the record; what finds no room waits in memory, and training goes on."""
        if self.rank == 0:
            self.late.append((write, words))
            self._catch_up()

    def sync(self) -> None:
        """Everything logged so far is on disk when this returns; OSError where there is no room."""
        self._catch_up()
        if self.late:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder.path))
        self.folder.sync_log()

    def _catch_up(self) -> None:
        try:
            while self.late:
                write, words = self.late[0]
                write(**words)
                self.late.pop(0)
        except OSError as failure:
            said = f"the record in {self.folder.path} cannot be written ({failure.strerror}); training goes on and tries again"
            warnings.warn(said, stacklevel=2)

    def state(
        self, state: str, step: int | None = None, reason: str | None = None, cause: str | None = None
    ) -> RunState:
        when = self.now.progressed_at if step is None else time.time()
        self.now = dataclasses.replace(
            self.now,
            state=state,
            step=self.now.step if step is None else step,
            reason=reason,
            cause=cause,
            progressed_at=when,
            train_seconds=self.train_seconds,
        )
        if self.rank == 0:
            self._write_state()
        return self.now

    def _write_state(self) -> None:
        """A state that finds no room is passed over for the next one; that of a finished run needs its whole record."""
        self._catch_up()
        try:
            if self.now.state == FINISHED and self.late:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder.path))
            self.folder.write_state(self.now)
        except OSError:
            if self.now.state == FINISHED:
                raise
