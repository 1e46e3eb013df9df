"""Words for the TAB key: verbs, config groups and their choices, keys, sweeps, rungs and runs. Files are read, nothing is composed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gopher.errors import UsageError
from sweeps.compose import groups
from sweeps.conf_dir import CONF_DIR

VALUES = {"format": ("table", "json"), "watch": ("auto", "true", "false"), "law": ("auto",)}
RUN_VERBS = ("why", "logs", "stop")  # whose first word is a run
RUN_PARTS = ("seed", "tokens", "model", "optim", "batch", "precision", "evaluation", "data", "tokenizer")
WORDS = {"forecast": ("freeze", "score", "list"), "completion": ("bash", "zsh")}
TASKS = Path(__file__).parents[1] / "gopher" / "evals" / "tasks"
RUNS_READ = 200  # spec files opened for their rung; the keys of all runs are offered

BASH = r"""_gopher() {
  local line="${COMP_LINE:0:COMP_POINT}" word cut
  word="${line##* }"
  local IFS=$'\n'
  COMPREPLY=($(gopher __complete "$line" 2>/dev/null))
  # bash takes = and : for the ends of words: what stands before them is on the line already
  cut="${word%"${word##*[=:]}"}"
  [ -z "$cut" ] || COMPREPLY=("${COMPREPLY[@]#"$cut"}")
  [[ ${#COMPREPLY[@]} -ne 1 || "${COMPREPLY[0]}" != *[=.[,] ]] || compopt -o nospace 2>/dev/null
}
complete -F _gopher gopher"""

ZSH = r"""#compdef gopher
_gopher() {
  local -a found
  found=("${(@f)$(gopher __complete "$LBUFFER" 2>/dev/null)}")
  compadd -Q -S '' -- "${found[@]}"
}
compdef _gopher gopher"""


def script(words: list[str]) -> str:
    """The text to source for a shell. Raises `UsageError` for another shell."""
    shells = {"bash": BASH, "zsh": ZSH}
    if len(words) != 1 or words[0] not in shells:
        raise UsageError(
            f"gopher completion was given '{' '.join(words)}'; say bash or zsh, for example: source <(gopher completion bash)"
        )
    return shells[words[0]]


def candidates(line: str, verbs: list[str]) -> list[str]:
    """What the last word of the command line `line` may become."""
    words = line.split(" ")
    done, word = [w for w in words[1:-1] if w], words[-1]
    offered = offers(done, word, verbs)
    return sorted({o for o in offered if o.startswith(word)})


def offers(done: list[str], word: str, verbs: list[str]) -> Iterator[str]:
    if not done:
        yield from verbs
        return
    root = Path(next((w.partition("=")[2] for w in done if w.startswith("output_root=")), "outputs"))
    key, is_value, given = word.partition("=")
    if is_value:
        head = given[: max(given.rfind("["), given.rfind(",")) + 1]  # inside a list, its last item is completed
        yield from (f"{key}={head}{value}" for value in values(key.lstrip("+"), root, in_list=bool(head)))
        return
    yield from WORDS.get(done[0], ())
    if done[0] in RUN_VERBS and all("=" in w for w in done[1:]):
        yield from runs(root)
    if done[0] != "completion":
        yield from (f"{name}=" for name in (*groups(), *keys()))


def values(key: str, root: Path, in_list: bool) -> list[str]:
    """What may stand behind `key=`: choices of a group, rungs, sweeps on disk, tasks, true and false."""
    if key == "rungs":
        return groups()["model"] if in_list else [f"[{rung}" for rung in groups()["model"]]
    if key == "name":
        return names_in(root / "sweeps")
    group = key.removeprefix("axes.")
    if group in groups():
        return [c if in_list or group == key else f"[{c}" for c in groups()[group]]
    if key == "tasks":
        return tasks() if in_list else [f"[{task}" for task in tasks()]
    if isinstance(keys().get(key), bool):
        return ["true", "false"]
    return list(VALUES.get(key, ()))


def keys() -> dict[str, Any]:
    """Every dotted key of the shipped configs with its shipped value, and the axes that a run's keys can be."""
    found: dict[str, Any] = {}
    for path in (CONF_DIR / "config.yaml", *sorted(CONF_DIR.glob("*/*.yaml"))):
        text = path.read_text("utf-8")
        whole = path.parent == CONF_DIR or "@package _global_" in text
        found |= dict(leaves(read_yaml(text), "" if whole else path.parent.name))
    found.pop("defaults", None)
    axes = {f"axes.{key}": None for key in found if key.split(".")[0] in RUN_PARTS}
    return found | axes


def read_yaml(text: str) -> Any:
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(text, Loader=loader)


def leaves(tree: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, dict) and tree:
        for name, value in tree.items():
            yield from leaves(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, tree


def names_in(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError:
        return []


def runs(root: Path) -> Iterator[str]:
    """Run keys, and rung/seed of the first ones."""
    import json

    found = names_in(root / "runs")
    yield from found
    for key in found[:RUNS_READ]:
        try:
            spec = json.loads((root / "runs" / key / "spec.json").read_text("utf-8"))
            yield f"{spec['rung']}/{spec['seed']}"
        except (OSError, ValueError, KeyError, TypeError):
            continue


def tasks() -> list[str]:
    """The evaluation tasks that come with this package; those of the harness would cost seconds to list."""
    return sorted(f.stem for f in TASKS.glob("*.yaml"))
