"""A gang: one trainer of Ray Train whose workers take runs one after another from a mailbox, and what its workers do."""

import asyncio
import contextlib
import itertools
import shutil
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gopher.errors import GopherError
from gopher.record import FINISHED, Held, RunFolder
from sweeps.backends.ray_lean import TERMINATED, get_ready, lean_trainer
from sweeps.schedule import CRASH, FINAL, PREEMPTED, Event, Task

GANG_END_SECONDS = 20
LEFT = "the worker left, as its machine is taken away"


def gang_shape(task: Task) -> tuple[int, int, int]:
    return (task.workers, task.cpus_per_worker, task.gpus_per_worker)


@dataclass
class Gang:
    """One trainer that works through runs. The driver thread gives and collects; a daemon thread holds `fit()`."""

    ray: Any
    task: Task
    scratch: Path
    report: Callable[[Event], None]
    hub: Any  # actor of class `Hub`
    local: bool  # whether it runs on a Ray of our own
    key: str | None = None  # the run being trained
    folder: Path | None = None
    closed: bool = False
    given: int = 0
    _done: Any = None  # reference that resolves when the current run is done
    _error: list[str] = field(default_factory=list)
    _killed_for: str | None = None

    def __post_init__(self) -> None:
        self.shape = gang_shape(self.task)
        self.name = f"gang-{uuid.uuid4().hex}"
        self._thread = threading.Thread(target=self._fit, daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        return self.key is None and not self.closed and not self._error

    @property
    def alive(self) -> bool:
        """Whether its workers may still hold cores."""
        return self._thread.is_alive()

    def _fit(self) -> None:
        from ray.train import FailureConfig, RunConfig, ScalingConfig

        workers, cpus, gpus = self.shape
        resources = {"CPU": cpus, **({"GPU": gpus} if gpus else {})}
        trainer = lean_trainer(self.hub, "nccl" if gpus else "gloo", self.local)(
            work_through_runs,
            train_loop_config={"hub": self.hub, "gang": self.name},
            scaling_config=ScalingConfig(num_workers=workers, resources_per_worker=resources, use_gpu=bool(gpus)),
            run_config=RunConfig(
                name=self.name, storage_path=str(self.scratch), failure_config=FailureConfig(max_failures=0)
            ),
        )
        try:
            trainer.fit()
            self._error.append("the gang ended")
        except Exception as error:  # any end of the gang is the run's end too, told by `collect`
            self._error.append(LEFT if LEFT in str(error) else own_sentence(error))

    def give(self, key: str, folder: Path) -> None:
        """Hand the next run to the workers; that their mailbox is gone shows in `collect`."""
        self.key, self.folder, self._done = key, folder, None
        try:
            self.ray.get(self.hub.put.remote(self.name, str(folder)))
            self._done = self.hub.result.remote(self.name, self.given)
        except self.ray.exceptions.RayError as error:
            self._error.append(own_sentence(error))
        self.given += 1

    def collect(self) -> None:
        """Report the current run if it is done, or if the gang died under it."""
        if self.key is None or self.folder is None:
            self.closed = self.closed or bool(self._error)
            return
        if outcome := self._outcome():
            self.closed = outcome.pop("last")
            self._settle(Event(key=self.key, **outcome))
        elif self._error:
            self.closed = True
            state = RunFolder(self.folder).state()
            finished = state is not None and state.state == FINISHED
            left = self._error[0] == LEFT
            reason = self._killed_for or (LEFT if left else f"a worker died: {self._error[0]}")
            cause = PREEMPTED if left else CRASH
            self._settle(Event(key=self.key, ok=finished, reason=None if finished else reason, cause=cause))

    def _outcome(self) -> dict[str, Any] | None:
        """How the current run ended, or None while nobody has said."""
        if self._done is None:
            return None
        try:
            ready, _ = self.ray.wait([self._done], timeout=0)
            return self.ray.get(ready[0]) if ready else None
        except self.ray.exceptions.RayError as error:
            self._error.append(own_sentence(error))
            return None

    def kill(self, reason: str) -> None:
        """Kill the members by force, hung or not; Ray Train then ends the others and `fit`."""
        self._killed_for = reason
        with contextlib.suppress(self.ray.exceptions.RayError):
            for member in self.ray.get(self.hub.members.remote(self.name), timeout=GANG_END_SECONDS).values():
                self.ray.kill(self.ray.cloudpickle.loads(member))

    def _settle(self, event: Event) -> None:
        self.key = self.folder = None
        self.report(event)

    def tell_end(self) -> None:
        """Ask the workers to leave once their current run is done."""
        self.closed = True
        with contextlib.suppress(Exception):
            self.ray.get(self.hub.put.remote(self.name, None), timeout=GANG_END_SECONDS)

    def wait_for_end(self) -> None:
        """Wait for the workers to have left; their cores are free then. Workers that do not leave are killed."""
        self._thread.join(timeout=GANG_END_SECONDS)
        if self._thread.is_alive():
            self.kill("it did not leave")
            self._thread.join(timeout=GANG_END_SECONDS)
        shutil.rmtree(self.scratch / self.name, ignore_errors=True)


class Hub:
    """Actor beside the driver: the controllers of its gangs, a thread each, and their mailboxes.

    Ray Train starts a process for every controller; each costs some CPU seconds of imports on a laptop.
    """

    def __init__(self, gangs: int) -> None:
        from ray.train.v2._internal.execution.controller import TrainController

        self._controller = TrainController
        self._threads = ThreadPoolExecutor(gangs)
        self._mailboxes: defaultdict[str, Mailbox] = defaultdict(Mailbox)

    async def run(self, parts: dict[str, Any]) -> Any:
        """What the controller made of `parts` results in, after the gang's end."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._control, parts)

    def _control(self, parts: dict[str, Any]) -> Any:
        controller = self._controller(**parts)
        asyncio.run(controller.run())
        return controller.get_result()

    async def life(self) -> None:
        """Never returns: who waits for it learns of this process's end."""
        await asyncio.Event().wait()

    async def put(self, gang: str, item: str | None) -> None:
        await self._mailboxes[gang].put(item)

    async def get(self, gang: str, index: int) -> str | None:
        return await self._mailboxes[gang].get(index)

    async def join(self, gang: str, rank: int, member: bytes) -> None:
        self._mailboxes[gang].members[rank] = member

    async def members(self, gang: str) -> dict[int, bytes]:
        """Rank -> handle of every worker that has joined, pickled: reading one here would import torch."""
        return self._mailboxes[gang].members

    async def done(self, gang: str, index: int, outcome: dict[str, Any]) -> None:
        await self._mailboxes[gang].done(index, outcome)

    async def result(self, gang: str, index: int) -> dict[str, Any]:
        return await self._mailboxes[gang].result(index)


class Mailbox:
    """Between driver and gang: item i is a run folder, or None for the end; result i comes from rank 0."""

    def __init__(self) -> None:
        self._items: list[str | None] = []
        self._results: dict[int, dict[str, Any]] = {}
        self.members: dict[int, bytes] = {}
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
    import ray
    import ray.train

    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    hub, gang = config["hub"], config["gang"]
    ray.get(hub.join.remote(gang, rank, ray.cloudpickle.dumps(ray.get_runtime_context().current_actor)))
    get_ready()  # not before it can be killed
    for index in itertools.count():
        folder = ray.get(hub.get.remote(gang, index))
        if folder is None:
            return
        outcome, left = train_one(RunFolder(folder), rank, world), leaving()
        # after a failure other ranks may still wait for this one: a fresh gang is the only clean start
        last = left or (world > 1 and not outcome["ok"])
        if rank == 0:
            ray.get(hub.done.remote(gang, index, outcome | {"last": last}))
        if last:
            raise GopherError(LEFT if left else outcome["reason"])


def train_one(folder: RunFolder, rank: int, world: int) -> dict[str, Any]:
    """Train one run in this worker; how it ended. Only the run's own failures are outcomes, anything unforeseen ends the gang.

    A run that another process has in hand is as good as preempted: it waits for a place and costs no attempt.
    """
    from gopher.checkpoint import NotWritten
    from gopher.train import train
    from gopher.worker_log import worker_log

    try:
        with folder.held() if rank == 0 else contextlib.nullcontext(), worker_log(folder.path, f"rank{rank}"):
            state = train(folder, rank=rank, world=world, should_stop=lambda: why_stop(folder))
            if rank == 0 and state.cause and folder.stop_requested() == state.cause:
                folder.clear_stop()  # it was obeyed: whoever trains the run next must not find it
    except GopherError as error:
        cause = PREEMPTED if isinstance(error, Held) else CRASH if isinstance(error, NotWritten) else FINAL
        return {"ok": False, "reason": str(error), "cause": cause, "exit_code": error.exit_code}
    return {"ok": state.state == FINISHED, "reason": state.reason, "cause": state.cause or FINAL}


def why_stop(folder: RunFolder) -> str | None:
    """Asked at every step: a person's request, a machine that goes, or None."""
    return folder.stop_requested() or (PREEMPTED if leaving() else None)


def leaving() -> bool:
    """In a worker: whether its machine is about to be taken away, by SIGTERM or by Ray's notice of a draining node."""
    from ray.train.v2._internal.execution.context import get_train_context

    notice = get_train_context().preemption_context.preemption_info  # Ray's public reader is a barrier of all ranks
    return TERMINATED.is_set() or notice is not None


def own_sentence(error: BaseException) -> str:
    """The error's own sentence, without the stack and the guesses that Ray folds into it."""
    lines = [line for line in str(error).split("\n") if line.strip()]
    return lines[-1].split(" Some common causes")[0].strip() if lines else type(error).__name__
