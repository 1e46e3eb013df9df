"""A run's folder: the local truth about one run. Atomic files, an append-only metrics log, standard library only.

runs/<key>/
    spec.json         what is computed (RunSpec)
    placement.json    how (Placement)
    provenance.json   versions, code state, resolved config
    state.json        RunState: where it stands
    metrics.jsonl     one line per logged step: {"step": 10, "metrics": {"train/loss": 5.1}}
    events.jsonl      what happened besides: {"time": ..., "kind": "rewind", "step": 40, "sentence": "..."}
    checkpoints/      see gopher.checkpoint
    evals/            scores of checkpoints on tasks, see gopher.evals.scores
"""

import errno
import fcntl
import json
import os
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO, TypeVar

from gopher.errors import SetupError, UsageError
from gopher.spec import Placement, RunSpec
from gopher.spec_json import build, from_json, to_json

QUEUED, RUNNING, FINISHED, FAILED, STOPPED = "queued", "running", "finished", "failed", "stopped"
ASKED, PREEMPTED = "asked", "preempted"  # why a run stopped: it waits for a person, or only for a place to run


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside the target to write to, renamed afterwards: a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        with open(part, "rb") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    with written_whole(path) as part:
        part.write_text(text, "utf-8")


def append(path: Path, line: str, sync: bool = False) -> None:
    """Append a line whole or not at all; with `sync` it is on disk before this returns. Raises OSError, as for a full disk."""
    data = line.encode("utf-8")
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            if file.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            if sync:
                os.fsync(file.fileno())
        except OSError:
            file.truncate(before)
            raise


@dataclass(frozen=True, kw_only=True)
class RunState:
    state: str  # queued | running | finished | failed | stopped
    step: int = 0  # optimizer steps done
    attempt: int = 0  # starts so far
    reason: str | None = None  # why it failed or stopped, one sentence
    cause: str | None = None  # of a stop: asked | preempted
    progressed_at: float = 0.0  # unix seconds at which a step was last done; a hang shows here, not in a live process
    updated_at: float = 0.0  # unix seconds
    train_seconds: float = 0.0  # inside training steps, evaluation and checkpoints, over all attempts
    tokens_per_second: float | None = None  # recent
    train_loss: float | None = None  # nats per token, last logged step
    val_loss: float | None = None  # nats per token, last evaluation


