"""Ray runs the tasks: data preparation as Ray tasks, training on warm gangs of Ray Train workers.

A gang is one `TorchTrainer` whose workers take runs one after another from a mailbox, each on the process group that
Ray Train set up. A large run is a gang of its own; the small rungs of a laptop ladder share a gang per core, so that
Ray's ten seconds of start-up are paid once per core and not once per run. There is one code path for both.

The run folder is the only channel for results: metrics, state and checkpoints are files there, so nothing is lost with
a worker, a gang or the driver, and Ray's own checkpoint registry isn't needed.
"""

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopher.errors import GopherError, SetupError
from gopher.record import FINISHED, RunFolder
from sweeps.backends import DataJob, TrainJob
from sweeps.schedule import Capacity, Event, Task
from sweeps.settings import ClusterSettings

# set before ray is imported, here and in its workers; what the user exported wins
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would let anything else on the machine starve the training
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
OBJECT_STORE_BYTES = 100 * 2**20  # runs talk through files; Ray's store carries only messages
GANG_END_SECONDS = 20


def import_ray() -> Any:
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import ray

    return ray


class RayBackend:
    """A started Ray with its gangs. Results arrive through `poll`, in the driver's own thread."""

    def __init__(self, cluster: ClusterSettings, scratch: Path) -> None:
        self.ray = import_ray()
        self._connect(cluster)
        self._scratch = scratch  # Ray Train insists on a storage path; nothing of ours is kept there
        self._events: list[Event] = []
        self._events_lock = threading.Lock()
        self._data: dict[Any, str] = {}  # object reference -> task key
        self._gangs: list[Gang] = []

    def _connect(self, cluster: ClusterSettings) -> None:
        local = cluster.address == "local"
        options: dict[str, Any] = {"address": cluster.address, "log_to_driver": False, "logging_level": logging.ERROR}
        if not local:  # a local Ray inherits our environment
            options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
        if local:
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"num_cpus": cluster.cpus or usable_cpus(), "num_gpus": cluster.gpus}
        try:
            self.ray.init(**options)
        except (ConnectionError, TimeoutError, ValueError, RuntimeError, OSError) as error:
            cure = (
                "see whether /tmp has space"
                if local
                else "start one with `ray start --head`, set RAY_ADDRESS, or use cluster=local"
            )
            raise SetupError(f"Ray at '{cluster.address}' could not be reached ({first_line(error)}); {cure}") from None

    @property
    def capacity(self) -> Capacity:
        total = self.ray.cluster_resources()
        return Capacity(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)))

    def warm(self, tasks: list[Task]) -> None:
        """Start the gangs of `tasks` before their data is ready."""
        self._gangs += [Gang(self.ray, task, self._scratch, self._report) for task in tasks]

    def submit(self, task: Task, job: DataJob | TrainJob) -> None:
        if isinstance(job, DataJob):
            remote = self.ray.remote(num_cpus=0, max_retries=0)(prepare_data)
            self._data[remote.remote(job)] = task.key
            return
        self._gang_for(task).give(task.key, job.folder)

    def _gang_for(self, task: Task) -> "Gang":
        """An idle gang of the right shape; otherwise a new one, after idle gangs of other shapes have given their cores back."""
        idle = [g for g in self._gangs if g.idle]
        for gang in idle:
            if gang.shape == gang_shape(task):
                return gang
        for gang in idle:
            gang.tell_end()
            gang.wait_for_end()
        self._gangs = [g for g in self._gangs if g.key is not None or not g.closed]
        self._gangs.append(Gang(self.ray, task, self._scratch, self._report))
        return self._gangs[-1]

    def _report(self, event: Event) -> None:
        with self._events_lock:
            self._events.append(event)

    def poll(self) -> list[Event]:
        done, _ = self.ray.wait(list(self._data), timeout=0) if self._data else ([], None)
        for reference in done:
            self._report(self._data_event(reference, self._data.pop(reference)))
        for gang in self._gangs:
            gang.collect()
        with self._events_lock:
            events, self._events = self._events, []
        return events

    def _data_event(self, reference: Any, key: str) -> Event:
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            code = cause.exit_code if isinstance(cause, GopherError) else 1
            return Event(key=key, ok=False, reason=first_line(cause), retry=code == 1, exit_code=code)
        except self.ray.exceptions.RayError as error:
            return Event(key=key, ok=False, reason=first_line(error), retry=True)
        return Event(key=key, ok=True)

    def cancel(self) -> None:
        """Ask every running training to checkpoint and stop."""
        for gang in self._gangs:
            if gang.folder is not None:
                RunFolder(gang.folder).request_stop()

    def close(self) -> None:
        """End the gangs, then Ray: shutting down under a thread that still talks to it would end this process too."""
        for gang in self._gangs:
            gang.tell_end()
        for gang in self._gangs:
            gang.wait_for_end()
        with contextlib.suppress(Exception):
            self.ray.shutdown()


def gang_shape(task: Task) -> tuple[int, int, int]:
    return (task.workers, task.cpus_per_worker, task.gpus_per_worker)


