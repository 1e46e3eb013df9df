"""How far a run folder's log has been sent: its mlflow.json, with one note for each store and sweep that mirror the run."""

import json
from typing import Any

from gopher.identity import content_hash
from gopher.record import RunFolder, write_atomic

Note = dict[str, Any]  # run_id, start_ms, offset, steps, missing; once sent: data, events, state


class Notes:
    """The notes of one sweep in one store."""

    def __init__(self, uri: str, sweep: str) -> None:
        self._place = content_hash([uri, sweep])[:16]  # a password inside the URI stays out of files

    def read(self, folder: RunFolder) -> Note:
        """The note of a run; empty where nothing was sent, or where what was noted cannot be read."""
        note = notes_in(folder).get(self._place)
        return note if isinstance(note, dict) else {}

    def write(self, folder: RunFolder, note: Note) -> None:
        write_atomic(
            folder.path / "mlflow.json", json.dumps(notes_in(folder) | {self._place: note}, sort_keys=True) + "\n"
        )


def notes_in(folder: RunFolder) -> dict[str, Any]:
    try:
        notes: dict[str, Any] = json.loads((folder.path / "mlflow.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return notes
