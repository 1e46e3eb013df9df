"""Log-likelihoods of continuations, with every shared prefix evaluated once and logits only where they are read.

A request is (context, continuation) in token ids. Inputs longer than the window lose tokens on the left, as in
lm-evaluation-harness, and the result says how many. Sums do not depend on which requests are scored together beyond
float rounding.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from gopher.cache import Cache, Places, Reader, token_ids
from gopher.errors import UsageError
from gopher.prefixes import Row, Segment, Tokens, batches, order, pack, tree
from gopher.sampling import diverged
from gopher.step import HIDDEN

PACKED_TOKENS = 512  # a tree up to this size is one row: attention between its branches is computed for nothing
BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
SHARED_TIMES = 1.5  # sequences become a tree when that saves a third of their tokens
READ_ROWS = 256  # positions whose logits (V each) exist at once

Ids = Sequence[int] | Tokens
Request = tuple[Ids, Ids]


@dataclass(frozen=True, kw_only=True)
class Score:
    log_prob: float  # nats, summed over the continuation
    is_greedy: bool  # every token was the most likely one
    n_tokens: int  # of the continuation
    cut_tokens: int = 0  # of the context, dropped on the left to fit the window


@dataclass(frozen=True, kw_only=True)
class Text:
    """The input tokens of one request (without the last, which is only a target) and what to read from them."""

    inputs: Tokens
    targets: Tokens  # of the last positions of `inputs`
    cut_tokens: int

    @property
    def first_read(self) -> int:
        return len(self.inputs) - len(self.targets)


def score(
    reader: Reader, requests: Sequence[Request], *, window: int | None = None, batch_tokens: int | None = None
) -> list[Score]:
    """The score of each request, in order; `window` (default: the trained context) is the most input tokens of one.

    `batch_tokens` are evaluated at once; the default fits the device: scores of more would leave a core's cache.
    """
    window = window_of(reader, window)
    if batch_tokens is not None and batch_tokens < 1:
        raise UsageError(f"batch_tokens is {batch_tokens}; give 1 or more tokens to evaluate at once")
    batch_tokens = batch_tokens or BATCH_TOKENS[reader.device.type]
    texts = [text_of(i, request, window, reader.model.spec.vocab_size) for i, request in enumerate(requests)]
    tally = Tally(texts)
    waiting: list[tuple[Segment, Cache | None]] = [
        (large, None) for large in score_level(reader, tally, tree(tally.sequences), None, batch_tokens)
    ]
    while waiting:
        segment, prefix = waiting.pop()
        wanted = tally.wanted([stem(segment)])
        cache, hidden = read_prefix(reader, segment, prefix, wanted.first)
        tally.read(reader, wanted, hidden)
        waiting += [(s, cache) for s in score_level(reader, tally, segment.branches, cache, batch_tokens)]
    scores = tally.scores()
    if not all(math.isfinite(s.log_prob) for s in scores):
        raise diverged()
    return scores


def score_level(
    reader: Reader, tally: "Tally", segments: list[Segment], prefix: Cache | None, batch_tokens: int
) -> list[Segment]:
    """Read the trees behind `prefix` that fit in rows; the others, whose first segment is to be cached."""
    segments = [part for s in segments for part in worth_sharing(s, tally.sequences)]
    fits = [s.is_chain or s.size <= PACKED_TOKENS for s in segments]
    for batch in batches([s for s, fit in zip(segments, fits, strict=True) if fit], batch_tokens):
        rows = [pack(segment) for segment in batch]
        wanted = tally.wanted(rows)
        tally.read(reader, wanted, read_rows(reader, rows, prefix, wanted.first))
    return [s for s, fit in zip(segments, fits, strict=True) if not fit]


def worth_sharing(segment: Segment, sequences: Sequence[Tokens]) -> list[Segment]:
    """The tree, or its sequences one by one where they share so little that masking branches from each other costs more."""
    whole = sum(len(sequences[i]) - segment.depth for i in segment.sequences)
    if segment.is_chain or whole > SHARED_TIMES * segment.size:
        return [segment]
    alone = [(sequences[i][segment.depth :], range(i, i + 1)) for i in segment.sequences]
    return [Segment(tokens=t, depth=segment.depth, sequences=own, size=len(t)) for t, own in alone]


def window_of(reader: Reader, window: int | None) -> int:
    """The most input tokens of a request: the trained context where nothing else is asked for."""
    if window is not None and window < 1:
        raise UsageError(f"window is {window}; give 1 or more tokens")
    return window or reader.model.spec.context


def text_of(index: int, request: Request, window: int, vocab_size: int) -> Text:
    context, continuation = (token_ids(part, vocab_size) for part in request)
    if not len(continuation):
        raise UsageError(f"request {index} has an empty continuation; give it at least one token")
    if not len(context):
        raise UsageError(
            f"request {index} has an empty context; begin it with a token such as the end of the document before"
        )
    if len(continuation) > window:
        raise UsageError(
            f"request {index} has a continuation of {len(continuation)} tokens, more than the window of {window}; "
            "score it as a document with a sliding window"
        )
    inputs = np.concatenate([context, continuation[:-1]])
    return Text(inputs=inputs[-window:], targets=continuation, cut_tokens=max(0, len(inputs) - window))


# ---- forward passes


def read_rows(reader: Reader, rows: list[Row], prefix: Cache | None, skip: int) -> torch.Tensor:
    """Hidden states (B, n - skip, d_model) of rows padded on the right, each behind the shared prefix."""
    width = len(rows[0].tokens)
    tokens = np.zeros((len(rows), width), np.int64)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = row.tokens
    places = None if rows[0].sees is None else places_of(rows, prefix.total if prefix else 0, reader)
    cache = Cache.empty(reader.model, len(rows), width, prefix)
    return reader.read(torch.from_numpy(tokens), cache, places, skip)


def places_of(rows: list[Row], before: int, reader: Reader) -> Places:
    """Every token sees the prefix of `before` tokens and its own ancestors; padding sees nothing and is never seen."""
    width = len(rows[0].tokens)
    depth = np.zeros((len(rows), width), np.int64)
    sees = np.zeros((len(rows), width, before + width), np.bool_)
    for i, row in enumerate(rows):
        n = len(row.tokens)
        depth[i, :n] = row.depth + before
        sees[i, :n, :before] = True
        sees[i, :n, before : before + n] = row.sees
    keys = np.concatenate([np.tile(np.arange(before), (len(rows), 1)), depth], axis=1)
    dtype = torch.promote_types(reader.model.embedding.dtype, torch.float32)
    mask = torch.from_numpy(~sees).to(reader.device, dtype) * HIDDEN
    distance = torch.from_numpy(depth[:, :, None] - keys[:, None, :]).to(reader.device)
    return Places(distance=distance, mask=mask, stem=min(len(row.segments[0][1].tokens) for row in rows))


def read_prefix(reader: Reader, segment: Segment, prefix: Cache | None, skip: int) -> tuple[Cache, torch.Tensor]:
    """A cache of everything up to the end of `segment`, and the segment's hidden states (1, n - skip, d_model)."""
    length = len(segment.tokens)
    cache = Cache.empty(reader.model, 1, length + (prefix.total if prefix else 0))
    if prefix is not None:
        cache.store[..., : prefix.length, :] = prefix.store[..., : prefix.length, :]
        cache.length = prefix.length
    hidden = reader.read(torch.from_numpy(segment.tokens.copy())[None], cache, skip=skip)
    return cache, hidden


