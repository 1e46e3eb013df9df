"""What happened to a run besides its metrics: its events and its workers' output, read from the run folder."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from gopher.record import RunFolder
from sweeps.redact import hide_secrets

CUT = 4000  # characters of one line


def sources(folder: RunFolder) -> list[Path]:
    """Files with something to read, the events first."""
    return [p for p in (folder.path / "events.jsonl", *sorted((folder.path / "log").glob("*.log"))) if p.exists()]


def events_of(folder: RunFolder) -> list[str]:
    """One readable line per event, oldest first."""
    return [line for line, _ in read_lines(folder.path / "events.jsonl", 0)]


def read_lines(path: Path, offset: int) -> Iterator[tuple[str, int]]:
    """(line for people, offset after it) of the whole lines after `offset`; none when the file is absent."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            for raw in file:
                if raw.endswith(b"\n"):
                    offset += len(raw)
                    text = raw.decode("utf-8", "replace").rstrip("\n")[:CUT]
                    yield readable(text) if path.suffix == ".jsonl" else hide_secrets(text), offset
    except FileNotFoundError:
        return


def readable(line: str) -> str:
    """An event as `time step kind: sentence`, whatever of these it has."""
    try:
        event = json.loads(line)
    except ValueError:
        return hide_secrets(line)
    if not isinstance(event, dict):
        return hide_secrets(line)
    when = event.get("time", event.get("at"))
    stamp = (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)) if isinstance(when, (int, float)) else str(when or "")
    )
    step = f"step {event['step']}" if event.get("step") is not None else ""
    said = event.get("sentence", event.get("message", event.get("reason", "")))
    kind = f"{event.get('kind', event.get('event', 'event'))}:"
    return hide_secrets(" ".join(word for word in (stamp, step, kind, str(said)) if word))
