"""Text and evaluations on Ray's actors: a hung one is killed with the reason, a failed one leaves its core to the next."""

import os
import time
from pathlib import Path

import pytest

from gopher.evals.exam import Exam
from gopher.record import write_atomic
from gopher.spec import DataSpec, SubsetSpec, TokenizerSpec
from sweeps import pulse
from sweeps.backends import BackendLost, DataJob, EvalJob
from sweeps.backends.ray import RayBackend
from sweeps.schedule import CRASH, FINAL, Event, Task
from sweeps.settings import ClusterSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def ended(backend: RayBackend) -> Event:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if events := backend.poll():
            return events[0]
        time.sleep(0.1)
    raise AssertionError("nothing ended")


def started(backend: RayBackend) -> set[str]:
    """Kinds of the actors that there were."""
    return {actor["ActorClassName"] for actor in backend.ray._private.state.actors().values()}


@pytest.mark.filterwarnings("ignore:.use_")  # Ray on its own options, in the thread that imports it
def test_hung_text_is_killed_and_a_failed_evaluation_frees_its_core(tmp_path: Path) -> None:
    (tmp_path / "text" / "prose").mkdir(parents=True)
    (tmp_path / "text" / "prose" / "0.txt").write_text("a text")
    os.mkfifo(tmp_path / "fingerprints.json")  # reading it waits for ever
    data = DataSpec(
        kind="local",
        path=str(tmp_path / "text"),
        subsets=(SubsetSpec(name="prose", weight=1.0, origin="prose", revision=""),),
    )
    job = DataJob(
        data=data, tokenizer=TokenizerSpec(vocab_size=512), output_root=tmp_path, pulse=tmp_path / "pulse" / "data-x"
    )
    backend = RayBackend(ClusterSettings(cpus=1, gpus=0), tmp_path / "ray")
    try:
        write_atomic(tmp_path / "pulse" / "data-x", "7")  # of one that was killed
        backend.warm([], {"data-x": job})
        assert pulse.read(tmp_path / "pulse" / "data-x") is None
        backend.submit(Task(key="data-x", kind="data"), job)
        while pulse.read(tmp_path / "pulse" / "data-x") is None:
            time.sleep(0.1)
        backend.cancel("data-x", "no progress for 900 s: the task hangs")
        event = ended(backend)
        assert (event.ok, event.cause, event.reason) == (False, CRASH, "no progress for 900 s: the task hangs")
        exam = EvalJob(folder=tmp_path / "runs" / "none", exam=Exam(tasks=("a",)))
        for key in ("eval-a", "eval-b"):
            backend.submit(Task(key=key, kind="eval", workers=1), exam)
            event = ended(backend)
            assert (event.key, event.ok, event.cause) == (key, False, FINAL) and "is no run folder" in str(event.reason)
        assert backend.idle == (0, 0)
        backend.warm([Task(key="train-x", kind="train", workers=1)], {})
        deadline, gang = time.monotonic() + 120, backend._gangs[0]
        while backend._gangs and time.monotonic() < deadline:
            backend.release()
            time.sleep(0.25)
        assert backend._gangs == [] and not list((tmp_path / "ray").glob("gang-*"))
        assert gang._error == ["the gang ended"]
        assert started(backend) == {"Hand", "Hub", "SynchronizationActor", "RayTrainWorker"}
        processes = {str(kind) for kind in backend.ray._private.worker._global_node.all_processes}
        assert not processes & {"dashboard", "log_monitor", "monitor"}
    finally:
        backend.close()


@pytest.mark.filterwarnings("ignore:.use_")  # Ray on its own options, in the thread that imports it
def test_without_its_gangs_controllers_a_ray_counts_as_lost(tmp_path: Path) -> None:
    """Otherwise every retry would go to the dead process, and its gangs' cores would never be free again."""
    backend = RayBackend(ClusterSettings(cpus=1, gpus=0), tmp_path / "ray")
    try:
        backend.warm([Task(key="train-x", kind="train", workers=1)], {})
        backend.poll()
        backend.ray.kill(backend._hub)
        with pytest.raises(BackendLost, match="gang controllers is gone"):
            ended(backend)
        assert backend.lost
    finally:
        backend.close()
        backend.ray.shutdown()
