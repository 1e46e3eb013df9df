"""The checks of `gopher doctor`: each looks at one thing and says its verdict, what it found, and the cure.

Nothing is started and nothing is changed; a server that does not answer costs at most a second. The slow imports
(torch, mlflow) are avoided by asking the files and sockets they would use.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from gopher.errors import UsageError
from gopher.marker import MARKER, read_marker, steps_in
from gopher.record import RunFolder
from sweeps.machine import answers, usable_cpus
from sweeps.redact import hide_secrets
from sweeps.settings import Settings

OK, NOTE, WARN, FAIL = "ok", "note", "warn", "fail"
ANSWER_SECONDS = 1.0
MIN_FREE_BYTES, MIN_MEMORY_BYTES = 2 * 2**30, 4 * 2**30
STALE_SECONDS = 600.0
SUM_BUDGET_SECONDS = 1.5  # spent on checksums of checkpoints; the rest is named as not read
SUM_BYTES_PER_SECOND = 5e8
EXTRAS = {"datasets": "hub", "lm_eval": "evals", "psycopg": "postgres"}


class Finding(NamedTuple):
    verdict: str  # ok | note | warn | fail
    found: str
    cure: str | None = None


def python(settings: Settings) -> Finding:
    found = f"{platform.python_version()} at {sys.executable}"
    if not sys.flags.isolated and os.environ.get("PYTHONPATH"):
        return Finding(NOTE, f"{found}, PYTHONPATH is set", "unset it if imports go wrong")
    return Finding(OK, found)


def packages(settings: Settings) -> Finding:
    """Installed versions against what this package declares."""
    from packaging.requirements import Requirement

    wrong, count = [], 0
    for text in importlib.metadata.requires("gopher-sweeps") or []:
        needed = Requirement(text)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(needed.name)
            if not needed.specifier.contains(version, prereleases=True):
                wrong.append(f"{needed.name} {version} is not {needed.specifier}")
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{needed.name} is missing")
    if wrong:
        return Finding(FAIL, "; ".join(wrong), "pip install -r requirements.lock")
    return Finding(OK, f"all {count} requirements are met")


def extras(settings: Settings) -> Finding:
    there = {module: importlib.util.find_spec(module) is not None for module in EXTRAS}
    missing = [f"{module} ({EXTRAS[module]})" for module, found in there.items() if not found]
    found = ", ".join(module for module, here in there.items() if here) or "none"
    if missing:
        return Finding(NOTE, f"{found}; without {', '.join(missing)}", "needed only for what they are named after")
    return Finding(OK, found)


def gpu(settings: Settings) -> Finding:
    """GPUs as the driver shows them; asking torch would cost seconds."""
    torch = importlib.metadata.version("torch")
    try:
        words = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=3)
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode != 0:
        return Finding(NOTE, f"no CUDA device; torch {torch}")
    found = f"{'; '.join(done.stdout.split(chr(10))[:-1])}; torch {torch}"
    if torch.endswith("+cpu"):
        cure = "install torch's CUDA build: pip install torch --index-url https://download.pytorch.org/whl/cu128"
        return Finding(WARN, found + ", which is built without CUDA", cure)
    return Finding(OK, found)


def cores(settings: Settings) -> Finding:
    usable, load = usable_cpus(), os.getloadavg()[0]
    found = f"{usable} usable, load {load:.1f}"
    if load > 2 * usable:
        return Finding(WARN, found, "other work takes the cores; runs will be slow, not wrong")
    return Finding(OK, found)


def memory(settings: Settings) -> Finding:
    import psutil

    have = psutil.virtual_memory()
    found = f"{have.available / 2**30:.1f} of {have.total / 2**30:.1f} GB free"
    if have.available < MIN_MEMORY_BYTES:
        return Finding(WARN, found, "free 4 GB, or set launch.max_parallel_runs=1")
    return Finding(OK, found)


def disk(settings: Settings) -> Finding:
    root = existing(settings.root)
    free = shutil.disk_usage(root).free
    found = f"{free / 2**30:.1f} GB free under {root}"
    if free < MIN_FREE_BYTES:
        return Finding(FAIL, found, "free some space or set output_root=DIR")
    return Finding(OK, found)


def writing(settings: Settings) -> Finding:
    root = existing(settings.root)
    try:
        with tempfile.TemporaryFile(dir=root) as file:
            file.write(b"x")
    except OSError as error:
        cure = "give yourself the right to write there or set output_root=DIR"
        return Finding(FAIL, f"{root}: {error.strerror}", cure)
    return Finding(OK, str(settings.root))


def existing(path: Path) -> Path:
    """The nearest folder that exists: nothing is made here."""
    return next(p for p in (path, *path.parents) if p.is_dir())


def clock(settings: Settings) -> Finding:
    """This machine's clock against the file system's: leases and states on a shared folder compare the two."""
    with tempfile.NamedTemporaryFile(dir=existing(settings.root)) as file:
        apart = abs(os.stat(file.name).st_mtime - time.time())
    if apart > 5 or time.time() < 1.7e9:
        return Finding(WARN, f"{apart:.0f} s from the file server's", "set the clock (NTP)")
    return Finding(OK, time.strftime("%Y-%m-%d %H:%M:%S %Z"))


def ray(settings: Settings) -> Finding:
    """A local Ray is started when needed; a cluster must answer at its address."""
    version = f"ray {importlib.metadata.version('ray')}"
    if os.environ.get("RAY_AUTH_MODE", "") == "disabled":
        cure = "unset RAY_AUTH_MODE: anybody who reaches the port can run code"
        return Finding(WARN, f"{version}, RAY_AUTH_MODE=disabled", cure)
    if settings.cluster.address == "local":
        return Finding(OK, f"{version}, started locally at launch")
    address = os.environ.get("RAY_ADDRESS", "") if settings.cluster.address == "auto" else settings.cluster.address
    address = address or current_ray()
    if not address:
        return Finding(FAIL, "no Ray runs here", "ray start --head, or set RAY_ADDRESS")
    place = address.rpartition("://")[2]
    host, _, number = place.rpartition(":") if ":" in place and not place.endswith("]") else (place, "", "")
    if number and not (number.isdigit() and 1 <= int(number) <= 65535):
        return Finding(FAIL, f"{address} has no port number", "name it as host:port")
    usual = 10001 if address.startswith("ray://") else 6379
    if not answers(host, int(number or usual), ANSWER_SECONDS):
        return Finding(FAIL, f"{address} does not answer", "ray start --head there, or cluster=local")
    return Finding(OK, f"{version} at {address}")


def current_ray() -> str:
    """The address that a `ray start` on this machine left behind."""
    with contextlib.suppress(OSError):
        return (Path(tempfile.gettempdir()) / "ray" / "ray_current_cluster").read_text("utf-8").strip()
    return ""


def store(settings: Settings) -> Finding:
    """Whether MLflow's store can be reached, and its schema read when it is a file."""
    uri, shown = settings.tracking_uri, hide_secrets(settings.tracking_uri)
    if uri.startswith("sqlite:///"):
        return sqlite_store(Path(uri.removeprefix("sqlite:///")))
    parts = urlsplit(shown)  # a password with a slash in it would be taken for a path
    if not parts.hostname:
        return Finding(FAIL, f"{shown} names no host", "leave tracking.uri unset for sqlite, or name a server")
    default = {"https": 443, "http": 80}.get(parts.scheme, 5432)
    if not answers(parts.hostname, parts.port or default, ANSWER_SECONDS):
        return Finding(FAIL, f"{shown} does not answer", "start it, mend tracking.uri, or leave it unset for sqlite")
    if parts.scheme.startswith("postgresql") and importlib.util.find_spec("psycopg") is None:
        return Finding(FAIL, f"{shown} needs psycopg", "pip install 'gopher-sweeps[postgres]'")
    return Finding(OK, f"{shown} answers")


