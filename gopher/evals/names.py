"""The names that lm-evaluation-harness knows, remembered: finding them out takes a new task manager half a minute."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gopher.identity import content_hash
from gopher.record import write_atomic


def index_path(folder: Path) -> Path:
    """Where the list of this version of the harness is remembered."""
    import lm_eval

    return folder / f"harness-{content_hash([lm_eval.__version__, lm_eval.__file__])[:12]}.json"


def harness_index(kept: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Name -> entry of the harness's own tasks, groups and tags; its 14,000 files are read once for each version of it."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Entry, Kind

    path = index_path(kept) if kept else None
    try:
        rows = json.loads(path.read_text("utf-8")) if path else None
    except (OSError, ValueError):  # not there yet, or damaged
        rows = None
    if rows is None:
        say("reading the harness's list of tasks")
        found = TaskManager().task_index
        rows = {n: [e.kind.name, str(e.yaml_path) if e.yaml_path else None, sorted(e.tags)] for n, e in found.items()}
        if path:
            write_atomic(path, json.dumps(rows))
    return {
        name: Entry(name=name, kind=Kind[kind], yaml_path=Path(file) if file else None, tags=set(tags))
        for name, (kind, file, tags) in rows.items()
    }
