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

import torch

from gopher.errors import UsageError
from gopher.record import RunFolder, write_atomic

FAULTS = ("nan", "spike", "hang", "kill", "preempt")
LASTING = ("nan", "spike")  # those after which the next step comes


class Drill:
    """The faults of one run; the first rank feels them."""

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._file, self._counts = folder.path / "drill.json", folder.path / "drill.struck.json"
        try:
            self._faults = json.loads(self._file.read_text("utf-8")) if rank == 0 and self._file.exists() else []
        except ValueError as error:
            raise UsageError(f"{self._file} is no JSON ({error}); mend or delete it") from None
        self._struck: dict[str, int] = json.loads(self._counts.read_text("utf-8")) if self._counts.exists() else {}
        for fault in self._faults:
            if fault.get("fault") not in FAULTS:
                raise UsageError(f"{self._file} names the fault {fault.get('fault')!r}; use one of {', '.join(FAULTS)}")

    def strike(self, step: int, first: int, last: int, nats: torch.Tensor, tokens: int) -> torch.Tensor:
        """`nats`, the loss summed over the `tokens` of this step's batch (sequences first .. last-1), or worse."""
        for i, fault in enumerate(self._faults):
            at, steps = fault.get("step", step), fault.get("steps", 1)
            here = first <= fault["sequence"] < last if "sequence" in fault else at <= step < at + steps
            times = fault.get("times", 1)
            if not here or (times is not None and self._struck.get(str(i), 0) >= times):
                continue
            if step == at + steps - 1 or fault["fault"] not in LASTING:
                self._struck[str(i)] = self._struck.get(str(i), 0) + 1
                write_atomic(self._counts, json.dumps(self._struck))
            if fault["fault"] == "nan":
                nats = nats * float("nan")
            elif fault["fault"] == "spike":
                nats = nats + 3.0 * tokens
            elif fault["fault"] == "hang":
                while True:
                    time.sleep(1)
            else:
                os.kill(os.getpid(), signal.SIGKILL if fault["fault"] == "kill" else signal.SIGTERM)
        return nats
