"""Ray runs the tasks: text and evaluations on actors, training on warm gangs of Ray Train workers.

A gang is one trainer of Ray Train whose workers take runs one after another from a mailbox, each on the process group that
Ray Train set up. A large run is a gang of its own; the small rungs of a laptop ladder share a gang per core, so that
Ray's ten seconds of start-up are paid once per core and not once per run. There is one code path for both.

The run folder is the only channel for results: metrics, state and checkpoints are files there, so nothing is lost with
a worker, a gang or the driver, and Ray's own checkpoint registry isn't needed.
"""

import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import GopherError, SetupError
from gopher.record import RunFolder
from sweeps.backends import LOST_TIMES, BackendLost, DataJob, EvalJob, Job
from sweeps.backends.ray_gang import Gang, Hub, gang_shape, own_sentence
from sweeps.backends.ray_lean import lean_node
from sweeps.machine import answers, usable_cpus
from sweeps.pulse import beating
from sweeps.schedule import CRASH, FINAL, Capacity, Event, Task
from sweeps.settings import ClusterSettings
from sweeps.worker_output import read_lines, sources

# set before ray is imported, here and in its workers; what the user exported wins
ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # every controller would configure its process's logging anew: with a second one logging there, both wait for ever
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_DEDUP_LOGS": "0",
    "RAY_worker_niceness": "0",  # Ray's 15 would let anything else on the machine starve the training
    "OMP_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
}
OBJECT_STORE_BYTES = 100 * 2**20  # runs talk through files; Ray's store carries only messages
GANGS_TOGETHER = 16  # whose controllers and mailboxes share a process, and would fall together
CALLS_TOGETHER = 100_000  # to such a process: every worker has one waiting there
CHECK_SECONDS = 2.0  # between looks whether Ray still lives
ANSWER_SECONDS = 5.0  # that a Ray which lives may take to answer


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
        self._calls: dict[Any, Call] = {}  # object reference of a text or evaluation task -> what it is
        self._early: dict[str, tuple[Any, Call]] = {}  # text tasks that were begun before they were submitted
        self._hands: list[Call] = []  # actors that have evaluated a run and wait for the next
        self._gangs: list[Gang] = []
        self._started = 0  # gangs so far
        self._lives: list[Any] = []  # an object reference per hub that is ready once it died
        self._local = cluster.address == "local"
        self._checked = time.monotonic()
        self.lost = False

    def _connect(self, cluster: ClusterSettings) -> None:
        local = cluster.address == "local"
        options: dict[str, Any] = {"address": cluster.address, "log_to_driver": False, "logging_level": logging.ERROR}
        if not local:  # a local Ray inherits our environment
            options["runtime_env"] = {"env_vars": {name: os.environ[name] for name in ENVIRONMENT}}
        if local:
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody drains our only node
            options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            options |= {"num_cpus": cluster.cpus or usable_cpus(), "num_gpus": cluster.gpus}
        try:
            with lean_node(self.ray) if local else contextlib.nullcontext():
                self.ray.init(**options)
        except Exception as error:  # of a node that is slow to start Ray says no more than that
            cure = (
                "see whether /tmp has space"
                if local
                else "start one with `ray start --head`, set RAY_ADDRESS, or use cluster=local"
            )
            kind = BackendLost if LOST_TIMES in os.environ else SetupError  # it was there before: worth waiting for
            raise kind(f"Ray at '{cluster.address}' could not be reached ({own_sentence(error)}); {cure}") from None

    @property
    def capacity(self) -> Capacity:
        total = self.ray.cluster_resources()
        return Capacity(cpus=int(total.get("CPU", 0)), gpus=int(total.get("GPU", 0)))

    @property
    def running(self) -> set[str]:
        return {gang.key for gang in self._gangs if gang.key is not None}

    def warm(self, trainings: list[Task], texts: Mapping[str, DataJob]) -> None:
        """Begin what can begin before the loop does: the text tasks by key, and the gangs of the first trainings."""
        self._early = {key: self._begin(Call(key=key, actor=self._hand()), job) for key, job in texts.items()}
        self._gangs += [self._gang(task) for task in trainings]

    def _hand(self, cpus: int = 0, gpus: int = 0) -> Any:
        return self.ray.remote(num_cpus=cpus, num_gpus=gpus)(Hand).remote()

    def _begin(self, call: "Call", job: DataJob | EvalJob) -> tuple[Any, "Call"]:
        if job.pulse:
            with contextlib.suppress(OSError):
                job.pulse.unlink(missing_ok=True)  # left by one that was killed: this one shows no life yet
        return call.actor.run.remote(job), call

    def submit(self, task: Task, job: Job) -> None:
        if isinstance(job, DataJob):
            early = self._early.pop(task.key, None)
            reference, call = early or self._begin(Call(key=task.key, actor=self._hand()), job)
            self._calls[reference] = call
        elif isinstance(job, EvalJob):
            same = [h for h in self._hands if (h.cpus, h.gpus) == (task.cpus, task.gpus)]
            if not same:
                self._free_idle()  # no training fits now, else it would have come first
            actor = same[0].actor if same else self._hand(task.cpus, task.gpus)
            self._hands = [h for h in self._hands if h.actor is not actor]
            reference, call = self._begin(Call(key=task.key, actor=actor, cpus=task.cpus, gpus=task.gpus), job)
            self._calls[reference] = call
        else:
            self._gang_for(task).give(task.key, job.folder)

    def _gang(self, task: Task) -> "Gang":
        """A new gang; its controller and mailbox join those of the last few, on the driver's node."""
        if self._started % GANGS_TOGETHER == 0:
            here = self.ray.get_runtime_context().get_node_id()
            place = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=False)
            options = {"num_cpus": 0, "max_concurrency": CALLS_TOGETHER, "scheduling_strategy": place}
            self._hub = self.ray.remote(**options)(Hub).remote(GANGS_TOGETHER)
            self._lives.append(self._hub.life.remote())
        self._started += 1
        return Gang(self.ray, task, self._scratch, self._report, self._hub, self._local)

    def _gang_for(self, task: Task) -> "Gang":
        """An idle gang of the right shape; otherwise a new one, after idle gangs of other shapes have given their cores back."""
        for gang in self._gangs:
            if gang.idle and gang.shape == gang_shape(task):
                return gang
        self._free_idle()
        self._gangs.append(self._gang(task))
        return self._gangs[-1]

    @property
    def idle(self) -> tuple[int, int]:
        gangs = [g.task for g in self._gangs if g.key is None and g.alive]
        held = [(t.cpus, t.gpus) for t in gangs] + [(h.cpus, h.gpus) for h in self._hands]
        return sum(cpus for cpus, _ in held), sum(gpus for _, gpus in held)

    def release(self) -> None:
        for gang in self._gangs:
            if gang.idle:
                gang.tell_end()
        self._drop([g for g in self._gangs if g.key is None and g.closed and not g.alive])
        for hand in self._hands:
            self._kill(hand)
        self._hands = []

    def _kill(self, call: "Call") -> None:
        with contextlib.suppress(self.ray.exceptions.RayError):
            self.ray.kill(call.actor)

    def _free_idle(self) -> None:
        """Wait until what idle workers held is free."""
        self.release()
        self._drop([g for g in self._gangs if g.key is None and g.closed])

    def _drop(self, ended: list[Gang]) -> None:
        for gang in ended:
            gang.wait_for_end()
        self._gangs = [g for g in self._gangs if g not in ended]

    def _report(self, event: Event) -> None:
        with self._events_lock:
            self._events.append(event)

    def poll(self) -> list[Event]:
        self._check_alive()
        calls = list(self._calls)
        done, _ = self.ray.wait(calls, num_returns=len(calls), timeout=0) if calls else ([], None)
        for reference in done:
            call = self._calls.pop(reference)
            event = self._call_event(reference, call)
            if event.ok and call.cpus:
                self._hands.append(call)
            else:
                self._kill(call)
            self._report(event)
        for gang in self._gangs:
            gang.collect()
        with self._events_lock:
            events, self._events = self._events, []
        return events

    def _check_alive(self) -> None:
        """Raise `BackendLost` once Ray's head is gone: Ray itself would end this process a minute later.

        And once a hub is: its gangs are, and Ray keeps their cores for this driver as long as it is there.
        """
        if time.monotonic() - self._checked < CHECK_SECONDS:
            return
        self._checked = time.monotonic()
        node = self.ray._private.worker._global_node
        dead = [kind for kind, _ in node.dead_processes()] if self._local else []
        if self._lives and self.ray.wait(self._lives, timeout=0)[0]:
            dead.append("process of gang controllers")
        host, _, port = self.ray.get_runtime_context().gcs_address.rpartition(":")
        if dead or not answers(host, int(port), ANSWER_SECONDS):
            self.lost = True
            if self._local:
                node.kill_all_processes(check_alive=False, allow_graceful=False)
            raise BackendLost(
                f"Ray's {dead[0] if dead else 'head'} is gone; launch again to go on from the run folders"
            )

    def _call_event(self, reference: Any, call: "Call") -> Event:
        key = call.key
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            cause = error.cause if isinstance(error.cause, Exception) else error
            code = cause.exit_code if isinstance(cause, GopherError) else 1
            return Event(
                key=key, ok=False, reason=own_sentence(cause), cause=CRASH if code == 1 else FINAL, exit_code=code
            )
        except self.ray.exceptions.RayError as error:
            return Event(key=key, ok=False, reason=call.killed_for or own_sentence(error), cause=CRASH)
        return Event(key=key, ok=True)

    def cancel(self, key: str, reason: str) -> None:
        """Kill the gang of a run, of which Ray Train ends the members that are left, or an actor; `poll` tells the crash."""
        for call in self._calls.values():
            if call.key == key:
                call.killed_for = reason
                self._kill(call)
        for gang in self._gangs:
            if gang.key == key:
                gang.kill(reason)

    def logs(self, key: str) -> str:
        """What the workers of a run have written so far."""
        folders = [RunFolder(g.folder) for g in self._gangs if g.key == key and g.folder is not None]
        return "".join(f"{line}\n" for f in folders for path in sources(f) for line, _ in read_lines(path, 0))

    def close(self) -> None:
        """End the gangs, then Ray: shutting down under a thread that still talks to it would end this process too."""
        if self.lost:
            return
        for gang in self._gangs:
            gang.tell_end()
        for gang in self._gangs:
            gang.wait_for_end()
        with contextlib.suppress(OSError):
            self._scratch.rmdir()  # another launch may have gangs there
        with contextlib.suppress(Exception):
            self.ray.shutdown()


@dataclass(kw_only=True)
class Call:
    """A task on an actor, and what the actor holds."""

    key: str
    actor: Any
    cpus: int = 0
    gpus: int = 0
    killed_for: str | None = None


class Hand:
    """Actor that prepares text, or scores the checkpoints of one run after another: imports are paid once."""

    def run(self, job: DataJob | EvalJob) -> None:
        """Raises what the work raises; what an evaluation prints is kept with its run."""
        with beating(job.pulse) if job.pulse else contextlib.nullcontext():
            if isinstance(job, DataJob):
                from gopher.data import prepare

                prepare(job.data, job.tokenizer, job.output_root)
            else:
                hide_gpus_of_others()
                from gopher.evals.scores import score_run
                from gopher.worker_log import worker_log

                with worker_log(job.folder, "eval"):
                    score_run(job.folder, job.exam)


def hide_gpus_of_others() -> None:
    """In a worker that was given no GPU: see none, as trainings have them."""
    import ray

    if not ray.get_gpu_ids():
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