def stem(segment: Segment) -> Row:
    """The segment alone, without its branches, as a row."""
    return Row(tokens=segment.tokens, depth=np.arange(len(segment.tokens)), sees=None, segments=((0, segment),))


# ---- what is read


@dataclass(frozen=True, kw_only=True, eq=False)
class Wanted:
    """Targets to read from rows, one by one; no row has one before column `first`."""

    row: Tokens
    column: Tokens
    target: Tokens
    request: Tokens
    first: int


class Tally:
    """Collects log-probabilities of targets by request; equal inputs are one sequence with several readers."""

    def __init__(self, texts: list[Text]) -> None:
        self.texts = texts
        self.log_prob, self.is_greedy = np.zeros(len(texts)), np.ones(len(texts), np.bool_)
        self.sequences: list[Tokens] = []
        self.readers: list[list[int]] = []  # requests of each sequence
        for i in order([text.inputs for text in texts]):
            if not self.sequences or not np.array_equal(self.sequences[-1], texts[i].inputs):
                self.sequences.append(texts[i].inputs)
                self.readers.append([])
            self.readers[-1].append(i)

    def read(self, reader: Reader, wanted: Wanted, hidden: torch.Tensor) -> None:
        """Read all targets from the hidden states of their rows, which begin at column `wanted.first`."""
        if not len(wanted.row):
            return
        flat, inverse = np.unique(wanted.row * hidden.size(1) + wanted.column - wanted.first, return_inverse=True)
        states = hidden.flatten(0, 1)[torch.from_numpy(flat).to(hidden.device)]
        for begin in range(0, len(flat), READ_ROWS):
            here = (inverse >= begin) & (inverse < begin + READ_ROWS)
            logits = reader.logits(states[begin : begin + READ_ROWS])
            position = torch.from_numpy(inverse[here] - begin).to(logits.device)
            token = torch.from_numpy(wanted.target[here]).to(logits.device)
            log_prob = logits[position, token] - logits.logsumexp(dim=-1)[position]
            greedy = logits.argmax(dim=-1)[position] == token
            np.add.at(self.log_prob, wanted.request[here], log_prob.double().cpu().numpy())
            np.logical_and.at(self.is_greedy, wanted.request[here], greedy.cpu().numpy())

    def wanted(self, rows: list[Row]) -> Wanted:
        """Every target whose position lies in these rows."""
        found: list[npt.NDArray[np.int64]] = []
        for i, row in enumerate(rows):
            for column, segment in row.segments:
                end = segment.depth + len(segment.tokens)
                for request in (r for s in segment.sequences for r in self.readers[s]):
                    text = self.texts[request]
                    first, stop = max(text.first_read, segment.depth), min(len(text.inputs), end)
                    if first < stop:
                        positions = np.arange(first, stop)
                        block = np.empty((4, len(positions)), np.int64)
                        block[0], block[1], block[3] = i, column + positions - segment.depth, request
                        block[2] = text.targets[positions - text.first_read]
                        found.append(block)
        table = np.concatenate(found, axis=1) if found else np.empty((4, 0), np.int64)
        first = int(table[1].min()) if found else max(len(row.tokens) for row in rows)
        return Wanted(row=table[0], column=table[1], target=table[2], request=table[3], first=first)

    def scores(self) -> list[Score]:
        return [
            Score(log_prob=float(p), is_greedy=bool(g), n_tokens=len(text.targets), cut_tokens=text.cut_tokens)
            for p, g, text in zip(self.log_prob, self.is_greedy, self.texts, strict=True)
        ]


