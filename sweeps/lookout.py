"""What the loop is told at each tick: this sweep's share of the cluster, spent caps, stop requests, hung runs."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from gopher.record import RunFolder
from sweeps import lease, schedule
from sweeps.caps import reached, spent
from sweeps.hang import HangWatch
from sweeps.lease import Holder, Lease
from sweeps.loop import Clock, Outlook
from sweeps.schedule import Capacity, Status, Task
from sweeps.settings import Settings
from sweeps.share import allowance
from sweeps.study import PlannedRun

LOOK_SECONDS = 1.0  # between readings of the run folders


class Lookout:
    """Called by the loop at each tick; reads the disk about once a second. `stopped` is set once a stop was asked for."""

    def __init__(
        self,
        tasks: Sequence[Task],
        runs: Sequence[PlannedRun],
        settings: Settings,
        whole: Capacity,
        own: Lease | None,
        clock: Clock,
    ) -> None:
        self.tasks, self.settings, self.whole, self.own, self.clock = tasks, settings, whole, own, clock
        self.runs = {run.spec.key: run for run in runs}
        self.watch = HangWatch(settings.launch.hang_seconds, clock.now)
        self.stopped = False
        self._last = Outlook(capacity=whole)
        self._looked = float("-inf")
        self._head: tuple[str, float] | None = None  # first waiting task and since when it is that

    def __call__(self, statuses: Mapping[str, Status]) -> Outlook:
        if self.clock.now() - self._looked < LOOK_SECONDS:
            return Outlook(capacity=self._last.capacity, hold=self._last.hold)
        self._looked = self.clock.now()
        active = [k for k in self.runs if statuses[k].phase == schedule.ACTIVE]
        self._last = Outlook(capacity=self._share(statuses), hold=self._hold(active), hung=self._hung(active))
        return self._last

    def _hold(self, active: list[str]) -> str | None:
        """Why nothing more may start; running runs are asked to stop where a person or another driver wants it."""
        if self.own is not None and self.own.lost:
            self.stopped, why = True, "another launch has taken this sweep over"
        elif stop_mark(self.settings).exists():
            self.stopped, why = True, "stopped by `gopher stop`; `gopher resume` goes on"
        else:
            return reached(spent(self.runs.values(), self.settings), self.settings)
        for key in active:
            RunFolder(self.settings.run_dir(key)).request_stop()
        return why

    def _hung(self, active: list[str]) -> dict[str, str]:
        for key in self.runs.keys() - set(active):
            self.watch.forget(key)
        out = {}
        for key in active:
            folder = RunFolder(self.settings.run_dir(key))
            state = folder.state()
            rate = state.tokens_per_second if state else None
            step_seconds = self.runs[key].spec.batch_tokens(state.step) / rate if state and rate else None
            if why := self.watch.hung(folder, step_seconds):
                out[key] = why
                self.watch.forget(key)
        return out

    def _share(self, statuses: Mapping[str, Status]) -> Capacity:
        """What this sweep may use, told to and agreed with the other drivers of the same cluster."""
        if self.own is None:
            return self.whole
        active = [t for t in self.tasks if statuses[t.key].phase == schedule.ACTIVE]
        head = first_waiting(self.tasks, statuses)
        if head is None or self._head is None or self._head[0] != head.key:
            self._head = (head.key, time.time()) if head else None
        self.own.tell(
            cluster=cluster_name(self.settings, self.own.holder.host),
            cpus=sum(t.cpus for t in active),
            gpus=sum(t.gpus for t in active),
            head_cpus=head.cpus if head else 0,
            head_gpus=head.gpus if head else 0,
            head_since=self._head[1] if self._head else None,
        )
        return allowance(self.whole, self.own.holder, neighbours(self.settings, self.own.holder), time.time())


def first_waiting(tasks: Sequence[Task], statuses: Mapping[str, Status]) -> Task | None:
    """The training that would start next if there were room."""
    trains = [t for t in schedule.ready(tasks, statuses) if t.kind == "train"]
    return max(trains, key=lambda t: (t.cost, t.key), default=None)


def cluster_name(settings: Settings, host: str) -> str:
    """Two drivers with the same name share cores: those of one host, or of one Ray cluster."""
    address = settings.cluster.address
    return f"local {host}" if address == "local" else address


def neighbours(settings: Settings, own: Holder) -> list[Holder]:
    """Other live drivers on the same cluster with the same output root."""
    found = [lease.read(path.parent) for path in sorted((settings.root / "sweeps").glob("*/lease.json"))]
    live = [f.holder for f in found if f is not None and f.holder.id != own.id and f.live]
    return [h for h in live if h.cluster == own.cluster]


def stop_mark(settings: Settings) -> Path:
    """The file by which `gopher stop` asks the driver of a sweep to end."""
    return settings.sweep_dir / "stop"
