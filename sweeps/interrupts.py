"""Ctrl-C and SIGTERM of a launch: noted while it starts, an exception where they strike once it runs.

An exception in the middle of an import, of which Ray and MLflow do many on two threads, can leave the lock of a module
held for ever.
"""

import os
import signal
from types import TracebackType

NOTICE = b"\nas soon as what starts has started (Ctrl-C again leaves at once)\n"


class Interrupts:
    """A Ctrl-C raises a bare `KeyboardInterrupt`, as ever; SIGTERM, the notice of Slurm and Kubernetes, one that says so."""

    def __init__(self) -> None:
        self._noted: list[int] = []
        self._through = False

    def __enter__(self) -> "Interrupts":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        self.listen()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        if error is None and self._noted and not self._through:  # nothing ran that it could have struck
            raise interrupt(self._noted[-1])

    def listen(self) -> None:
        """Hear both signals; again after Ray's start, which hears SIGTERM itself."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._strike)

    def _strike(self, number: int, frame: object) -> None:
        if self._through:
            raise interrupt(number)
        if number == signal.SIGINT:
            if self._noted:
                os._exit(130)
            os.write(2, NOTICE)
        self._noted.append(number)

    def let_through(self) -> None:
        """From now on they strike; one that was noted does so now."""
        self._through = True
        if self._noted:
            raise interrupt(self._noted[-1])


def interrupt(number: int) -> KeyboardInterrupt:
    return KeyboardInterrupt("SIGTERM") if number == signal.SIGTERM else KeyboardInterrupt()
