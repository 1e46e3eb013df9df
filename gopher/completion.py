"""Text in, text out: a rung continues prompts until a stop string, the end of a document or a number of tokens."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gopher.errors import UsageError
from gopher.generate import generate
from gopher.inference import Rung
from gopher.sampling import Sampling
from gopher.speculative import speculate
from gopher.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Completion:
    text: str  # up to the stop string, which is not part of it
    cut_tokens: int  # of the prompt's beginning, which did not fit in the context


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """A smaller rung that proposes tokens; what is said keeps the model's own distribution, see `gopher.speculative`."""

    rung: Rung
    ahead: int = 4  # tokens proposed at a time


def complete(
    rung: Rung,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    until: Sequence[str] = (),
    sampling: Sampling = Sampling(temperature=0),  # noqa: B008  # frozen
    batch_rows: int = 64,
    streams: Sequence[int] | None = None,
    draft: Draft | None = None,
) -> list[Completion]:
    """The continuation of each prompt; an empty one is the end of the document before. Prompts that are too long lose their beginning, as in lm-evaluation-harness.

    `streams` as in `generate`; with a `draft` the prompts' own numbers count. Raises `UsageError` when `max_new_tokens`
    leaves no room for a prompt, and for a draft with other tokens.
    """
    if not 1 <= max_new_tokens < rung.context:
        raise UsageError(
            f"{max_new_tokens} new tokens are asked for with a context of {rung.context}; ask for 1 to {rung.context - 1}"
        )
    if "" in until:
        raise UsageError("a stop string is empty; leave it out or name some text")
    stops = [stop.encode() for stop in until]
    room = rung.context - max_new_tokens
    whole = [tokens.tolist() or [rung.tokenizer.eos] for tokens in rung.tokenizer.encode(list(prompts))]
    tails = [tokens[-room:] for tokens in whole]
    is_done = ends(rung.tokenizer, stops)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "sampling": sampling, "is_done": is_done}
    how["batch_rows"] = batch_rows
    if draft is None:
        new = generate(rung.reader, tails, streams=streams, **how)
    else:
        check_same_tokens(rung, draft.rung)
        new = speculate(rung.reader, draft.rung.reader, tails, ahead=draft.ahead, **how).tokens
    return [
        finished(rung.tokenizer, tokens, stops, max(0, len(prompt) - room))
        for tokens, prompt in zip(new, whole, strict=True)
    ]


def check_same_tokens(rung: Rung, draft: Rung) -> None:
    ours, theirs = rung.spec.tokenizer_key, draft.spec.tokenizer_key
    if ours != theirs:
        raise UsageError(
            f"the draft was trained with tokenizer {theirs} and the model with {ours}; use a draft of the same sweep"
        )


def ends(tokenizer: Tokenizer, stops: Sequence[bytes]) -> Callable[[list[int]], bool]:
    """Whether the newest token ends a text: the end of a document, or the last byte of a stop string within it."""
    longest = max(
        (len(stop) for stop in stops), default=0
    )  # a token is at least one byte, so this many tokens are enough

    def is_done(tokens: list[int]) -> bool:
        tail = tokenizer.to_bytes(tokens[-longest:]) if stops else b""
        return tokens[-1] == tokenizer.eos or any(stop in tail for stop in stops)

    return is_done


def finished(tokenizer: Tokenizer, tokens: Sequence[int], stops: Sequence[bytes], cut_tokens: int) -> Completion:
    raw = tokenizer.to_bytes(tokens)
    found = [at for at in (raw.find(stop) for stop in stops) if at >= 0]
    text = raw[: min(found)] if found else raw
    return Completion(text=text.decode(errors="replace"), cut_tokens=cut_tokens)
