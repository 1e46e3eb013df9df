"""`gopher chat CHECKPOINT`: talk to a trained rung on a terminal, or answer the lines of a pipe."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeps.find import find_run, known_runs, one_word
from sweeps.settings import settings_of
from sweeps.study import ComposeFn, load_study

PROMPT = "> "


def run(compose: ComposeFn, overrides: Sequence[str]) -> int:
    word, rest = one_word("chat", list(overrides))
    settings = settings_of(compose(rest).tree)
    chat = settings.chat

    def folder_of(word: str) -> Path:
        if Path(word).is_dir():
            return Path(word)
        return find_run(word, list(known_runs(settings.root)), lambda: load_study(compose, rest), settings).folder.path

    folder, draft_folder = folder_of(word), folder_of(chat.draft) if chat.draft is not None else None

    from gopher.completion import Draft, check_same_tokens
    from gopher.dialogue import Dialogue
    from gopher.inference import open_rung
    from gopher.sampling import Sampling

    sampling = Sampling(temperature=chat.temperature, top_p=chat.top_p, seed=chat.seed)
    rung, draft = open_rung(folder), None
    if draft_folder is not None:
        draft = Draft(rung=open_rung(draft_folder), ahead=chat.ahead)
        check_same_tokens(rung, draft.rung)
    count = chat.max_new_tokens or min(128, rung.context // 4)
    if sys.stdin.isatty() and settings.format == "table":
        helped = f", {draft.rung.spec.rung} proposes {draft.ahead} tokens at a time" if draft else ""
        who = f"{rung.spec.rung} after {rung.step} steps, context {rung.context}{helped}"
        print(f"{who}; an empty line or Ctrl-D ends", flush=True)
    talk(rung, draft, Dialogue(prompted=chat.prompted), sampling, count, settings.format)
    return 0


def talk(rung: Any, draft: Any, dialogue: Any, sampling: Any, count: int, form: str) -> None:
    """Answer question after question; every answer has draws of its own."""
    from gopher.dialogue import reply

    told = False
    for turn, question in enumerate(questions()):
        answer = reply(rung, dialogue, question, replace(sampling, seed=sampling.seed + turn), count, draft)
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
