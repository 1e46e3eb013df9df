"""Random numbers as a pure function of (key, index), so that no shard, device or resume can change them.

Element i of the stream `key` is the SplitMix64 finaliser (Steele et al. 2014) of key + (i + 1) * golden gamma. Every
rank draws exactly the elements that it holds, at their index in the whole tensor.
"""

import hashlib
import math
from dataclasses import dataclass

import torch

GOLDEN = 0x9E3779B97F4A7C15
FINALISER = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
BLOCK = 1 << 22  # elements per block: bounds the float64 and int64 scratch to a few hundred MB


def stream_key(*parts: int | str) -> int:
    """A 64-bit stream key from words such as (seed, "init", "blocks.0.qkv.weight")."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def signed(value: int) -> int:
    """The two's-complement int64 with the low 64 bits of `value`; tensor arithmetic wraps the same way."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Some columns of a whole matrix, as one rank holds them: rows of `width` elements, `stride` apart, from `start` on."""

    start: int
    width: int
    stride: int


Place = int | Columns  # the elements that a rank holds: all from this one on, or some columns


def bits(key: int, place: Place, count: int, device: torch.device | str = "cpu", begin: int = 0) -> torch.Tensor:
    """int64 tensor of 64 random bits each: elements begin .. begin + count - 1 of those at `place` in the stream."""
    index = torch.arange(begin, begin + count, dtype=torch.int64, device=device)
    if isinstance(place, Columns):
        index = index // place.width * place.stride + index % place.width + place.start
    else:
        index += place
    return bits_at(signed(key), index)


def bits_at(keys: torch.Tensor | int, index: torch.Tensor) -> torch.Tensor:
    """Element index[i] of the stream keys[i] (int64, as `signed`), or of the one stream `keys`: 64 random bits each."""
    x = (index + 1).mul_(signed(GOLDEN)).add_(keys)
    for shift, factor in FINALISER:
        x.bitwise_xor_(shifted(x, shift)).mul_(signed(factor))
    return x.bitwise_xor_(shifted(x, 31))


def shifted(x: torch.Tensor, places: int) -> torch.Tensor:
    """Logical right shift; `>>` on int64 would copy the sign bit in."""
    return (x >> places).bitwise_and_((1 << (64 - places)) - 1)


def fill_normal(out: torch.Tensor, key: int, std: float, place: Place = 0) -> None:
    """Overwrite the contiguous `out` with std * N(0, 1): the stream's elements at `place`, by inverse CDF in float64.

    53 uniform bits at cell centres: |z| stays below 8.3. The float64 rounding differences between devices
    vanish when the value is stored in `out`'s narrower type (up to about 1 element in 2^28).
    """
    flat = out.view(-1)
    for begin in range(0, flat.numel(), BLOCK):
        part = flat[begin : begin + BLOCK]
        u = shifted(bits(key, place, part.numel(), out.device, begin), 11).double().add_(0.5)
        part.copy_(u.mul_(2.0**-52).sub_(1.0).erfinv_().mul_(std * math.sqrt(2.0)))
