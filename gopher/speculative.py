"""Speculative sampling: a smaller rung proposes tokens, the model checks several in one pass.

Leviathan et al. 2023, Chen et al. 2023: token x proposed from q is kept with probability min(1, p(x) / q(x)), the first
one refused is replaced by a draw from max(0, p - q), and when all are kept one more comes from p. What is kept is
distributed exactly as if drawn from p, token by token, temperature and nucleus included.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gopher.cache import Cache, Reader
from gopher.errors import UsageError
from gopher.generate import IsDone, Prompt, by_length, checked, never, prefill
from gopher.sampling import Dice, Sampling, distribution, diverged, draw


@dataclass(frozen=True, kw_only=True)
class Speculation:
    tokens: list[list[int]]  # new tokens of each prompt, in order
    proposed: int  # by the draft
    accepted: int


@dataclass(kw_only=True, eq=False)
class Sequences:
    """The rows that still grow: both caches hold all tokens but `last`."""

    rows: list[int]  # indices of prompts
    target: Cache
    draft: Cache
    last: torch.Tensor  # (B,)

    def select(self, kept: torch.Tensor) -> None:
        self.rows = [self.rows[i] for i in kept.tolist()]
        self.target, self.draft, self.last = self.target.select(kept), self.draft.select(kept), self.last[kept]


def speculate(
    target: Reader,
    draft: Reader,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int,
    sampling: Sampling,
    ahead: int = 4,
    is_done: IsDone = never,
    max_length: int | None = None,
    batch_rows: int = 64,
) -> Speculation:
    """New tokens as `generate` of `target` would draw them (other draws, same distribution), `ahead` proposed at a time."""
    check_pair(target, draft, ahead)
    prompts = checked(target, prompts, max_new_tokens, max_length)
    new: list[list[int]] = [[] for _ in prompts]
    dice = [Dice(sampling.seed, purpose, len(prompts), target.device) for purpose in ("draft", "accept", "correct")]
    proposed = accepted = 0
    for rows in by_length(prompts, batch_rows) if max_new_tokens else ():
        caches = [
            prefill(reader, [prompts[row] for row in rows], max_new_tokens + min(ahead, max_new_tokens))
            for reader in (target, draft)
        ]
        sequences = Sequences(rows=rows, target=caches[0][0], draft=caches[1][0], last=caches[0][1])
        while sequences.rows:
            done = [len(new[row]) for row in sequences.rows]
            count = min(ahead, max_new_tokens - min(done) - 1)
            tokens, kept = advance(target, draft, sequences, done, count, sampling, dice)
            for row, line, n in zip(sequences.rows, tokens.tolist(), kept.tolist(), strict=True):
                extend(new[row], line[: n + 1], max_new_tokens, is_done)
            proposed, accepted = proposed + count * len(kept), accepted + int(kept.sum())
            going = [
                i for i, row in enumerate(sequences.rows) if len(new[row]) < max_new_tokens and not is_done(new[row])
            ]
            if len(going) < len(sequences.rows):
                sequences.select(torch.tensor(going, dtype=torch.int64, device=target.device))
    return Speculation(tokens=new, proposed=proposed, accepted=accepted)


def check_pair(target: Reader, draft: Reader, ahead: int) -> None:
    sizes = target.model.spec.vocab_size, draft.model.spec.vocab_size
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"the model has a vocabulary of {sizes[0]} and the draft one of {sizes[1]}; use a draft trained with the same tokenizer"
        )
    if ahead < 1:
        raise UsageError(f"ahead is {ahead}; propose at least 1 token at a time")


def extend(tokens: list[int], more: list[int], limit: int, is_done: IsDone) -> None:
    """Append until the limit or until `is_done`."""
    for token in more:
        tokens.append(token)
        if len(tokens) == limit or is_done(tokens):
            return


def advance(
    target: Reader,
    draft: Reader,
    sequences: Sequences,
    done: list[int],
    count: int,
    sampling: Sampling,
    dice: list[Dice],
) -> tuple[torch.Tensor, torch.Tensor]:
    """One round: (tokens (B, count + 1), proposals accepted per row (B,)); row b goes on with its first accepted + 1.

    Numbers drawn for positions behind the first refusal are looked at by nobody, so the next round may draw the same.
    """
    columns, rows = sequences.target.length, sequences.rows
    guesses, q = propose(draft, sequences, done, count, sampling, dice[0])
    hidden = target.read(torch.cat([sequences.last[:, None], guesses], dim=1), sequences.target)
    p = distribution(target.logits(hidden), sampling)
    kept = accepted_count(p, q, guesses, [dice[1].roll(rows, [d + i for d in done]) for i in range(count)])
    at = kept[:, None, None].expand(-1, 1, p.size(2))
    rest = (p.gather(1, at) - q.gather(1, at))[:, 0].clamp_(min=0)
    correction = draw(rest, dice[2].roll(rows, [d + k for d, k in zip(done, kept.tolist(), strict=True)]))
    sequences.last = correction
    sequences.target, sequences.draft = (c.cut(columns + 1 + kept) for c in (sequences.target, sequences.draft))
    tokens = torch.cat([guesses, correction[:, None]], dim=1)
    return tokens.scatter(1, kept[:, None], correction[:, None]), kept


def propose(
    draft: Reader, sequences: Sequences, done: list[int], count: int, sampling: Sampling, dice: Dice
) -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens (B, count), their distributions (B, count + 1, V), the last one zero); the draft's cache holds them all."""
    feed, guesses, q = sequences.last[:, None], [], []
    for i in range(count):
        logits = draft.logits(draft.read(feed, sequences.draft)[:, -1])
        if not logits.isfinite().all():
            raise diverged("the draft")
        q.append(distribution(logits, sampling))
        feed = draw(q[-1], dice.roll(sequences.rows, [d + i for d in done]))[:, None]
        guesses.append(feed)
    draft.read(feed, sequences.draft)
    nothing = torch.zeros(len(sequences.rows), draft.model.spec.vocab_size, dtype=torch.float64, device=draft.device)
    return torch.cat([feed[:, :0], *guesses], dim=1), torch.stack([*q, nothing], dim=1)


def accepted_count(
    p: torch.Tensor, q: torch.Tensor, guesses: torch.Tensor, uniform: list[torch.Tensor]
) -> torch.Tensor:
    """(B,): how many proposals are kept before the first refusal."""
    if not uniform:
        return torch.zeros(len(p), dtype=torch.int64, device=p.device)
    at = guesses[:, :, None]
    ours, theirs = (x[:, :-1].gather(2, at)[:, :, 0] for x in (p, q))
    return (torch.stack(uniform, dim=1) * theirs <= ours).to(torch.int64).cumprod(dim=1).sum(dim=1)
