"""Proves: the range coder gives every symbol back, in nearly the bits of the information, carries and cut-off ends included."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gopher.coder import MAX_TOTAL, Decoder, Encoder
from gopher.errors import GopherError


@st.composite
def symbols(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(start, size, total) of up to 60 symbols, the whole total and tiny shares at its end among them."""
    out = []
    for _ in range(draw(st.integers(0, 60))):
        total = draw(st.integers(1, MAX_TOTAL) | st.just(MAX_TOTAL))
        start = draw(st.integers(0, total - 1) | st.just(total - 1))
        out.append((start, draw(st.integers(1, total - start) | st.just(1)), total))
    return out


@settings(max_examples=50)
@given(symbols())
def test_round_trip_and_size(wanted: list[tuple[int, int, int]]) -> None:
    encoder = Encoder()
    for symbol in wanted:
        encoder.encode(*symbol)
    coded = encoder.finish()
    bits = sum(math.log2(total / size) for _, size, total in wanted)
    assert 8 * len(coded) <= bits * (1 + 1e-6) + 16
    decoder = Decoder(coded)
    for start, size, total in wanted:
        assert start <= decoder.position(total) < start + size
        decoder.take(start, size)


def test_a_carry_runs_through_many_bytes() -> None:
    """Symbols just below one half, then one above: bytes 255 become 0 and the byte before them grows."""
    half = MAX_TOTAL // 2
    wanted = [(half - 1, 2, MAX_TOTAL)] * 12 + [(half, half, MAX_TOTAL)] * 40
    encoder = Encoder()
    for symbol in wanted:
        encoder.encode(*symbol)
    decoder = Decoder(encoder.finish())
    for start, size, total in wanted:
        assert start <= decoder.position(total) < start + size
        decoder.take(start, size)


def test_an_end_that_is_missing_is_noticed() -> None:
    decoder = Decoder(b"")
    with pytest.raises(GopherError, match="ends too early"):
        for _ in range(100):
            decoder.position(256)
            decoder.take(0, 1)
