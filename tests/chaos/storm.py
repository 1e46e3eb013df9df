"""A real sweep under seeded faults: a supervisor that breaks things, starts the driver again, and audits what is left.

Nothing is imitated: the driver is `gopher launch`, the workers are Ray Train's, MLflow is a server. Faults strike by
training steps done, never by the clock, so that a seed gives the same storm on a slow machine.

The loss of a whole Ray node is not among them, because the storm's Ray is its driver's own, on one machine: it is tested
on a cluster of several nodes, in tests/test_survival.py.
"""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from gopher.record import FINISHED, RunFolder, write_atomic
from gopher.stability import SPIKE_STEPS
from sweeps.serve import server_command, server_environment, stop, wait_until_healthy

WORKERS = 2
CHECKPOINT_EVERY = 10
PLANTED = (
    "nan",
    "hang",
    "kill",
    "preempt",
    "spike",
)  # inside the training loop, from drill.json
CALM_STEPS = 250  # before a spike: until then the loss falls so fast that none is called
STRUCK = (
    "worker killed",
    "gang killed",
    "driver killed",
    "Ray's GCS killed",
    "raylet killed",
    "worker preempted",
    "MLflow blocked",
    "MLflow killed",
    "no room for a checkpoint",
    "checkpoint damaged",
    "second launch",
)
SHORT = ("worker killed", "worker preempted", "driver killed", "MLflow blocked")  # the storm of a minute
TIMED = ("perf/", "final/train_seconds", "final/worker_hours")  # numbers of the clock, not of the training
WORDS = [
    "sweep=demo",
    "extra_seeds={54k: [], 84k: []}",
    "data=local",
    "optim.warmup_steps=4",
    "tokenizer.vocab_size=512",
    "evaluation.tokens_per_subset=2048",
    "evaluation.points=3",
    f"placement.workers={WORKERS}",
    f"placement.checkpoint_every_steps={CHECKPOINT_EVERY}",
    "cluster.cpus=2",
    "launch.max_attempts=1000",
    "launch.hang_seconds=10",
    "launch.patience_seconds=30",
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong, `after_steps` more training steps than at the fault before."""

    kind: str
    after_steps: int


def draw_faults(seed: int, count: int, among: Sequence[str] = STRUCK) -> list[Fault]:
    """`count` faults of the kinds `among`, every kind before any comes a second time, in a seeded order."""
    draw = random.Random(seed)
    kinds: list[str] = []
    while len(kinds) < count:
        kinds += draw.sample(among, len(among))
    return [Fault(kind=k, after_steps=draw.randint(3, 12)) for k in kinds[:count]]


def launch_words(verb: str, text: Path, root: Path, more: list[str]) -> list[str]:
    return [sys.executable, "-m", "sweeps.cli", verb, *WORDS, f"data.path={text}", f"output_root={root}", *more]


@dataclass
class Storm:
    """One sweep and whatever is done to it."""

    text: Path
    root: Path
    port: int
    more: list[str]
    draw: random.Random
    workers_per_run: int = WORKERS
    done: Counter[str] = field(default_factory=Counter)
    launches: int = 0
    _driver: subprocess.Popen[bytes] | None = None
    _server: subprocess.Popen[bytes] | None = None

    # ---- what runs

    @contextmanager
    def running(self) -> Iterator["Storm"]:
        self.root.mkdir(parents=True, exist_ok=True)
        self.start_server(wait=False)
        try:
            yield self
        finally:
            if self._driver is not None and self._driver.poll() is None:
                end_tree(self._driver.pid)
            assert self._server is not None
            stop(self._server)

    def start_server(self, wait: bool = True) -> None:
        with open(self.root / "mlflow-server.log", "ab") as log:
            self._server = subprocess.Popen(
                server_command(self.port),
                env=server_environment(f"sqlite:///{self.root / 'server.db'}", self.root),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if wait:
            self.wait_for_server()

    def wait_for_server(self) -> None:
        assert self._server is not None
        wait_until_healthy(self.port, self._server, self.root)

    def command(self) -> list[str]:
        return launch_words("launch", self.text, self.root, [*self.more, f"tracking.uri=http://127.0.0.1:{self.port}"])

    def driver(self) -> "subprocess.Popen[bytes]":
        """The driver, started again whenever it is not alive."""
        if self._driver is None or self._driver.poll() is not None:
            self.launches += 1
            with open(self.root / "driver.log", "ab") as log:
                self._driver = subprocess.Popen(self.command(), stdout=log, stderr=log, start_new_session=True)
        return self._driver

    def steps(self) -> int:
        return sum(s.step for f in self.folders() if (s := f.state()) is not None)

    def folders(self) -> list[RunFolder]:
        return [RunFolder(p) for p in sorted((self.root / "runs").glob("*"))]

    def current(self) -> RunFolder | None:
        """The run that is being trained now, past its first checkpoint."""
        for folder in self.folders():
            state = folder.state()
            if state is not None and state.state == "running" and folder.is_held() and state.step > CHECKPOINT_EVERY:
                return folder
        return None

    def workers(self) -> list[psutil.Process]:
        """Ray Train's worker processes of this driver."""
        found = []
        for process in psutil.Process(self.driver().pid).children(recursive=True):
            with suppress(psutil.Error):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def ended(self) -> bool:
        """Whether a driver went home with all work done."""
        return self._driver is not None and self._driver.poll() == 0

    # ---- the faults

    def wait_for_room(self, steps: int) -> RunFolder | None:
        """The running run once `steps` more steps are done and its gang is whole; None when the sweep ended before."""
        goal = self.steps() + steps
        while not self.ended():
            self.driver()
            folder = self.current()
            with suppress(psutil.Error):
                if folder and self.steps() >= goal and len(self.workers()) == self.workers_per_run:
                    return folder
            if folder and self.steps() < goal - steps - CHECKPOINT_EVERY:
                goal = self.steps() + steps  # a rewind took steps back
            time.sleep(0.05)
        return None

    def strike(self, fault: Fault) -> bool:
        """Do it; False when the sweep had ended already."""
        folder = self.wait_for_room(fault.after_steps)
        if folder is None:
            return False
        with suppress(psutil.Error):
            ACTS[fault.kind](self, folder)
            self.done[fault.kind] += 1
        return True

    def kill_worker(self, folder: RunFolder, number: int = signal.SIGKILL) -> None:
        self.draw.choice(sorted(self.workers(), key=lambda p: p.pid)).send_signal(number)

    def kill_gang(self, folder: RunFolder) -> None:
        for worker in self.workers():
            worker.kill()

    def kill_driver(self, folder: RunFolder) -> None:
        driver = self.driver()
        driver.kill()
        driver.wait()

    def kill_part(self, name: str) -> None:
        """SIGKILL to a process of Ray's own; the driver starts anew with a Ray of its own."""
        for process in psutil.Process(self.driver().pid).children(recursive=True):
            if process.name().startswith(name):
                process.kill()

    def block_server(self, folder: RunFolder) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGSTOP)
        self.pass_steps(20)
        os.killpg(self._server.pid, signal.SIGCONT)

    def kill_server(self, folder: RunFolder) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, signal.SIGKILL)
        self._server.wait()
        self.pass_steps(20)
        self.start_server()

    def pass_steps(self, count: int) -> None:
        """Let training go on for a while, or end."""
        goal, deadline = self.steps() + count, time.monotonic() + 20
        while self.steps() < goal and time.monotonic() < deadline and self.driver().poll() is None:
            time.sleep(0.05)

    def refuse_writes(self, folder: RunFolder) -> None:
        """No file of the workers may grow beyond 64 kB for two checkpoints: their writing fails, small logs go on."""
        workers = self.workers()
        for worker in workers:
            resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        self.pass_steps(2 * CHECKPOINT_EVERY + 2)
        for worker in workers:
            with suppress(ProcessLookupError):
                resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def damage_checkpoint(self, folder: RunFolder) -> None:
        """Truncate or overwrite a file of the newest checkpoint, after the death of those who could still need it."""
        workers = self.workers()
        for worker in workers:
            worker.kill()
        newest = max(folder.checkpoints.glob("[0-9]*"), default=None)
        files = sorted(newest.rglob("*.distcp")) if newest else []
        if files:
            path = self.draw.choice(files)
            content = path.read_bytes()
            half = len(content) // 2
            path.write_bytes(content[:half] + (b"" if self.draw.random() < 0.5 else bytes(len(content) - half)))

    def launch_twice(self, folder: RunFolder) -> None:
        second = subprocess.run(self.command(), capture_output=True, text=True, timeout=120)
        assert second.returncode == 3 and "is being launched by" in second.stderr, second.stderr


