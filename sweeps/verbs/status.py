"""`gopher status`: where every run of a sweep stands."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict

from gopher.spec import RunSpec
from sweeps import launched
from sweeps.screen import Screen, console, status_table
from sweeps.settings import Settings, settings_of
from sweeps.status import RunRow, run_rows
from sweeps.study import ComposeFn, load_study

REFRESH_SECONDS = 2.0


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    settings = settings_of(compose(overrides).tree)
    specs = launched.specs_of(overrides, settings) or load_study(compose, overrides).specs
    if settings.format == "json":
        print(as_json(settings.name, run_rows(specs, settings)))
    elif settings.watch is True:
        watch(specs, settings)
    else:
        console().print(status_table(settings.name, run_rows(specs, settings)))
    return 0


def as_json(name: str, rows: Sequence[RunRow]) -> str:
    return json.dumps({"sweep": name, "runs": [asdict(row) for row in rows]}, indent=2)


def watch(specs: Sequence[RunSpec], settings: Settings) -> None:
    """The table until every run has ended or Ctrl-C."""
    screen = Screen(settings.name, live=console(stderr=True).is_terminal)
    try:
        while True:
            rows = run_rows(specs, settings)
            screen.update(rows)
            if all(r.state in ("finished", "failed", "stopped") for r in rows):
                return
            time.sleep(REFRESH_SECONDS)
    finally:
        screen.close()