@dataclass
class Gang:
    """One TorchTrainer that works through runs. The driver thread gives and collects; a daemon thread holds `fit()`."""

    ray: Any
    task: Task
    scratch: Path
    report: Callable[[Event], None]
    key: str | None = None  # the run being trained
    folder: Path | None = None
    closed: bool = False
    given: int = 0
    _done: Any = None  # reference that resolves when the current run is done
    _error: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.shape = gang_shape(self.task)
        self._mailbox = self.ray.remote(num_cpus=0, max_concurrency=2 * self.task.workers + 8)(Mailbox).remote()
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        return self.key is None and not self.closed

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig

        workers, cpus, gpus = self.shape
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        name = f"gang-{id(self):x}-{os.getpid()}"
        trainer = lean_trainer()(
            work_through_runs,
            train_loop_config={"mailbox": self._mailbox},
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker=resources, use_gpu=bool(gpus)),
            run_config=RunConfig(
                name=name, storage_path=str(self.scratch), failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            trainer.fit()
            self._error.append("the gang ended")
        except Exception as error:  # any end of the gang is the run's crash, told by `collect`
            self._error.append(first_line(error))

    def give(self, key: str, folder: Path) -> None:
        """Hand the next run to the workers."""
        self.key, self.folder = key, folder
        self.ray.get(self._mailbox.put.remote(str(folder)))
        self._done = self._mailbox.result.remote(self.given)
        self.given += 1

    def collect(self) -> None:
        """Report the current run if it is done, or if the gang died under it."""
        if self.key is None or self.folder is None:
            return
        ready, _ = self.ray.wait([self._done], timeout=0)
        if ready:
            outcome = self.ray.get(ready[0])
            self.closed = self.shape[0] > 1 and not outcome["ok"]
            self._settle(Event(key=self.key, **outcome))
        elif self._error:
            self.closed = True
            state = RunFolder(self.folder).state()
            finished = state is not None and state.state == FINISHED
            reason = f"a worker died: {self._error[0]}"
            self._settle(Event(key=self.key, ok=finished, reason=None if finished else reason, retry=True))

    def _settle(self, event: Event) -> None:
        self.key = self.folder = None
        self.report(event)

    def tell_end(self) -> None:
        """Ask the workers to leave once their current run is done."""
        self.closed = True
        with contextlib.suppress(Exception):
            self.ray.get(self._mailbox.put.remote(None), timeout=GANG_END_SECONDS)

    def wait_for_end(self) -> None:
        """Wait for the workers to have left; their cores are free then. Workers that do not leave are killed."""
        self._thread.join(timeout=GANG_END_SECONDS)
        if self._thread.is_alive():
            with contextlib.suppress(Exception):
                self.ray.kill(self._mailbox)
            self._thread.join(timeout=GANG_END_SECONDS)


def lean_trainer() -> Any:
    """`TorchTrainer` without two of the actors that it starts per gang: 6 CPU seconds each pair on a laptop.

    One hands out Ray datasets, of which a run has none. The other frees the gang's cores should the trainer die alone;
    here trainer and driver end together, and Ray frees what a driver held.
    """
    from ray.train.torch import TorchTrainer

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            unneeded = {"DatasetsCallback", "PlacementGroupCleanerCallback"}
            return [c for c in super()._create_default_callbacks() if type(c).__name__ not in unneeded]

    return LeanTrainer


class Mailbox:
    """Actor between driver and gang: item i is a run folder, or None for the end; result i comes from rank 0."""

    def __init__(self) -> None:
        import asyncio

        self._items: list[str | None] = []
        self._results: dict[int, dict[str, Any]] = {}
        self._changed = asyncio.Condition()

    async def put(self, item: str | None) -> None:
        async with self._changed:
            self._items.append(item)
            self._changed.notify_all()

    async def get(self, index: int) -> str | None:
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._items) > index)
            return self._items[index]

    async def done(self, index: int, outcome: dict[str, Any]) -> None:
        async with self._changed:
            self._results[index] = outcome
            self._changed.notify_all()

    async def result(self, index: int) -> dict[str, Any]:
        async with self._changed:
            await self._changed.wait_for(lambda: index in self._results)
            return self._results[index]


def work_through_runs(config: dict[str, Any]) -> None:
    """What each worker of a gang does: take the next run, train it, say how it ended; until the mailbox says None."""
    import itertools

    import ray
    import ray.train

    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    mailbox = config["mailbox"]
    for index in itertools.count():
        folder = ray.get(mailbox.get.remote(index))
        if folder is None:
            return
        outcome = train_one(RunFolder(folder), rank, world)
        if rank == 0:
            ray.get(mailbox.done.remote(index, outcome))
        if world > 1 and not outcome["ok"]:
            raise GopherError(
                outcome["reason"]
            )  # other ranks may still wait for this one: a fresh gang is the only clean start


def train_one(folder: RunFolder, rank: int, world: int) -> dict[str, Any]:
    """Train one run in this worker; how it ended. Only the run's own failures are outcomes, anything unforeseen ends the gang."""
    from gopher.train import train
    from gopher.worker_log import worker_log

    with folder.held() if rank == 0 else contextlib.nullcontext(), worker_log(folder.path, rank):
        try:
            state = train(folder, rank=rank, world=world, should_stop=folder.stop_requested)
        except GopherError as error:
            return {"ok": False, "reason": str(error), "retry": False, "exit_code": error.exit_code}
    return {"ok": state.state == FINISHED, "reason": state.reason, "retry": False}


def prepare_data(job: DataJob) -> str:
    """Ray task: tokenizer and shards of one data job."""
    from gopher.data import prepare

    return str(prepare(job.data, job.tokenizer, job.output_root, progress=lambda message: None))


def usable_cpus() -> int:
    """Cores this process may run on, at least one."""
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1))


def first_line(error: BaseException) -> str:
    """The error's own sentence, without the stack that Ray folds into it."""
    lines = [line for line in str(error).split("\n") if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