# ---- documents


def score_documents(
    reader: Reader,
    documents: Sequence[Ids],
    *,
    first_token: int,
    stride: int,
    window: int | None = None,
    batch_tokens: int | None = None,
) -> list[Score]:
    """The score of each whole document, however long, behind `first_token` (the end of the document before).

    Windows of `window` inputs (default: the trained context) move by `stride`: after the first one, each token is
    predicted from at least window - stride tokens. stride = window is fastest, a smaller one is closer to the truth.
    """
    window = window_of(reader, window)
    requests: list[Request] = []
    owner = []
    for i, document in enumerate(documents):
        whole = np.concatenate([[first_token], np.asarray(document, dtype=np.int64)])
        for begin, scored, end in windows(len(document), window, stride):
            requests.append((whole[begin : scored + 1], whole[scored + 1 : end + 1]))
            owner.append(i)
    parts = score(reader, requests, window=window, batch_tokens=batch_tokens)
    return [replace(total, cut_tokens=0) for total in added(len(documents), owner, parts)]


def score_long(
    reader: Reader, requests: Sequence[Request], *, window: int | None = None, batch_tokens: int | None = None
) -> list[Score]:
    """`score` for continuations of any length: one longer than the window is read in windows that follow each other."""
    window = window_of(reader, window)
    pieces: list[Request] = []
    owner = []
    for i, (context, continuation) in enumerate(requests):
        for begin in range(0, max(1, len(continuation)), window):
            before = np.concatenate([context, continuation[:begin]]) if begin else context
            pieces.append((before, continuation[begin : begin + window]))
            owner.append(i)
    return added(len(requests), owner, score(reader, pieces, window=window, batch_tokens=batch_tokens))


def added(count: int, owner: Sequence[int], parts: Sequence[Score]) -> list[Score]:
    """The parts of each of `count` texts as one score; the first part says what was cut of the context."""
    totals: dict[int, Score] = {}
    for i, part in zip(owner, parts, strict=True):
        total = totals.get(i)
        totals[i] = (
            part
            if total is None
            else Score(
                log_prob=total.log_prob + part.log_prob,
                is_greedy=total.is_greedy and part.is_greedy,
                n_tokens=total.n_tokens + part.n_tokens,
                cut_tokens=total.cut_tokens,
            )
        )
    empty = Score(log_prob=0.0, is_greedy=True, n_tokens=0)
    return [totals.get(i, empty) for i in range(count)]


def windows(n_tokens: int, window: int, stride: int) -> list[tuple[int, int, int]]:
    """(first input, first scored, end) of the windows that score each of `n_tokens` positions exactly once."""
    if not 1 <= stride <= window:
        raise UsageError(f"stride is {stride} with a window of {window}; give a stride between 1 and the window")
    cuts = [(0, 0, min(window, n_tokens))] if n_tokens else []
    while cuts and cuts[-1][2] < n_tokens:
        end = min(cuts[-1][2] + stride, n_tokens)
        cuts.append((end - window, cuts[-1][2], end))
    return cuts
