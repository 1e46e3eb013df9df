"""`gopher why RUN`: why this run is what it is: its neighbour, what it waits for or failed of, what its key depends on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gopher.errors import GopherError
from gopher.identity import difference, flatten
from gopher.record import FAILED, FINISHED, QUEUED, RUNNING, STOPPED, RunFolder, RunState
from sweeps.find import Found, find_run, known_runs, one_word
from sweeps.screen import Table, console
from sweeps.settings import Settings, settings_of
from sweeps.study import ComposeFn, load_study
from sweeps.worker_output import events_of

LABELS = ("rung", "data.path")  # fields that name or place a run and are no part of its key
EVENTS_SHOWN = 5


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    word, rest = one_word("why", list(overrides))
    settings = settings_of(compose(rest).tree)
    runs = list(known_runs(settings.root))
    found = find_run(word, runs, lambda: load_study(compose, rest), settings)
    answer = explain(found, runs, settings)
    if settings.format == "json":
        print(json.dumps(answer, indent=2))
    else:
        show(answer)
    return 0


def explain(found: Found, runs: list[Found], settings: Settings) -> dict[str, Any]:
    """All that `gopher why` says, as plain values."""
    state = found.folder.state()
    return {
        "key": found.key,
        "rung": found.spec.get("rung"),
        "seed": found.spec.get("seed"),
        "state": state.state if state else None,
        "step": state.step if state else 0,
        "because": because(found, state, settings),
        "nearest": nearest(found, runs),
        "depends_on": dependencies(found, settings.root),
        "code": code_of(found.folder),
        "events": events_of(found.folder)[-EVENTS_SHOWN:],
    }


def because(found: Found, state: RunState | None, settings: Settings) -> str:
    """What the run waits for, works on or failed of, in one sentence."""
    again = "gopher launch of its sweep"
    if found.planned:
        return f"is planned and was not launched yet; {again} trains it"
    if state is None or state.state == QUEUED:
        missing = [d["what"] for d in dependencies(found, settings.root) if not d["present"]]
        if missing:
            return f"waits for its {' and '.join(missing)}, prepared by {again}"
        return f"waits for free cores or GPUs; a running driver starts it in turn, otherwise {again} does"
    if state.state == FINISHED:
        return f"finished after {state.step} steps"
    if state.state == RUNNING:
        if found.folder.is_held():
            return f"is being trained by {holder_of(found.folder)}, {state.step} steps done"
        return (
            f"was interrupted after step {state.step} (its process is gone); {again} goes on from the last checkpoint"
        )
    cure = f"{again} tries it again" if state.state == FAILED else f"{again} goes on with it"
    verb = "stopped" if state.state == STOPPED else state.state
    return f"{verb} after step {state.step} in attempt {state.attempt}: {state.reason or 'no reason was kept'}; {cure}"


def holder_of(folder: RunFolder) -> str:
    """Who signed the run's lock."""
    try:
        return (folder.path / "lock").read_text("utf-8").strip() or "another process"
    except OSError:
        return "another process"


def nearest(found: Found, runs: list[Found]) -> dict[str, Any] | None:
    """The finished run that differs in the fewest fields, and these fields; None when no other run has finished."""
    mine = fields(found)
    candidates = []
    for other in runs:
        if other.key != found.key:
            pairs = difference(mine, fields(other))
            candidates.append((len(pairs), other.spec.get("rung") != found.spec.get("rung"), other.key, other, pairs))
    for *_, other, pairs in sorted(candidates, key=lambda c: c[:3]):  # states are files: read as few as possible
        state = other.folder.state()
        if state is not None and state.state == FINISHED:
            named = {field: {"this": this, "that": that} for field, (this, that) in pairs.items()}
            return {"key": other.key, "rung": other.spec.get("rung"), "seed": other.spec.get("seed"), "differs": named}
    return None


def fields(run: Found) -> dict[str, Any]:
    """Dotted field -> value of everything that the key is made of."""
    return {k: v for k, v in flatten(run.spec).items() if k not in LABELS}


def dependencies(found: Found, root: Path) -> list[dict[str, Any]]:
    """The things whose identity is part of the key, and whether they are on disk."""
    tokenizer, data = str(found.spec.get("tokenizer_key")), str(found.spec.get("data_key"))
    places = [("tokenizer", tokenizer, root / "tokenizers" / tokenizer), ("data", data, root / "data" / data)]
    if parent := found.spec.get("parent"):
        placement = found.planned.placement if found.planned else found.folder.placement()
        places.append(("parent checkpoint", str(parent), Path(str(placement.parent_dir))))
    return [{"what": w, "key": k, "folder": str(p), "present": p.is_dir()} for w, k, p in places]


def code_of(folder: RunFolder) -> dict[str, Any]:
    """Commit, uncommitted files and where their diff is kept; values are None when nothing was recorded."""
    try:
        git = folder.provenance().get("git") or {}
    except (GopherError, ValueError):
        git = {}
    diff = folder.path / "code.diff"
    return {
        "commit": git.get("commit"),
        "changed": git.get("changed", []),
        "diff": str(diff) if diff.exists() else None,
    }


def show(answer: dict[str, Any]) -> None:
    say = console().print
    say(f"{answer['rung']} seed {answer['seed']}, run {answer['key']}: {answer['because']}", markup=False)
    for event in answer["events"]:
        say(f"  {event}", markup=False, style="dim")
    say("its key depends on")
    for d in answer["depends_on"]:
        say(f"  {d['what']} {d['key']}: {'there' if d['present'] else 'not made yet'} ({d['folder']})", markup=False)
    code = answer["code"]
    kept = f", uncommitted changes kept in {code['diff']}" if code["diff"] else ""
    say(f"code: {code['commit'] or 'no commit recorded'}{kept}", markup=False)
    near = answer["nearest"]
    if near is None:
        say("no other finished run to compare with")
        return
    title = f"differs from the nearest finished run, {near['rung']} seed {near['seed']} ({near['key']}), in"
    rows = [[name, str(pair["this"]), str(pair["that"])] for name, pair in near["differs"].items()]
    say(Table(title, ["field", "this run", "that run"], rows))
