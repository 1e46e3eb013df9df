"""Tells a hung run by its steps: a process that lives, at full utilisation too, is no sign of progress."""

from collections.abc import Callable
from dataclasses import dataclass

from gopher.record import RunFolder

STEPS_OF_GRACE = 200.0  # a run whose steps take long gets more time than hang_seconds
STARTING_SECONDS = 600.0  # Ray's start, imports, compilation, loading a checkpoint


@dataclass(frozen=True, kw_only=True)
class Mark:
    """The last sign of progress that the driver saw, and when, by the driver's own clock."""

    progress: tuple[object, ...]
    seen: float
    starting: bool  # nothing has changed since the run was handed to its gang


class HangWatch:
    """Remembers each running task's progress. Clocks of other hosts do not matter: only change is looked at."""

    def __init__(self, hang_seconds: float, now: Callable[[], float]) -> None:
        self._limit, self._now = hang_seconds, now
        self._marks: dict[str, Mark] = {}

    def hung(
        self, key: str, progress: tuple[object, ...], step_seconds: float | None = None, what: str = "run"
    ) -> str | None:
        """Why the task counts as hung, or None. Called again and again while it runs."""
        now = self._now()
        mark = self._marks.get(key)
        if mark is None or mark.progress != progress:
            self._marks[key] = Mark(progress=progress, seen=now, starting=mark is None)
            return None
        limit = max(self._limit, STEPS_OF_GRACE * (step_seconds or 0.0))
        limit = max(limit, STARTING_SECONDS) if mark.starting else limit
        silent = now - mark.seen
        if silent < limit:
            return None
        return f"no progress for {silent:.0f} s (launch.hang_seconds is {self._limit:g}): the {what} hangs"

    def forget(self, key: str) -> None:
        """The task does not run now; its next start counts from then."""
        self._marks.pop(key, None)


def progress_of(folder: RunFolder) -> tuple[object, ...]:
    """Everything that a working run changes: its step, its log, its checkpoints."""
    state = folder.state()
    try:
        logged = (folder.path / "metrics.jsonl").stat().st_size
    except FileNotFoundError:
        logged = 0
    try:
        saved = folder.checkpoints.stat().st_mtime_ns
    except FileNotFoundError:
        saved = 0
    return (state.step if state else 0, state.updated_at if state else 0.0, logged, saved)
