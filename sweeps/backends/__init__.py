"""Where tasks run. Every back end has `start(tasks)`, `submit(task, payload)`, `poll() -> list[Event]`, `cancel(key)` and `close()`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gopher.spec import DataSpec, TokenizerSpec
from sweeps.schedule import Capacity, Event, Task


@dataclass(frozen=True, kw_only=True)
class DataJob:
    """Prepare a tokenizer and its shards below the output root."""

    data: DataSpec
    tokenizer: TokenizerSpec
    output_root: Path


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train the run of one folder to its end."""

    folder: Path


class Backend(Protocol):
    @property
    def capacity(self) -> Capacity: ...

    def warm(self, tasks: list[Task]) -> None: ...

    def submit(self, task: Task, job: DataJob | TrainJob) -> None: ...

    def poll(self) -> list[Event]: ...

    def cancel(self) -> None: ...

    def close(self) -> None: ...
