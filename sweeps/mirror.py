"""MLflow's writer on a thread of its own, so that a slow server never holds up the scheduling of runs."""

import threading
from collections.abc import Callable

from gopher.errors import SetupError
from gopher.record import RunFolder
from sweeps.track import Tracker

MIRROR_SECONDS = 3.0


class Mirror:
    """Delivers every few seconds. `reopen` is given when MLflow did not answer at the start: it is called until it does."""

    def __init__(self, tracker: Tracker, folders: list[RunFolder], reopen: Callable[[], None] | None = None) -> None:
        self._tracker, self._folders, self._reopen = tracker, folders, reopen
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def _loop(self) -> None:
        last = False
        while not last:
            last = self._stop.wait(MIRROR_SECONDS)  # after the stop once more: what came since the last time
            if self._away() is None:
                for folder in self._folders:
                    self._tracker.mirror(folder)

    def _away(self) -> str | None:
        """None once MLflow has answered, else why not."""
        if self._reopen is not None:
            try:
                self._reopen()
            except SetupError as away:
                return str(away)
            self._reopen = None
        return None

    def hurry(self) -> None:
        """Nothing new will come: the thread delivers the rest, whatever else there is to do meanwhile."""
        self._stop.set()

    def finish(self, patience_seconds: float) -> str | None:
        """Deliver the rest; a sentence about what could not be delivered, or None."""
        self._stop.set()
        self._thread.join(timeout=patience_seconds)
        silent = f"MLflow did not answer within {patience_seconds:g} s"  # the thread still asks it
        if away := silent if self._thread.is_alive() and self._reopen else self._away():
            return f"{away}; everything is kept in the run folders, and the next launch sends it"
        return self._tracker.flush(self._folders, patience_seconds)