ACTS: dict[str, Callable[[Storm, RunFolder], None]] = {
    "worker killed": Storm.kill_worker,
    "gang killed": Storm.kill_gang,
    "driver killed": Storm.kill_driver,
    "Ray's GCS killed": lambda storm, folder: storm.kill_part("gcs_server"),
    "raylet killed": lambda storm, folder: storm.kill_part("raylet"),
    "worker preempted": lambda storm, folder: storm.kill_worker(folder, signal.SIGTERM),
    "MLflow blocked": Storm.block_server,
    "MLflow killed": Storm.kill_server,
    "no room for a checkpoint": Storm.refuse_writes,
    "checkpoint damaged": Storm.damage_checkpoint,
    "second launch": Storm.launch_twice,
}


def end_tree(pid: int) -> None:
    """Kill a process that we started, and its descendants."""
    with suppress(psutil.Error):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.Error):
                process.kill()


def plant(root: Path, keys: list[str], seed: int, kinds: Sequence[str], steps: int) -> None:
    """Faults inside the training loop of every run, at seeded steps; no two share one, and a spike comes late."""
    draw = random.Random(seed + 1)
    for key in keys:
        free, faults = set(range(CHECKPOINT_EVERY + 1, steps - 1)), []
        for kind in sorted(kinds, key=lambda kind: kind != "spike"):
            length = SPIKE_STEPS if kind == "spike" else 1
            first = CALM_STEPS if kind == "spike" else 0
            at = draw.choice(sorted(s for s in free if s >= first and s + length <= steps - 1))
            free -= set(range(at, at + length))
            faults.append({"step": at, "steps": length, "fault": kind})
        write_atomic(root / "runs" / key / "drill.json", json.dumps(faults))


