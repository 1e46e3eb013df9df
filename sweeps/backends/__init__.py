"""Where tasks run: one interface, `submit`, `poll`, `cancel`, `logs` and `close`, for Ray and for a simulated cluster."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gopher.errors import SetupError
from gopher.evals.exam import Exam
from gopher.spec import DataSpec, TokenizerSpec
from sweeps.schedule import Capacity, Event, Task

LOST_TIMES = "GOPHER_RAY_LOST"  # environment: how often this launch has lost its cluster


class BackendLost(SetupError):
    """The cluster under a back end is gone; a new launch goes on from the run folders."""


@dataclass(frozen=True, kw_only=True)
class DataJob:
    """Prepare a tokenizer and its shards below the output root."""

    data: DataSpec
    tokenizer: TokenizerSpec
    output_root: Path
    pulse: Path | None = None  # where the task leaves its sign of life, see `sweeps.pulse`


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Train the run of one folder to its end."""

    folder: Path


@dataclass(frozen=True, kw_only=True)
class EvalJob:
    """Score checkpoints of one run on benchmark tasks: the last, and those that the exam names."""

    folder: Path
    exam: Exam
    pulse: Path | None = None


Job = DataJob | TrainJob | EvalJob


class Backend(Protocol):
    @property
    def capacity(self) -> Capacity: ...

    @property
    def running(self) -> Collection[str]:
        """Keys of the trainings that were submitted and have not ended."""
        ...

    @property
    def idle(self) -> tuple[int, int]:
        """Cores and GPUs that workers without a task hold."""
        ...

    def release(self) -> None:
        """Let idle workers go."""
        ...

    def submit(self, task: Task, job: Job) -> None: ...

    def poll(self) -> list[Event]:
        """What ended since the last call. Raises `BackendLost` when the cluster itself is gone."""
        ...

    def cancel(self, key: str, reason: str) -> None:
        """Kill a running task; it ends as a crash for `reason`."""
        ...

    def logs(self, key: str) -> str:
        """The last output of a task."""
        ...

    def close(self) -> None: ...
