"""What a checkpoint answers to requests: text encoded once per tokenizer, shared beginnings evaluated once."""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from gopher.completion import complete
from gopher.dialogue import USER, Dialogue
from gopher.evals import reasoning
from gopher.evals.bundle import DEFAULT_NEW_TOKENS, GENERATE, LIKELIHOOD, ROLLING, Request
from gopher.evals.reasoning import Mode, thought_through
from gopher.inference import Rung
from gopher.sampling import Sampling
from gopher.score import Score, score_documents, score_long
from gopher.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]
LINES = re.compile(r"(?<=\n)(?=[^\n])")  # behind a whole run of line ends


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """What of an answer depends on how it was asked for."""

    stride: int | None = (
        None  # tokens that windows over long documents move by; None: a whole context, as the harness does
    )
    seed: int = 0  # of sampled generations
    mode: str = "plain"  # of `gopher.evals.exam.MODES`
    chains: int = 1

    def of(self, kinds: Collection[str]) -> "Scoring":
        """What of this matters to requests of these kinds: documents are only read, options are compared and not voted
        on, and the dialogue's prompt stands before what is generated."""
        generated = GENERATE in kinds
        thinks = self.mode == "think" and (generated or LIKELIHOOD in kinds)
        return Scoring(
            stride=self.stride if ROLLING in kinds else None,
            seed=self.seed if generated else 0,
            mode=self.mode if generated or thinks else "plain",
            chains=self.chains if generated else 1,
        )

    @property
    def label(self) -> str:
        """What metrics are named after: another way to ask is another metric."""
        return {"plain": "", "think": f"-think{self.chains if self.chains > 1 else ''}"}.get(self.mode, f"-{self.mode}")

    def thinking(self, rung: Rung, answer_tokens: int = 1) -> Mode:
        """The chain of thought that is asked for, in at most a quarter of the context."""
        sizes = {"thought_tokens": rung.context // 4, "answer_tokens": answer_tokens}
        return Mode(think=True, chains=self.chains, seed=self.seed, **sizes)


@dataclass(frozen=True, kw_only=True)
class Answer:
    log_prob: float | None  # nats, summed; None for generated text
    is_greedy: bool | None = None
    n_tokens: int | None = None
    cut_tokens: int = 0  # of the context, dropped on the left to fit the model's
    text: str | None = None  # generated

    @property
    def nats(self) -> float:
        """`log_prob` of an answer that has one."""
        if self.log_prob is None:
            raise ValueError("generated text has no log-probability")
        return self.log_prob


class Encoder:
    """Text to tokens, remembering lines: the examples of a few-shot prompt are encoded once, not once per document.

    Exact, because no piece of our tokenizers reaches over a line end.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._lines: dict[str, Ids] = {}

    def encode(self, text: str) -> Ids:
        lines = LINES.split(text)
        new = [line for line in dict.fromkeys(lines) if line not in self._lines]
        if new:
            found = self.tokenizer.encode(new)
            self._lines |= {line: ids.astype(np.int64) for line, ids in zip(new, found, strict=True)}
        return np.concatenate([self._lines[line] for line in lines])

    def pair(self, context: str, continuation: str) -> tuple[Ids, Ids]:
        """(context, continuation) as lm-evaluation-harness cuts them: blanks at the end of the context go to the continuation."""
        if not context:
            eos, ids = self.tokenizer.eos, self.encode(continuation)
            return (ids[:1], ids[1:]) if ids[0] == eos else (np.array([eos]), ids)
        stem = context.rstrip()
        whole, begin = self.encode(context + continuation), self.encode(stem)
        return begin, whole[len(begin) :]


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """Requests of one kind by their place in the bundle, and their tokens: the same for every checkpoint of a pass."""

    requests: Mapping[int, Request]
    encoder: Encoder

    @cached_property
    def pairs(self) -> list[tuple[Ids, Ids]]:
        return [self.encoder.pair(r.context, r.continuation) for r in self.requests.values()]

    @cached_property
    def documents(self) -> list[Ids]:
        return [self.encoder.encode(r.context) for r in self.requests.values()]


def answer(
    rungs: Sequence[Rung], requests: Sequence[Request], first: int, scoring: Scoring, encoder: Encoder
) -> Iterator[list[Answer]]:
    """Each checkpoint's answers to the requests, in order; `first` is the place of the first request in its bundle.

    The checkpoints share the encoder's tokenizer.
    """
    kinds: defaultdict[str, dict[int, Request]] = defaultdict(dict)
    for i, request in enumerate(requests, first):
        kinds[request.kind][i] = request
    asked = {kind: Asked(requests=own, encoder=encoder) for kind, own in kinds.items()}
    for rung in rungs:
        found = {
            i: one
            for kind, own in asked.items()
            for i, one in zip(own.requests, ANSWERS[kind](rung, own, scoring.of([kind])), strict=True)
        }
        yield [found[i] for i in sorted(found)]


def likelihoods(rung: Rung, asked: Asked, scoring: Scoring) -> list[Answer]:
    pairs = asked.pairs
    if scoring.mode == "think":
        requests = asked.requests.values()
        contexts = concluded(rung, [r.context for r in requests], scoring)
        pairs = [asked.encoder.pair(contexts.get(r.context, ""), r.continuation) for r in requests]
    return [of_score(s) for s in score_long(rung.reader, pairs)]


def concluded(rung: Rung, contexts: Sequence[str], scoring: Scoring) -> dict[str, str]:
    """Context -> with what was thought behind it, once whatever its options."""
    distinct = [context for context in dict.fromkeys(contexts) if context]
    return dict(zip(distinct, thought_through(rung, distinct, scoring.thinking(rung))[0], strict=True))


def rolling(rung: Rung, asked: Asked, scoring: Scoring) -> list[Answer]:
    stride = scoring.stride or rung.context
    found = score_documents(rung.reader, asked.documents, first_token=rung.tokenizer.eos, stride=stride)
    return [of_score(s) for s in found]


def generations(rung: Rung, asked: Asked, scoring: Scoring) -> list[Answer]:
    """Sampled by the place of a request in its bundle, so that no cut into shards shows."""
    requests = asked.requests
    groups: defaultdict[tuple[Any, ...], list[int]] = defaultdict(list)
    for i, request in requests.items():
        groups[how(json.loads(request.options), rung.context // 2)].append(i)
    out: dict[int, Answer] = {}
    for (until, count, temperature, top_p), members in groups.items():
        sampling = Sampling(temperature=temperature, top_p=top_p, seed=scoring.seed)
        prompts = [requests[i].context for i in members]
        if scoring.mode == "think":
            thought = reasoning.answers(rung, prompts, scoring.thinking(rung, count), streams=members)
            made = [(one.text, one.cut_tokens) for one in thought]
        else:
            if scoring.mode == "dialogue":
                room = rung.context - count
                prompts = [Dialogue().said(USER, prompt.strip()).prompt(rung, room).text for prompt in prompts]
                until = (*until, f"\n{USER}:")
            said = complete(rung, prompts, max_new_tokens=count, until=until, sampling=sampling, streams=members)
            made = [(one.text, one.cut_tokens) for one in said]
        for i, (text, cut_tokens) in zip(members, made, strict=True):
            out[i] = Answer(log_prob=None, text=text, cut_tokens=cut_tokens)
    return [out[i] for i in requests]


ANSWERS = {LIKELIHOOD: likelihoods, ROLLING: rolling, GENERATE: generations}


def of_score(found: Score) -> Answer:
    return Answer(
        log_prob=found.log_prob, is_greedy=found.is_greedy, n_tokens=found.n_tokens, cut_tokens=found.cut_tokens
    )


def how(options: dict[str, Any], most_tokens: int) -> tuple[tuple[str, ...], int, float, float]:
    """(stop strings, new tokens, temperature, top_p) of the harness's generation options."""
    until = options.get("until") or []
    stops: Sequence[str] = [until] if isinstance(until, str) else until
    count = min(int(options.get("max_gen_toks", DEFAULT_NEW_TOKENS)), most_tokens)
    sampled = bool(options.get("do_sample", False))
    temperature = float(options.get("temperature", 1.0)) if sampled else 0.0
    return tuple(stop for stop in stops if stop), max(1, count), temperature, float(options.get("top_p", 1.0))
