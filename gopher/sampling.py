"""From logits to the next token: temperature, nucleus, and draws that depend on (seed, row, position) alone."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gopher.draws import bits_at, shifted, signed, stream_key
from gopher.errors import GopherError, UsageError

LEAST_TEMPERATURE = 1e-6  # greedy for every model; quotients by far smaller ones are infinite


@dataclass(frozen=True, kw_only=True)
class Sampling:
    temperature: float = 1.0  # 0: always the most likely token
    top_p: float = (
        1.0  # nucleus: the fewest most likely tokens that together reach this probability (Holtzman et al. 2020)
    )
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0 and not self.temperature >= LEAST_TEMPERATURE:
            raise UsageError(
                f"temperature is {self.temperature}; give 0 for greedy decoding, or {LEAST_TEMPERATURE:g} or more"
            )
        if not 0 < self.top_p <= 1:
            raise UsageError(f"top_p is {self.top_p}; give a probability above 0 and at most 1")


def diverged(who: str = "the model") -> GopherError:
    """What to say of logits that are no numbers."""
    return GopherError(f"{who}'s logits are not finite: the checkpoint has diverged; choose one of an earlier step")


def likeliest(logits: torch.Tensor) -> torch.Tensor:
    """The most likely token of each row. Raises `GopherError` for logits that are no numbers."""
    most, token = logits.max(dim=-1)
    if not most.isfinite().all():
        raise diverged()
    return token


def probabilities(logits: torch.Tensor) -> torch.Tensor:
    """Softmax in float64. Raises `GopherError` for logits that are no numbers."""
    p = torch.softmax(logits.double(), dim=-1)
    if p.isnan().any():
        raise diverged()
    return p


def distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """float64 probabilities (..., V) of the next token."""
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(likeliest(logits), logits.size(-1)).double()
    p = probabilities(logits.double() / sampling.temperature)
    if sampling.top_p == 1:
        return p
    ranked, token = p.sort(dim=-1, descending=True, stable=True)
    before = ranked.cumsum(dim=-1) - ranked
    kept = ranked.masked_fill(before >= sampling.top_p, 0.0)
    return torch.zeros_like(p).scatter_(-1, token, kept / kept.sum(dim=-1, keepdim=True))


def draw(p: torch.Tensor, uniform: torch.Tensor) -> torch.Tensor:
    """One token per row of the (unnormalised) distributions `p` (B, V), by inverse CDF at `uniform` (B,) in (0, 1)."""
    cumulative = p.cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniform[:, None] * cumulative[:, -1:])[:, 0]


class Dice:
    """Uniform numbers in (0, 1] for the positions of each row; other rows and their number do not matter."""

    def __init__(self, seed: int, purpose: str, rows: int | Sequence[int], device: torch.device) -> None:
        """`rows`: how many there are, or the number of each row's own stream."""
        named = range(rows) if isinstance(rows, int) else rows
        keys = [signed(stream_key(seed, purpose, row)) for row in named]
        self.keys, self.device = torch.tensor(keys, dtype=torch.int64), device

    def roll(self, rows: list[int], positions: list[int]) -> torch.Tensor:
        """float64 (rows,): the number of each row at its position."""
        raw = bits_at(self.keys[rows], torch.tensor(positions, dtype=torch.int64))
        return shifted(raw, 11).double().add_(0.5).mul_(2.0**-53).to(self.device)