def sqlite_store(path: Path) -> Finding:
    if not path.exists():
        return Finding(OK, f"{path}, made at the first launch")
    try:
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=ANSWER_SECONDS)) as base:
            ((schema,),) = base.execute("SELECT version_num FROM alembic_version").fetchall()
            ((runs,),) = base.execute("SELECT count(*) FROM runs").fetchall()
    except (sqlite3.Error, ValueError) as error:
        return Finding(FAIL, f"{path} is no MLflow store ({error})", "move it away; a new one is made")
    return Finding(OK, f"{path}, schema {schema}, {runs} runs")


def port(settings: Settings) -> Finding:
    number = settings.ui.port
    if answers("127.0.0.1", number, ANSWER_SECONDS):
        return Finding(WARN, f"{number} is taken", f"gopher ui ui.port={number + 1}")
    return Finding(OK, f"{number} is free for gopher ui")


def locks(settings: Settings) -> Finding:
    """Runs that say they are being trained while nobody holds them, and sweeps whose lease has not been renewed."""
    stale = []
    for folder in run_folders(settings):
        state = folder.state()
        if state is not None and state.state == "running" and not folder.is_held():
            stale.append(f"run {folder.path.name} was interrupted")
    for lease in sorted((settings.root / "sweeps").glob("*/lease*.json")):
        if time.time() - lease.stat().st_mtime > STALE_SECONDS:
            stale.append(f"the lease of {lease.parent.name} is old")
    if stale:
        return Finding(WARN, some(stale), "gopher launch takes them over and goes on")
    return Finding(OK, "no interrupted run, no old lease")


