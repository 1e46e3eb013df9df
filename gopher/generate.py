"""Batched generation from prompts of any lengths, through the cache.

Prompts are padded on the left and the padding is never seen, so a row's tokens are those it would get alone. Draws
depend on (seed, number of the prompt, position): the same call gives the same tokens in any batch size.
"""

from collections.abc import Callable, Iterator, Sequence

import torch

from gopher.cache import Cache, Reader, padding_starts, token_ids
from gopher.errors import UsageError
from gopher.sampling import Dice, Sampling, distribution, draw, likeliest

Prompt = Sequence[int]
IsDone = Callable[[list[int]], bool]  # of the tokens generated so far; asked after every token


def never(_tokens: list[int]) -> bool:
    return False


def generate(
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling = Sampling(temperature=0),  # noqa: B008  # frozen
    is_done: IsDone = never,
    max_length: int | None = None,
    batch_rows: int = 64,
    streams: Sequence[int] | None = None,
) -> list[list[int]]:
    """The new tokens of each prompt, in order: `max_new_tokens`, or fewer when `is_done` says so.

    `max_length` (default: the trained context) is the most a prompt and its new tokens may take together; relative
    positions reach beyond the context, but the model has not learned to use them. `streams` numbers the prompts where they
    are part of a larger whole: prompts of one number draw alike.
    """
    prompts = checked(reader, prompts, max_new_tokens, max_length)
    if streams is not None and len(streams) != len(prompts):
        raise UsageError(f"streams has {len(streams)} numbers for {len(prompts)} prompts; give one for each")
    new: list[list[int]] = [[] for _ in prompts]
    dice = Dice(sampling.seed, "generate", len(prompts) if streams is None else streams, reader.device)
    for rows in by_length(prompts, batch_rows) if max_new_tokens else ():
        cache, last = prefill(reader, [prompts[row] for row in rows], max_new_tokens)
        while rows:
            logits = reader.logits(reader.read(last[:, None], cache)[:, -1])
            if sampling.temperature == 0:
                last = likeliest(logits)
            else:
                last = draw(distribution(logits, sampling), dice.roll(rows, [len(new[row]) for row in rows]))
            for row, token in zip(rows, last.tolist(), strict=True):
                new[row].append(token)
            going = [i for i, row in enumerate(rows) if len(new[row]) < max_new_tokens and not is_done(new[row])]
            if len(going) < len(rows):
                rows, kept = [rows[i] for i in going], torch.tensor(going, dtype=torch.int64, device=reader.device)
                cache, last = cache.select(kept), last[kept]
    return new


def checked(reader: Reader, prompts: Sequence[Prompt], max_new_tokens: int, max_length: int | None) -> list[list[int]]:
    """The prompts' token ids. Raises `UsageError` for those that cannot be read or leave no room for the new ones."""
    limit = reader.model.spec.context if max_length is None else max_length
    room = f"the {limit} of the context" if max_length is None else f"max_length={limit}"
    if max_new_tokens < 0:
        raise UsageError(f"max_new_tokens is {max_new_tokens}; give 0 or more")
    for i, prompt in enumerate(prompts):
        if not len(prompt):
            raise UsageError(f"prompt {i} is empty; begin it with a token such as the end of the document before")
        if len(prompt) + max_new_tokens > limit:
            raise UsageError(
                f"prompt {i} has {len(prompt)} tokens and {max_new_tokens} new ones are asked for, more than {room}; "
                "shorten the prompt, ask for fewer, or raise max_length, beyond what was trained if need be"
            )
    return [token_ids(prompt, reader.model.spec.vocab_size).tolist() for prompt in prompts]


def by_length(prompts: Sequence[Prompt], batch_rows: int) -> Iterator[list[int]]:
    """Indices of prompts of similar length together: little padding. Raises `UsageError` for no rows."""
    if batch_rows < 1:
        raise UsageError(f"batch_rows is {batch_rows}; give 1 or more prompts to read together")
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for begin in range(0, len(order), batch_rows):
        yield order[begin : begin + batch_rows]


def prefill(reader: Reader, prompts: Sequence[Prompt], room: int) -> tuple[Cache, torch.Tensor]:
    """A cache of all but the last token of each prompt, and those last tokens (B,). Equal prompts are read once."""
    distinct = {tuple(prompt): i for i, prompt in enumerate(dict.fromkeys(tuple(p) for p in prompts))}
    width = max(len(prompt) for prompt in distinct) - 1
    padded = torch.zeros(len(distinct), width, dtype=torch.int64)
    for i, prompt in enumerate(distinct):
        padded[i, width + 1 - len(prompt) :] = torch.tensor(prompt[:-1], dtype=torch.int64)
    cache = Cache.empty(reader.model, len(distinct), width + room)
    cache.starts = padding_starts(torch.tensor([width + 1 - len(p) for p in distinct], device=reader.device))
    if width:
        reader.read(padded, cache, skip=width)  # no prediction is wanted before the last token
    if len(distinct) < len(prompts):
        cache = cache.select(torch.tensor([distinct[tuple(p)] for p in prompts], device=reader.device))
    return cache, torch.tensor([p[-1] for p in prompts], device=reader.device)
