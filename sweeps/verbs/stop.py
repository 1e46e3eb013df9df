"""`gopher stop`: the driver of a sweep, or one run, is asked to checkpoint and end; from any terminal and any host."""

import time
from collections.abc import Callable, Sequence

from gopher.record import RUNNING, RunFolder, write_atomic
from sweeps import lease
from sweeps.find import find_run, known_runs
from sweeps.lookout import stop_mark
from sweeps.screen import console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, Study, load_study

PATIENCE_SECONDS = 120.0


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    """Exit code 0 once everything asked for has ended, 1 if it still goes on after two minutes."""
    words = [w for w in overrides if "=" not in w and not w.startswith(("~", "-"))]
    rest = [w for w in overrides if w not in words]
    settings = settings_of(compose(rest).tree)
    say = console(stderr=True).print
    study = load_study(compose, rest)
    if words:
        known = list(known_runs(settings.root))
        folders = [find_run(word, known, lambda: study).folder for word in words]
        for folder in folders:
            folder.request_stop()
        say(f"asked {len(folders)} run(s) to write a checkpoint and stop; `gopher resume` goes on")
        return until(lambda: not any(f.is_held() for f in folders), say)
    folders = own_folders(study, settings)
    found = lease.read(settings.sweep_dir)
    if found is None or not found.live:
        left = [f for f in folders if f.is_held()]
        for folder in left:
            folder.request_stop()
        say(f"no launch of sweep '{study.name}' is running" + (f"; asked {len(left)} run(s) to stop" if left else ""))
        return until(lambda: not any(f.is_held() for f in left), say)
    write_atomic(stop_mark(settings), "")
    running = sum((s := f.state()) is not None and s.state == RUNNING for f in folders)
    say(f"asked {found} to stop; {running} run(s) write a checkpoint first; `gopher resume sweep={study.name}` goes on")
    return until(lambda: ended(settings, found.holder.id), say)


def own_folders(study: Study, settings: Settings) -> list[RunFolder]:
    return [RunFolder(settings.run_dir(r.spec.key)) for r in study.runs]


def ended(settings: Settings, holder_id: str) -> bool:
    now = lease.read(settings.sweep_dir)
    return now is None or now.holder.id != holder_id or not now.live


def until(done: Callable[[], bool], say: Callable[[str], None]) -> int:
    """0 once `done()`, 1 after `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            say(f"still running after {PATIENCE_SECONDS:.0f} s; `gopher status` shows what goes on")
            return 1
        time.sleep(0.5)
    return 0