def checkpoints(settings: Settings) -> Finding:
    """Newest checkpoints against their recorded sizes and SHA-256 sums, the latest runs first, as far as the time allows."""
    broken, read, unread = [], 0, 0
    until = time.monotonic() + SUM_BUDGET_SECONDS
    markers = sorted(
        (p / MARKER for f in run_folders(settings) for p in steps_in(f.checkpoints)[-1:] if (p / MARKER).exists()),
        key=lambda p: -p.stat().st_mtime,
    )
    for marker in markers:
        fault = fault_of(marker, until)
        if fault is None:
            unread += 1
        else:
            read += 1
            broken += [f"{marker.parent} ({fault})"] if fault else []
    rest = f", {unread} checked by size only" if unread else ""
    if broken:
        return Finding(WARN, some(broken), "a run goes on from the checkpoint before a damaged one")
    return Finding(OK, f"{read} newest ones are intact{rest}")


def fault_of(marker: Path, until: float) -> str | None:
    """What is wrong with a checkpoint, "" when nothing is; None when time ran out before its sums were read."""
    from hashlib import file_digest

    try:
        files = read_marker(marker.parent).files
        for name, mark in files.items():
            path = marker.parent / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != mark["bytes"]:
                return f"{name} is truncated"
        for name, mark in files.items():
            if time.monotonic() + mark["bytes"] / SUM_BYTES_PER_SECOND > until:
                return None
            with open(marker.parent / name, "rb") as file:
                if file_digest(file, "sha256").hexdigest() != mark["sha256"]:
                    return f"{name} has another SHA-256"
    except UsageError as other_format:
        return str(other_format)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"its marker cannot be read: {type(error).__name__}"
    return ""


def run_folders(settings: Settings) -> Iterator[RunFolder]:
    return (RunFolder(p.parent) for p in sorted((settings.root / "runs").glob("*/spec.json")))


def some(words: list[str]) -> str:
    return "; ".join(words[:3]) + (f" and {len(words) - 3} more" if len(words) > 3 else "")


CHECKS: dict[str, Callable[[Settings], Finding]] = {  # in the order of a first start
    "python": python,
    "packages": packages,
    "extras": extras,
    "gpu": gpu,
    "cores": cores,
    "memory": memory,
    "disk": disk,
    "write": writing,
    "clock": clock,
    "ray": ray,
    "mlflow": store,
    "port": port,
    "locks": locks,
    "checkpoints": checkpoints,
}


def all_checks(settings: Settings) -> dict[str, Finding]:
    """What every check finds; one that itself breaks is a warning with its error."""
    findings = {}
    for name, check in CHECKS.items():
        try:
            findings[name] = check(settings)
        except Exception as error:  # one broken check must not hide the others
            findings[name] = Finding(WARN, hide_secrets(f"{type(error).__name__}: {error}"))
    return findings