def struck(root: Path) -> Counter[str]:
    """Planted faults that were felt, by the runs' own count."""
    felt: Counter[str] = Counter()
    for folder in (root / "runs").glob("*"):
        counts, faults = folder / "drill.struck.json", folder / "drill.json"
        if counts.exists():
            kinds = json.loads(faults.read_text("utf-8"))
            felt.update(
                kinds[int(i)]["fault"] for i, n in json.loads(counts.read_text("utf-8")).items() for _ in range(n)
            )
    return felt


def spiked(root: Path) -> set[tuple[str, int]]:
    """(run, step) of the rows that say two things by design: the spike's own loss, and the right one after the rewind."""
    rows: set[tuple[str, int]] = set()
    for path in (root / "runs").glob("*/drill.json"):
        for fault in json.loads(path.read_text("utf-8")):
            if fault["fault"] == "spike":
                rows |= {(path.parent.name, fault["step"] + i + 1) for i in range(fault["steps"])}
    return rows


# ---- the audit


@dataclass(frozen=True, kw_only=True)
class Audit:
    """The disturbed sweep against the undisturbed one; rows are (run, metric, step)."""

    faults: dict[str, int]
    runs: int
    runs_finished: int
    launches: int
    rows: int
    rows_equal: int  # to the last bit
    lost_in_folders: int
    doubled_in_folders: int  # rows that an undisturbed run does not have, or that say two different things
    lost_in_mlflow: int
    doubled_in_mlflow: int

    @property
    def clean(self) -> bool:
        bad = self.lost_in_folders + self.doubled_in_folders + self.lost_in_mlflow + self.doubled_in_mlflow
        return bad == 0 and self.rows == self.rows_equal and self.runs == self.runs_finished


