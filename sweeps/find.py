"""Finds a run by what people call it: its key, the beginning of its key, its rung, or rung/seed; launched ones first."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gopher.errors import UsageError, did_you_mean
from gopher.record import RunFolder
from gopher.spec_json import to_json
from sweeps.settings import Settings
from sweeps.study import PlannedRun, Study

LISTED = 8  # candidates named when a word fits several runs


@dataclass(frozen=True, kw_only=True)
class Found:
    """A run folder with what its spec.json says (plain values, labels included)."""

    folder: RunFolder
    spec: dict[str, Any]
    planned: PlannedRun | None = None  # a run of the study that has no folder yet

    @property
    def key(self) -> str:
        return self.folder.path.name

    @property
    def title(self) -> str:
        return f"{self.spec.get('rung')}/{self.spec.get('seed')} ({self.key})"


def known_runs(output_root: Path) -> Iterator[Found]:
    """Every run under the output root in the order of keys; folders without a readable spec are passed over."""
    for path in sorted((output_root / "runs").glob("*/spec.json")):
        try:
            spec = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(spec, dict):
            yield Found(folder=RunFolder(path.parent), spec=spec)


def planned_runs(study: Study, settings: Settings) -> list[Found]:
    """The study's runs, launched or not, with their specs as their files say them."""
    return [
        Found(folder=RunFolder(settings.run_dir(run.spec.key)), spec=json.loads(to_json(run.spec)), planned=run)
        for run in study.runs
    ]


def called(word: str, runs: list[Found]) -> list[Found]:
    """All runs that `word` fits."""
    by_key = [r for r in runs if r.key == word] or [r for r in runs if len(word) >= 2 and r.key.startswith(word)]
    rung, _, seed = word.partition("/")
    return by_key or [r for r in runs if r.spec.get("rung") == rung and seed in ("", str(r.spec.get("seed")))]


def find_run(word: str, runs: list[Found], study: Callable[[], Study], settings: Settings) -> Found:
    """The one run that `word` names: a launched one, or one that the study plans; where it fits several, the study's own win.

    Raises `UsageError` with the candidates.
    """
    found = called(word, runs)
    if not found:
        runs = [*runs, *planned_runs(study(), settings)]
        found = called(word, runs)
    if len(found) > 1:
        own = {run.spec.key for run in study().runs}
        found = [r for r in found if r.key in own] or found
    if len(found) == 1:
        return found[0]
    if found:
        named = ", ".join(r.title for r in found[:LISTED]) + (" ..." if len(found) > LISTED else "")
        raise UsageError(f"'{word}' fits {len(found)} runs: {named}; give more of the key")
    names = list(dict.fromkeys(name for r in runs for name in (r.key, str(r.spec.get("rung")))))
    raise UsageError(
        f"no run is called '{word}'{did_you_mean(word, names)}; `gopher status` lists the sweep's runs with their keys"
    )


def one_word(verb: str, overrides: list[str]) -> tuple[str, list[str]]:
    """(RUN, the other words) of a command line such as `gopher why RUN sweep=demo`. Raises `UsageError`."""
    words = [w for w in overrides if "=" not in w and not w.startswith(("~", "-"))]
    if len(words) != 1:
        given = f"{len(words)} words: {' '.join(words)}" if words else "none"
        raise UsageError(
            f"gopher {verb} needs one run and was given {given}; write gopher {verb} KEY, gopher {verb} RUNG or gopher {verb} RUNG/SEED"
        )
    return words[0], [w for w in overrides if w != words[0]]
