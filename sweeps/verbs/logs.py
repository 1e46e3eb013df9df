"""`gopher logs RUN [follow=true]`: the run's events, warnings and worker output."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from gopher.record import FAILED, FINISHED, STOPPED, RunFolder
from sweeps.find import find_run, known_runs, one_word
from sweeps.settings import settings_of
from sweeps.study import ComposeFn, load_study
from sweeps.worker_output import read_lines, sources

FOLLOW_SECONDS = 0.5


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    word, rest = one_word("logs", list(overrides))
    settings = settings_of(compose(rest).tree)
    found = find_run(word, list(known_runs(settings.root)), lambda: load_study(compose, rest), settings)
    offsets: dict[Path, int] = {}
    as_json = settings.format == "json"
    print_new(found.folder, offsets, as_json)
    if not offsets and not as_json:
        state = found.folder.state()
        print(f"{found.title} has said nothing yet; it is {state.state if state else 'not queued'}")
    while settings.follow and not ended(found.folder):
        time.sleep(FOLLOW_SECONDS)
        print_new(found.folder, offsets, as_json)
    print_new(found.folder, offsets, as_json)
    return 0


def print_new(folder: RunFolder, offsets: dict[Path, int], as_json: bool) -> None:
    """Print what was written since the last call, under the name of its file; as JSON one object a line."""
    for path in sources(folder):
        for line, offset in read_lines(path, offsets.get(path, 0)):
            said = json.dumps({"source": path.stem, "line": line}) if as_json else f"{path.stem}: {line}"
            print(said, flush=True)
            offsets[path] = offset


def ended(folder: RunFolder) -> bool:
    state = folder.state()
    return state is not None and state.state in (FINISHED, FAILED, STOPPED) and not folder.is_held()