Rows = dict[tuple[str, str, int], list[str]]


def folder_rows(root: Path) -> Rows:
    """Every value that was logged for a (run, metric, step), as exact text; the numbers of the clock left out."""
    rows: Rows = {}
    for path in sorted((root / "runs").glob("*")):
        for line in RunFolder(path).metric_lines():
            for name, value in line["metrics"].items():
                if not name.startswith(TIMED):
                    rows.setdefault((path.name, name, line["step"]), []).append(exact(value))
    return rows


def exact(value: float | None) -> str:
    return "missing" if value is None else float(value).hex()


def mlflow_rows(uri: str, sweep: str) -> Rows:
    """The same from MLflow's full metric histories."""
    from sweeps.mlflow_client import import_mlflow

    client: Any = import_mlflow().MlflowClient(uri)
    experiment = client.get_experiment_by_name(sweep)
    rows: Rows = {}
    for run in client.search_runs([experiment.experiment_id], "tags.kind = 'train'"):
        for name in run.data.metrics:
            if not name.startswith(TIMED):
                for m in sorted(client.get_metric_history(run.info.run_id, name), key=lambda m: m.timestamp):
                    rows.setdefault((run.data.tags["trial.id"], name, m.step), []).append(exact(m.value))
    return rows


def audit(calm: Path, storm: Storm, faults: Counter[str]) -> Audit:
    """Everything counted from the files and from MLflow, nothing from memory."""
    want, have = folder_rows(calm), folder_rows(storm.root)
    told = mlflow_rows(f"http://127.0.0.1:{storm.port}", "demo")
    states, by_design = [f.state() for f in storm.folders()], spiked(storm.root)
    twice = {at for at in have if (at[0], at[2]) not in by_design and len(set(have[at])) > 1}
    sent_twice = {at for at, v in told.items() if len(v) > (len(set(v)) if (at[0], at[2]) in by_design else 1)}
    return Audit(
        faults=dict(sorted(faults.items())),
        runs=len({key for key, _, _ in want}),
        runs_finished=sum(s is not None and s.state == FINISHED for s in states),
        launches=storm.launches,
        rows=len(want),
        rows_equal=sum(have.get(at, [""])[-1] == values[-1] == told.get(at, [""])[-1] for at, values in want.items()),
        lost_in_folders=len(want.keys() - have.keys()),
        doubled_in_folders=len(have.keys() - want.keys()) + len(twice),
        lost_in_mlflow=len(want.keys() - told.keys()),
        doubled_in_mlflow=len(told.keys() - want.keys()) + len(sent_twice),
    )


def table_of(result: Audit, seed: int) -> Table:
    table = Table("", "", title=f"{sum(result.faults.values())} faults, seed {seed}", show_header=False)
    for kind, count in result.faults.items():
        table.add_row(f"fault: {kind}", str(count))
    table.add_section()
    table.add_row("runs finished", f"{result.runs_finished} of {result.runs}")
    table.add_row("launches", str(result.launches))
    table.add_row("steps lost, run folders / MLflow", f"{result.lost_in_folders} / {result.lost_in_mlflow}")
    table.add_row("steps doubled, run folders / MLflow", f"{result.doubled_in_folders} / {result.doubled_in_mlflow}")
    table.add_row("rows equal to the undisturbed sweep", f"{result.rows_equal} of {result.rows}")
    return table
