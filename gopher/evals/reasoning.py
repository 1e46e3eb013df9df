"""Prompt modes for questions: plain, zero-shot chain of thought in two stages, and self-consistency over several chains.

Chain of thought as in Kojima et al. 2022: the model first continues "Let's think step by step.", then the answer is
asked for behind what it wrote. Self-consistency as in Wang et al. 2022: chains are sampled and their answers vote.
The answer is the generated line. Prompts that outgrow the context lose their beginning, which at the contexts of the small
rungs may be the question; `cut_tokens` says so.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from gopher.completion import Completion, complete
from gopher.errors import UsageError
from gopher.inference import Rung
from gopher.sampling import Sampling

THINK = "Let's think step by step."
CONCLUDE = "Therefore, the answer is"
GREEDY = Sampling(temperature=0)
NEXT_QUESTION = ("\nQ:", "\n\n")


@dataclass(frozen=True, kw_only=True)
class Mode:
    """How a question is put. One chain is greedy; several are sampled and vote."""

    think: bool = False
    chains: int = 1
    temperature: float = 0.7  # of sampled chains, as in Wang et al. 2022
    thought_tokens: int = 64
    answer_tokens: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("chains", "thought_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; give 1 or more")
        if self.chains > 1 and not self.think:
            raise UsageError(f"chains is {self.chains} without think; plain answers have no chain to vote with")


@dataclass(frozen=True, kw_only=True)
class Answer:
    text: str
    votes: tuple[str, ...]  # the answer of each chain
    chains: tuple[str, ...]  # what was thought; empty in plain mode
    cut_tokens: int  # of prompts' beginnings, over all chains


def answers(rung: Rung, prompts: Sequence[str], mode: Mode, streams: Sequence[int] | None = None) -> list[Answer]:
    """The answer to each prompt, which ends where the answer begins.

    `streams` numbers the prompts where they are part of a larger whole, as in `gopher.generate.generate`.
    """
    repeated = [i for i in range(len(prompts)) for _ in range(mode.chains)]
    numbers = range(len(prompts)) if streams is None else streams
    own = [numbers[i] * mode.chains + chain for i in range(len(prompts)) for chain in range(mode.chains)]
    asked, thoughts = thought_through(rung, [prompts[i] for i in repeated], mode, own)
    cut = [thought.cut_tokens for thought in thoughts] or [0] * len(asked)
    made = complete(rung, asked, max_new_tokens=mode.answer_tokens, until=("\n",), sampling=GREEDY)
    votes = [completion.text.strip() for completion in made]
    cut = [before + completion.cut_tokens for before, completion in zip(cut, made, strict=True)]
    spans = [slice(i * mode.chains, (i + 1) * mode.chains) for i in range(len(prompts))]
    return [
        Answer(
            text=majority(votes[span]),
            votes=tuple(votes[span]),
            chains=tuple(thought.text for thought in thoughts[span]),
            cut_tokens=sum(cut[span]),
        )
        for span in spans
    ]


def majority(votes: Sequence[str]) -> str:
    """The first of the votes that most agree with after tidying; of equal ones the earliest."""
    winner = Counter(map(tidy, votes)).most_common(1)[0][0]
    return next(vote for vote in votes if tidy(vote) == winner)


def thought_through(
    rung: Rung, prompts: Sequence[str], mode: Mode, streams: Sequence[int] | None = None
) -> tuple[list[str], list[Completion]]:
    """The prompts of the second stage and the thoughts in them; the prompts as they are when the mode does not think."""
    if not mode.think:
        return list(prompts), []
    thoughts = think(rung, prompts, mode, streams)
    pairs = zip(prompts, thoughts, strict=True)
    return [f"{prompt} {THINK} {thought.text.strip()}\n{CONCLUDE}" for prompt, thought in pairs], thoughts


def think(rung: Rung, prompts: Sequence[str], mode: Mode, streams: Sequence[int] | None = None) -> list[Completion]:
    sampling = GREEDY if mode.chains == 1 else Sampling(temperature=mode.temperature, seed=mode.seed)
    asked = [f"{prompt} {THINK}" for prompt in prompts]
    return complete(
        rung, asked, max_new_tokens=mode.thought_tokens, until=NEXT_QUESTION, sampling=sampling, streams=streams
    )


def tidy(text: str) -> str:
    """An answer for comparing: one line, lower case, without articles, blanks and final punctuation around it."""
    line = text.strip().split("\n")[0].lower().strip(" .,:;!?\"'")
    return re.sub(r"^(a|an|the)\s+", "", line)