def try_lock(file: TextIO) -> bool:
    """Take the advisory lock of an open file if nobody has it; the kernel gives it back when the process ends."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sign(file: TextIO) -> None:
    """Leave a note in a locked file for whoever finds it locked."""
    file.seek(0)
    file.truncate()
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
    file.flush()


def holder(file: TextIO) -> str:
    """Who signed the locked file."""
    file.seek(0)
    return file.read().strip() or "another process"


class Held(SetupError):
    """Another process trains the run."""


def is_metrics(line: Any) -> bool:
    """Whether it is a line of metrics.jsonl."""
    return isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("metrics"), dict)


def is_event(line: Any) -> bool:
    """Whether it is a line of events.jsonl; a skip says where and how much (see gopher.stability)."""
    if not isinstance(line, dict) or not line.keys() >= {"kind", "step", "sentence"}:
        return False
    return line["kind"] != "skip" or (isinstance(line["step"], int) and isinstance(line.get("sequences"), int))


Written = TypeVar("Written", RunSpec, Placement)


class RunFolder:
    """Reads and writes one run's folder; every writer is atomic, every reader tolerates a torn last line."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def scores_file(self, task: str) -> Path:
        return self.path / "evals" / f"{task}.json"

    def scores(self, task: str) -> dict[str, Any] | None:
        """What the record says of a task or group, or None."""
        try:
            found: dict[str, Any] = json.loads(self.scores_file(task).read_text("utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return found

    def unscored(self, tasks: Iterable[str], exam: str) -> list[str]:
        """Those of `tasks` that the record has no scores of as the exam of that key asks; what could not be read counts too."""
        known = {task: self.scores(task) or {} for task in tasks}
        return [task for task, record in known.items() if record.get("exam") != exam or record.get("skipped")]

    def create(self, spec: RunSpec, placement: Placement, provenance: dict[str, Any]) -> None:
        """Write the spec once (a folder of that key always holds that spec), placement and provenance at every start."""
        if not (self.path / "spec.json").exists():
            write_atomic(self.path / "spec.json", to_json(spec))
        write_atomic(self.path / "placement.json", to_json(placement))
        write_atomic(self.path / "provenance.json", json.dumps(provenance, indent=2, sort_keys=True) + "\n")

    def spec(self) -> RunSpec:
        return self._read(RunSpec, "spec.json")

    def placement(self) -> Placement:
        return self._read(Placement, "placement.json")

    def provenance(self) -> dict[str, Any]:
        result: dict[str, Any] = json.loads(self._content("provenance.json"))
        return result

    def state(self) -> RunState | None:
        """Where the run stands, or None when it was never queued, or what says so cannot be read."""
        try:
            return build(RunState, json.loads((self.path / "state.json").read_text("utf-8")), "state.json")
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, UsageError):
            # a power cut, another version: metrics and checkpoints are other files
            warnings.warn(f"{self.path / 'state.json'} cannot be read; the run counts as not begun", stacklevel=2)
            return None

    def write_state(self, state: RunState) -> None:
        write_atomic(
            self.path / "state.json", json.dumps({**asdict(state), "updated_at": time.time()}, sort_keys=True) + "\n"
        )

    @contextmanager
    def held(self, wait_seconds: float = 30.0) -> Iterator[None]:
        """Hold the run for this process: two trainings never write one folder, and a killed holder frees it at once.

        Waits for a holder that is about to die (a driver's orphan), then raises `Held`.
        """
        with open(self.path / "lock", "a+", encoding="utf-8") as file:
            deadline = time.monotonic() + wait_seconds
            while not try_lock(file):
                if time.monotonic() > deadline:
                    raise Held(f"run {self.path.name} is being trained by {holder(file)}; wait for it or stop it")
                time.sleep(0.2)
            sign(file)
            yield

    def is_held(self) -> bool:
        """Whether some process is training this run now."""
        try:
            with open(self.path / "lock", "a+", encoding="utf-8") as file:
                return not try_lock(file)
        except FileNotFoundError:
            return False

    def request_stop(self, cause: str = ASKED) -> None:
        """Ask whoever trains this run to checkpoint and stop; works across processes and machines that share the folder."""
        write_atomic(self.path / "stop", cause)

    def clear_stop(self) -> None:
        (self.path / "stop").unlink(missing_ok=True)

    def stop_requested(self) -> str | None:
        """ASKED or PREEMPTED when somebody wants the run to stop."""
        try:
            return PREEMPTED if (self.path / "stop").read_text("utf-8") == PREEMPTED else ASKED
        except FileNotFoundError:
            return None

    def log(self, step: int, metrics: dict[str, float | None]) -> None:
        """Append one line; a later line for the same (metric, step) replaces an earlier one on reading.

        None and non-finite values are kept as null: a missing number never becomes 0.
        """
        finite = {k: (v if v is not None and abs(v) < float("inf") else None) for k, v in metrics.items()}
        line = json.dumps({"step": step, "metrics": finite}, sort_keys=True, allow_nan=False) + "\n"
        append(self.path / "metrics.jsonl", line)

    def sync_log(self) -> None:
        """Put what was logged so far on disk: a checkpoint must never be ahead of the numbers that led to it."""
        if (path := self.path / "metrics.jsonl").exists():
            with open(path, "rb") as file:
                os.fsync(file.fileno())

    def trim_torn_lines(self) -> None:
        """Cut half-written last lines left by a kill, so that the next append starts on a line of its own."""
        for path in (self.path / "metrics.jsonl", self.path / "events.jsonl"):
            if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
                with open(path, "r+b") as file:
                    file.truncate(data.rfind(b"\n") + 1)

    def event(self, kind: str, step: int | None, sentence: str, **facts: Any) -> None:
        """Append one event, on disk before this returns: later decisions read it (see gopher.stability)."""
        line = json.dumps({"time": time.time(), "kind": kind, "step": step, "sentence": sentence, **facts}) + "\n"
        append(self.path / "events.jsonl", line, sync=True)

    def events(self) -> list[dict[str, Any]]:
        """Whole events, oldest first."""
        return self._lines("events.jsonl", is_event)

    def metrics(self) -> dict[str, dict[int, float | None]]:
        """metric -> {step: last logged value}, steps ascending."""
        series: dict[str, dict[int, float | None]] = {}
        for line in self.metric_lines():
            for name, value in line["metrics"].items():
                series.setdefault(name, {})[line["step"]] = value
        return {name: dict(sorted(points.items())) for name, points in series.items()}

    def metric_lines(self) -> list[dict[str, Any]]:
        return self._lines("metrics.jsonl", is_metrics)

    def _lines(self, name: str, readable: Callable[[Any], bool]) -> list[dict[str, Any]]:
        """Whole lines, without those that cannot be read, which are warned of."""
        try:
            lines = (self.path / name).read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        found = []
        for number, line in enumerate(lines, 1):
            if not line:
                continue
            try:
                content = json.loads(line)
            except (ValueError, RecursionError):
                content = None
            if readable(content):
                found.append(content)
            else:
                warnings.warn(f"{self.path / name} line {number} cannot be read and is left out", stacklevel=3)
        return found

    def last(self, metric: str) -> float | None:
        """The value of `metric` at its largest step, or None."""
        points = self.metrics().get(metric)
        return points[max(points)] if points else None

    def _read(self, kind: type[Written], name: str) -> Written:
        content = self._content(name)
        try:
            return from_json(kind, content)
        except (ValueError, RecursionError) as error:  # whoever launches the run writes what is missing
            raise UsageError(f"{self.path / name} is damaged ({error}); delete it and launch the run again") from None
        except UsageError as error:
            raise UsageError(f"{self.path / name}: {error}") from None

    def _content(self, name: str) -> bytes:
        try:
            return (self.path / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{self.path / name} does not exist; launch the run first or check the folder") from None
        except OSError as error:
            raise UsageError(f"{self.path / name} cannot be read ({error.strerror}); check the folder") from None
