"""What the last launch of a sweep was, kept as data: its words and its frozen specs, in sweeps/<name>/sweep.json.

Where a launched sweep stands can then be told at once and without its text or its configs, which may have changed since.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

from gopher.errors import GopherError
from gopher.record import write_atomic
from gopher.spec import RunSpec
from gopher.spec_json import build
from sweeps.compose import read_word
from sweeps.settings import Settings
from sweeps.study import Study

NAMES_RUNS = ("name", "output_root")  # settings that tell one sweep from another; the rest never changes its runs
ABOUT_ONE_COMMAND = ("detach", "watch", "format")
ADDRESS = "GOPHER_TRACKING_URI"  # where a driver that we start finds the address that holds a password
ADDRESS_WORD = f"tracking.uri=${{oc.env:{ADDRESS}}}"  # which means nothing in a shell of the person


def key_of(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def command_line(verb: str, overrides: Sequence[str], *more: str) -> str:
    """What to type for another command on the same sweep: the user's own words, but for how one command runs."""
    words = [w for w in overrides if key_of(w) not in ABOUT_ONE_COMMAND and w != ADDRESS_WORD]
    return shlex.join(["gopher", verb, *words, *more])


def naming_words(overrides: Sequence[str]) -> list[str]:
    """The overrides that decide which runs a sweep has, in their order."""
    others = {f.name for f in fields(Settings)} - set(NAMES_RUNS)
    return [word for word in overrides if key_of(word).partition(".")[0] not in others]


def without_root(words: Sequence[str]) -> list[str]:
    """Words that name runs, but for the folder in which the record was found, however it is written."""
    return [word for word in words if key_of(word) != "output_root"]


def keep(study: Study, overrides: Sequence[str], settings: Settings) -> None:
    """Write the record of a launch; a later launch under the same name replaces it."""
    record = {"words": naming_words(overrides), "runs": [asdict(spec) for spec in study.specs]}
    write_atomic(settings.sweep_dir / "sweep.json", json.dumps(record, separators=(",", ":")) + "\n")


def as_launched(overrides: Sequence[str], known: Sequence[str], default_root: str) -> list[str]:
    """The overrides with `sweep=NAME` of a sweep that was launched as name=NAME told in the words of its last launch.

    A name among `known`, of a config, means that config; a word that is said again replaces that of the launch.
    """
    said = {key_of(word): word for word in overrides}
    name = read_word(said["sweep"]).value if "sweep" in said else None
    if not name or name in known:
        return list(overrides)
    root = read_word(said["output_root"]).value if "output_root" in said else default_root
    try:
        words = json.loads((Path(str(root)) / "sweeps" / str(name) / "sweep.json").read_text("utf-8"))["words"]
        last = {key_of(word): number for number, word in enumerate(words)}  # of a word that was said twice, it counts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return list(overrides)  # no such launch: composing them says what is wrong
    del said["sweep"]
    launched = [said.pop(key, words[number]) for key, number in sorted(last.items(), key=lambda item: item[1])]
    rest = [word for word in overrides if key_of(word) in said]
    return [*(word for word in rest if "=" not in word), *launched, *(word for word in rest if "=" in word)]


def specs_of(overrides: Sequence[str], settings: Settings) -> list[RunSpec] | None:
    """The specs of the last launch if these words name the same runs; None if they do not or the record cannot be read."""
    try:
        record = json.loads((settings.sweep_dir / "sweep.json").read_text("utf-8"))
        if without_root(record["words"]) == without_root(naming_words(overrides)):
            return [build(RunSpec, values, "sweep.json") for values in record["runs"]]
    except (OSError, ValueError, KeyError, TypeError, GopherError):
        pass  # no launch yet, or one of another version
    return None
