"""`gopher logs RUN [follow=true]`: the run's events, warnings and worker output."""

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
    found = find_run(word, list(known_runs(settings.root)), lambda: load_study(compose, rest))
    offsets: dict[Path, int] = {}
    print_new(found.folder, offsets)
    if not offsets:
        state = found.folder.state()
        print(f"{found.title} has said nothing yet; it is {state.state if state else 'not queued'}")
    while settings.follow and not ended(found.folder):
        time.sleep(FOLLOW_SECONDS)
        print_new(found.folder, offsets)
    print_new(found.folder, offsets)
    return 0


def print_new(folder: RunFolder, offsets: dict[Path, int]) -> None:
    """Print what was written since the last call, under the name of its file."""
    for path in sources(folder):
        for line, offset in read_lines(path, offsets.get(path, 0)):
            print(f"{path.stem}: {line}", flush=True)
            offsets[path] = offset


def ended(folder: RunFolder) -> bool:
    state = folder.state()
    return state is not None and state.state in (FINISHED, FAILED, STOPPED) and not folder.is_held()
