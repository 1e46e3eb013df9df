"""What the loop is told at each tick: this sweep's share of the cluster, spent caps, stop requests, hung runs, and runs
that it shares with a sweep which has them in hand."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from gopher.record import FINISHED, RunFolder
from sweeps import lease, pulse, schedule
from sweeps.caps import NOTHING, Spent, reached, spent
from sweeps.folders import make_folders
from sweeps.hang import HangWatch, progress_of
from sweeps.lease import Holder, Lease
from sweeps.loop import Clock, Outlook
from sweeps.packing import LAST_RUNS, expected_seconds
from sweeps.schedule import Capacity, Status, Task
from sweeps.settings import Settings
from sweeps.share import allowance
from sweeps.study import PlannedRun

LOOK_SECONDS = 1.0  # between readings of the run folders
MEASURED_PART = 0.05  # of a run's steps, before its speed says how long the whole takes
TAKEN_OVER = "another launch has taken this sweep over"


class Lookout:
    """Called by the loop at each tick; reads the disk about once a second, and asks about runs that would start now."""

    def __init__(
        self,
        tasks: Sequence[Task],
        runs: Sequence[PlannedRun],
        settings: Settings,
        whole: Capacity,
        own: Lease | None,
        clock: Clock,
        *,
        earlier: Spent = NOTHING,
        idle: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:
        """`earlier`: what the sweep's other runs, finished before, have used. `idle`: cores and GPUs held without a task."""
        self.earlier, self.idle = earlier, idle
        self.tasks, self.settings, self.whole, self.own, self.clock = tasks, settings, whole, own, clock
        self.runs = {run.spec.key: run for run in runs}
        self.watch = HangWatch(settings.launch.hang_seconds, clock.now)
        self._costs = {t.key: t.cost for t in tasks if t.key in self.runs}
        self._measured: dict[str, float] = {}  # run -> seconds of the whole, by its own speed so far
        self._last = Outlook(capacity=whole)
        self._looked = float("-inf")
        self._elsewhere: frozenset[str] = frozenset()
        self._head: tuple[str, float] | None = None  # first waiting task and since when it is that

    def __call__(self, statuses: Mapping[str, Status]) -> Outlook:
        """What the folders say; while they cannot be read or written, nothing new starts and what runs goes on."""
        try:
            return self._look(statuses)
        except OSError as failure:
            nothing = Capacity(cpus=0, gpus=0, max_parallel=0)
            where = f"{failure.filename or self.settings.root} ({failure.strerror})"
            return Outlook(
                capacity=nothing,
                hold=TAKEN_OVER if self._taken_over else self._last.hold,
                hung=dict.fromkeys(self._active(statuses), TAKEN_OVER) if self._taken_over else {},
                elsewhere=self._elsewhere,
                trouble=f"{where} cannot be read or written; nothing new starts until it can",
            )

    def _active(self, statuses: Mapping[str, Status]) -> list[str]:
        return [t.key for t in self.tasks if statuses[t.key].phase == schedule.ACTIVE]

    def _look(self, statuses: Mapping[str, Status]) -> Outlook:
        if self.clock.now() - self._looked < LOOK_SECONDS:
            elsewhere = self._others(statuses, self._last.capacity)
            return replace(self._last, hung={}, elsewhere=elsewhere)
        self._looked = self.clock.now()
        active = self._active(statuses)
        capacity, hold = self._share(statuses), self._hold(active)
        self._last = Outlook(capacity=capacity, hold=hold, hung=self._hung(active), seconds=self._seconds(statuses))
        self._last = replace(self._last, elsewhere=self._others(statuses, capacity))
        return self._last

    def _hold(self, active: list[str]) -> str | None:
        """Why nothing more may start; running runs are asked to stop where a person or another driver wants it."""
        if self._taken_over:
            return TAKEN_OVER
        if self.own is None or not stop_asked(self.settings, self.own):
            return reached(spent(self.runs.values(), self.settings, self.earlier), self.settings)
        for folder in map(self._folder, self.runs.keys() & set(active)):
            if folder.is_held():  # one that begins is asked at a later look, one that has just ended never
                folder.request_stop()
        return "stopped by `gopher stop`; `gopher resume` goes on"

    @property
    def _taken_over(self) -> bool:
        return self.own is not None and self.own.lost

    def _folder(self, key: str) -> RunFolder:
        return RunFolder(self.settings.run_dir(key))

    def _others(self, statuses: Mapping[str, Status], capacity: Capacity) -> frozenset[str]:
        """Runs that would start now but that another process trains: a sweep that shares them, or a driver's orphan.

        They are waited for. One that was left unfinished is queued anew, as its folder says how the other ran it.
        """
        if self._taken_over:
            return self._elsewhere
        before = [k for k in self._elsewhere if statuses[k].phase == schedule.WAITING]
        held = {k for k in before if self._folder(k).is_held()}
        left = [self.runs[k] for k in before if k not in held and not self._finished(k)]
        make_folders(left, self.settings)
        while True:
            here = [t for t in self.tasks if t.key not in held]
            starting = {t.key for t in schedule.decide(here, statuses, capacity, self._last.seconds)} & self.runs.keys()
            more = {k for k in starting if self._folder(k).is_held()}
            held |= more
            if not more:
                self._elsewhere = frozenset(held)
                return self._elsewhere

    def _finished(self, key: str) -> bool:
        state = self._folder(key).state()
        return state is not None and state.state == FINISHED

    def _hung(self, active: list[str]) -> dict[str, str]:
        """Tasks to be killed. A run of a sweep that was taken over is the new driver's: no mark may be left in its folder."""
        if self._taken_over:
            return dict.fromkeys(active, TAKEN_OVER)
        for key in {t.key for t in self.tasks} - set(active):
            self.watch.forget(key)
        out = {}
        for key in active:
            if key not in self.runs:
                count = pulse.read(pulse_file(self.settings, key))
                if count is None:  # it waits for a place on a busy cluster
                    self.watch.forget(key)
                elif why := self.watch.hung(key, (count,), what="task"):
                    out[key] = why
                    self.watch.forget(key)
                continue
            folder = self._folder(key)
            state = folder.state()
            rate = state.tokens_per_second if state else None
            step_seconds = self.runs[key].spec.batch_tokens(state.step) / rate if state and rate else None
            if why := self.watch.hung(key, progress_of(folder), step_seconds):
                out[key] = why
                self.watch.forget(key)
        return out

    def _seconds(self, statuses: Mapping[str, Status]) -> dict[str, float]:
        """How long the last runs will take from now on, by the speeds of those that have trained for a while."""
        spent = {key: 0.0 for key in self.runs if statuses[key].phase == schedule.WAITING}
        if not 0 < len(spent) <= LAST_RUNS + self.whole.cpus:  # few enough soon
            return {}
        for key in self.runs.keys() & set(self._active(statuses)):
            state, steps = self._folder(key).state(), self.runs[key].spec.steps
            spent[key] = state.train_seconds if state else 0.0
            if state and spent[key] and state.step >= MEASURED_PART * steps:
                self._measured[key] = spent[key] * steps / state.step
        whole = expected_seconds(self._costs, self._measured)
        return {key: max(0.0, whole[key] - past) for key, past in spent.items()} if whole else {}

    def _share(self, statuses: Mapping[str, Status]) -> Capacity:
        """What this sweep may use, told to and agreed with the other drivers of the same cluster."""
        if self.own is None:
            return self.whole
        active = [t for t in self.tasks if statuses[t.key].phase == schedule.ACTIVE]
        head = first_waiting(self.tasks, statuses)
        if head is None or self._head is None or self._head[0] != head.key:
            self._head = (head.key, time.time()) if head else None
        cpus, gpus, idle = sum(t.cpus for t in active), sum(t.gpus for t in active), self.idle()
        self.own.tell(
            cluster=cluster_name(self.settings, self.own.holder.host),
            cpus=cpus + idle[0],
            gpus=gpus + idle[1],
            head_since=self._head[1] if self._head else None,
        )
        # what is idle is counted as used by others alone: it may be needed for this sweep's next run, or be given back
        mine = replace(self.own.holder, cpus=cpus, gpus=gpus)
        return allowance(self.whole, mine, neighbours(self.settings, mine), time.time())


def room_at_start(whole: Capacity, settings: Settings, own: Lease) -> Capacity:
    """What a launch may take before its first look at its own runs."""
    own.tell(cluster=cluster_name(settings, own.holder.host))
    return allowance(whole, own.holder, neighbours(settings, own.holder), time.time())


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


def pulse_file(settings: Settings, key: str) -> Path:
    """The sign of life of a task that is no training."""
    return settings.sweep_dir / "pulse" / key


def stop_mark(settings: Settings) -> Path:
    """The file by which `gopher stop` asks the driver of a sweep to end."""
    return settings.sweep_dir / "stop"


def stop_asked(settings: Settings, own: Lease) -> bool:
    """Whether the driver that holds `own` shall end; a mark that names another holder was meant for that one."""
    try:
        return stop_mark(settings).read_text("utf-8") == own.holder.id
    except FileNotFoundError:
        return False
