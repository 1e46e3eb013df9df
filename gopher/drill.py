"""Planted faults, to rehearse what a run survives. Nothing happens unless somebody puts a drill.json into its folder:

    [{"step": 7, "fault": "nan"}, {"step": 12, "fault": "kill", "times": 1}, {"sequence": 90, "fault": "nan", "times": null}]

`step` is the 0-based batch, the first of `steps` (1) in a row; `sequence` a place of the data order, wherever it comes
up; `times` (1) is how often the fault strikes, null for ever. A strike is on disk before its last step is felt, so that a
fault never repeats through its own kill.
Faults: nan, spike (three nats on top of the loss), hang, kill (SIGKILL), preempt (SIGTERM).
"""

import json
import os
import signal
import time
from dataclasses import dataclass

import torch

from gopher.errors import UsageError, require
from gopher.record import RunFolder, write_atomic
from gopher.spec_json import coerce

FAULTS = ("nan", "spike", "hang", "kill", "preempt")
LASTING = ("nan", "spike")  # those after which the next step comes


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One entry of the file."""

    fault: str
    step: int | None = None
    steps: int = 1
    sequence: int | None = None
    times: int | None = 1

    def __post_init__(self) -> None:
        require(self.fault in FAULTS, f"a drill names the fault '{self.fault}'; use one of {', '.join(FAULTS)}")


class Drill:
    """The faults of one run; the first rank feels them."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._file, self._counts = folder.path / "drill.json", folder.path / "drill.struck.json"
        try:
            written = json.loads(self._file.read_text("utf-8")) if rank == 0 and self._file.exists() else []
        except ValueError as error:
            raise UsageError(f"{self._file} is no JSON ({error}); mend or delete it") from None
        self._faults: tuple[Fault, ...] = coerce(tuple[Fault, ...], written, str(self._file))
        self._struck: dict[str, int] = json.loads(self._counts.read_text("utf-8")) if self._counts.exists() else {}

    def strike(self, step: int, first: int, last: int, nats: torch.Tensor, tokens: int) -> torch.Tensor:
        """`nats`, the loss summed over the `tokens` of this step's batch (sequences first .. last-1), or worse."""
        for i, fault in enumerate(self._faults):
            at = step if fault.step is None else fault.step
            here = at <= step < at + fault.steps if fault.sequence is None else first <= fault.sequence < last
            if not here or (fault.times is not None and self._struck.get(str(i), 0) >= fault.times):
                continue
            if step == at + fault.steps - 1 or fault.fault not in LASTING:
                self._struck[str(i)] = self._struck.get(str(i), 0) + 1
                write_atomic(self._counts, json.dumps(self._struck))
            if fault.fault == "nan":
                nats = nats * float("nan")
            elif fault.fault == "spike":
                nats = nats + 3.0 * tokens
            elif fault.fault == "hang":
                while True:
                    time.sleep(1)
            else:
                os.kill(os.getpid(), signal.SIGKILL if fault.fault == "kill" else signal.SIGTERM)
        return nats
