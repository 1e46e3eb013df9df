"""`gopher chat CHECKPOINT`: talk to a trained rung on a terminal, or answer the lines of a pipe."""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gopher.errors import require
from sweeps.find import find_run, known_runs, one_word
from sweeps.settings import settings_of
from sweeps.study import ComposeFn, load_study

PROMPT = "> "


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    word, rest = one_word("chat", list(overrides))
    tree = compose(rest).tree
    settings, chat = settings_of(tree), tree["chat"]
    check(chat)

    def folder_of(word: str) -> Path:
        if Path(word).is_dir():
            return Path(word)
        return find_run(word, list(known_runs(settings.root)), lambda: load_study(compose, rest), settings).folder.path

    folder, draft_folder = folder_of(word), folder_of(chat["draft"]) if chat["draft"] else None

    from gopher.completion import Draft, check_same_tokens
    from gopher.dialogue import Dialogue
    from gopher.inference import open_rung

    rung, draft = open_rung(folder), None
    if draft_folder is not None:
        draft = Draft(rung=open_rung(draft_folder), ahead=chat["ahead"])
        check_same_tokens(rung, draft.rung)
    count = chat["max_new_tokens"] or min(128, rung.context // 4)
    if sys.stdin.isatty() and settings.format == "table":
        helped = f", {draft.rung.spec.rung} proposes {draft.ahead} tokens at a time" if draft else ""
        who = f"{rung.spec.rung} after {rung.step} steps, context {rung.context}{helped}"
        print(f"{who}; an empty line or Ctrl-D ends", flush=True)
    talk(rung, draft, Dialogue(prompted=chat["prompted"]), chat, count, settings.format)
    return 0


def check(chat: dict[str, Any]) -> None:
    count = chat["max_new_tokens"]
    require(
        count is None or (type(count) is int and count > 0),
        f"chat.max_new_tokens is {count!r}; give a positive number, or null for a quarter of the context",
    )
    require(
        type(chat["ahead"]) is int and chat["ahead"] > 0, f"chat.ahead is {chat['ahead']!r}; give a positive number"
    )
    require(
        chat["draft"] is None or isinstance(chat["draft"], str),
        f"chat.draft is {chat['draft']!r}; name a run or a folder of one, quoted where it is a number",
    )
    require(isinstance(chat["prompted"], bool), f"chat.prompted is {chat['prompted']!r}; use true or false")


def talk(rung: Any, draft: Any, dialogue: Any, chat: dict[str, Any], count: int, form: str) -> None:
    """Answer question after question; every answer has draws of its own."""
    from gopher.dialogue import reply
    from gopher.sampling import Sampling

    told = False
    for turn, question in enumerate(questions()):
        sampling = Sampling(temperature=chat["temperature"], top_p=chat["top_p"], seed=chat["seed"] + turn)
        answer = reply(rung, dialogue, question, sampling, count, draft)
        dialogue = answer.dialogue
        if form == "json":
            print(
                json.dumps({"question": question, "answer": answer.text, "dropped_turns": answer.prompt.dropped_turns})
            )
        else:
            print(answer.text, flush=True)
        if not told and (answer.prompt.dropped_turns or not answer.prompt.described):
            told = True
            what = (
                "examples and turns" if answer.prompt.described else "description of the dialogue, examples and turns"
            )
            print(f"gopher: the oldest {what} no longer fit in the context of {rung.context} tokens", file=sys.stderr)


def questions() -> Iterator[str]:
    """Lines until the end; on a terminal an empty one ends too, in a pipe it is passed over."""
    while True:
        try:
            line = input(PROMPT) if sys.stdin.isatty() else sys.stdin.readline()
        except EOFError:
            return
        if not sys.stdin.isatty() and not line:
            return
        if line.strip():
            yield line.strip()
        elif sys.stdin.isatty():
            return
