"""The file that makes a folder a checkpoint: what it holds, and the size and SHA-256 of every other file. Standard library only."""

import contextlib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from gopher.spec_json import build

MARKER, FORMAT = "complete.json", 1


@dataclass(frozen=True, kw_only=True)
class Marker:
    run: str  # key of the run that the checkpoint belongs to
    step: int
    files: dict[str, Any]  # name -> bytes and SHA-256
    notes: dict[str, Any] = field(default_factory=dict)  # see `gopher.checkpoint.Saver.save`
    named: bool = False  # kept for ever
    format: int = FORMAT  # raised when older versions would read it wrongly; unknown fields they pass over


def read_marker(folder: Path) -> Marker:
    """What marks the checkpoint in `folder`. Raises `UsageError` for one of another format, OSError or ValueError for a damaged one."""
    try:
        found = json.loads((folder / MARKER).read_bytes())
    except RecursionError as error:
        raise ValueError(f"{MARKER}: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{MARKER} is no mapping")
    if (given := found.get("format", FORMAT)) != FORMAT:
        raise UsageError(
            f"{folder} has checkpoint format {given!r}, this version reads {FORMAT}; use the version that wrote it"
        )
    try:
        return build(Marker, {f.name: found[f.name] for f in fields(Marker) if f.name in found}, MARKER)
    except UsageError as odd:
        raise ValueError(str(odd)) from None


def steps_in(checkpoints: Path) -> list[Path]:
    """Folders of published checkpoints, whole or damaged since, oldest first."""
    return sorted(p for p in checkpoints.glob("[0-9]*") if p.name.isdigit() and p.is_dir())


def once_named(checkpoints: Path) -> frozenset[int]:
    """Steps of checkpoints that were written to be kept for ever, whatever the placement says now."""
    steps = set()
    for folder in steps_in(checkpoints):
        with contextlib.suppress(OSError, ValueError, UsageError):  # a damaged one is none
            if read_marker(folder).named:
                steps.add(int(folder.name))
    return frozenset(steps)
