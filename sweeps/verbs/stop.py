"""`gopher stop`: the driver of a sweep, or one run, is asked to checkpoint and end; from any terminal and any host."""

import json
import time
from collections.abc import Callable, Sequence

from gopher.errors import UsageError
from gopher.record import RUNNING, RunFolder, write_atomic
from sweeps import lease
from sweeps.find import find_run, known_runs
from sweeps.launched import command_line
from sweeps.lookout import stop_mark
from sweeps.redact import hide_secrets
from sweeps.screen import console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, Study, load_study

PATIENCE_SECONDS = 120.0
Say = Callable[[str], None]


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    """Exit code 0 once everything asked for has ended, 1 if it still goes on after two minutes."""
    words = [w for w in overrides if "=" not in w and not w.startswith(("~", "-"))]
    rest = [w for w in overrides if w not in words]
    settings = settings_of(compose(rest).tree)
    printed = console(stderr=True).print

    def say(sentence: str) -> None:
        printed(hide_secrets(sentence), markup=False)

    study = load_study(compose, rest)
    again = command_line("resume", rest)
    asked, done = stop_named(words, study, settings, again, say) if words else stop_all(study, settings, again, say)
    code = until(done, say)
    if settings.format == "json":
        print(json.dumps({"sweep": study.name, "asked": asked, "ended": code == 0}))
    return code


def stop_named(
    words: Sequence[str], study: Study, settings: Settings, again: str, say: Say
) -> tuple[list[str], Callable[[], bool]]:
    """Ask the runs that `words` name to stop: (their keys, whether they have)."""
    known = list(known_runs(settings.root))
    found = [find_run(word, known, lambda: study, settings) for word in words]
    for one in found:
        if one.planned:
            raise UsageError(f"{one.title} was not launched yet, so there is nothing to stop")
    for one in found:
        one.folder.request_stop()
    say(f"asked {len(found)} run(s) to write a checkpoint and stop; `{again}` goes on")
    return [one.key for one in found], lambda: not any(one.folder.is_held() for one in found)


def stop_all(study: Study, settings: Settings, again: str, say: Say) -> tuple[list[str], Callable[[], bool]]:
    """Ask the sweep's driver to stop, or the runs that a dead one has left: (who was asked, whether it has ended)."""
    folders = [RunFolder(settings.run_dir(r.spec.key)) for r in study.runs]
    found = lease.read(settings.sweep_dir)
    if found is None or not found.live:
        left = [f for f in folders if f.is_held()]
        for folder in left:
            folder.request_stop()
        say(f"no launch of sweep '{study.name}' is running" + (f"; asked {len(left)} run(s) to stop" if left else ""))
        return [f.path.name for f in left], lambda: not any(f.is_held() for f in left)
    holder = found.holder.id
    write_atomic(stop_mark(settings), holder)  # it is this launch that shall end, and no later one
    running = sum((s := f.state()) is not None and s.state == RUNNING for f in folders)
    say(f"asked {found} to stop; {running} run(s) write a checkpoint first; `{again}` goes on")
    return [f"process {found.holder.pid} on {found.holder.host}"], lambda: ended(settings, holder)


def ended(settings: Settings, holder_id: str) -> bool:
    now = lease.read(settings.sweep_dir)
    return now is None or now.holder.id != holder_id or not now.live


def until(done: Callable[[], bool], say: Say) -> int:
    """0 once `done()`, 1 after `PATIENCE_SECONDS`."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not done():
        if time.monotonic() > deadline:
            say(f"still running after {PATIENCE_SECONDS:.0f} s; `gopher status` shows what goes on")
            return 1
        time.sleep(0.5)
    return 0
