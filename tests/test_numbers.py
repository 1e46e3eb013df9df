"""Proves that numbers are written as people read them, and that what is written is the number."""

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.numbers import (
    MISSING,
    count,
    decimals_for,
    fixed,
    interval,
    listed,
    number,
    percent,
    plural,
    power_of_ten,
    rung_name,
    tick,
    uncertain,
    with_interval,
)

BACK = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
SCALE = {"k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}


def read(text: str) -> float:
    """The number that a reader takes from the text."""
    text = text.replace(",", "")
    power = re.fullmatch(r"(?:([−\d.]+)×)?10([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", text)
    if power:
        return float((power[1] or "1").translate(BACK)) * 10.0 ** int(power[2].translate(BACK))
    scale = SCALE.get(text[-1], 1.0)
    return float(text.rstrip("kMBT").translate(BACK)) * scale


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (43_663_872, "44M"),
        (1.28e6, "1.3M"),
        (280e9, "280B"),
        (53_000, "53k"),
        (999_600, "1.0M"),
        (512, "512"),
        (None, MISSING),
    ],
)
def test_counts(value, text):
    assert count(value) == text


@settings(deadline=None)
@given(st.floats(1, 1e30))
def test_a_count_is_short_and_within_five_percent(value):
    text = count(value)
    assert len(text) <= 8
    assert abs(read(text) / value - 1) < 0.051


@settings(deadline=None)
@given(st.floats(1e-9, 1e15), st.integers(3, 5))
def test_a_number_keeps_its_figures(value, digits):
    assert abs(read(number(value, digits)) / value - 1) < 0.6 * 10.0 ** -(min(digits, 3) - 1)


@settings(deadline=None)
@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e3))
def test_an_interval_shows_its_width(low, width):
    text = interval(low, low + width)
    a, b = (read(end) for end in text[1:-1].split(", "))
    assert abs((b - a) / width - 1) < 0.3 or abs(low) > 1e4


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (with_interval(3.942, 3.9012, 3.9811), "3.94 [3.90, 3.98]"),
        (with_interval(0.3473, 0.317, 0.373, extra=1), "0.347 [0.317, 0.373]"),
        (with_interval(2.31, None, None), "2.310"),
        (interval(705.9, 68_656.7), "[706, 68,657]"),
        (uncertain(3.9942, 0.0091), "3.994 ± 0.009"),
        (uncertain(3.9942, None), "3.994"),
        (power_of_ten(1.2345e17), "1.2×10¹⁷"),
        (power_of_ten(1e-3), "10⁻³"),
        (percent(-0.5243, signed=True), "−0.52 %"),
        (percent(0.001, signed=True), "0.00 %"),
        (fixed(-0.0001, 2), "0.00"),
        (tick(1e6), "1M"),
        (tick(1.5e6), "1.5M"),
        (listed(["a", "b", "c"]), "a, b and c"),
        (listed(list("abcdefgh"), 3), "a, b, c and 5 more"),
        (plural(0, "run"), "no runs"),
        (rung_name("1_3m"), "1.3M"),
        (rung_name("54k"), "54k"),
        (rung_name("7_1b"), "7.1B"),
        (rung_name("wide-lr2"), "wide-lr2"),
        (rung_name("flops 9.9e+20 to 1.3e+22"), "9.9×10²⁰ – 1.3×10²² FLOPs"),
    ],
)
def test_written_forms(text, wanted):
    assert text == wanted


def test_missing_is_never_zero():
    for shown in (
        count(None),
        number(math.nan),
        percent(None),
        interval(None, 1.0),
        power_of_ten(math.inf),
        fixed(None, 2),
    ):
        assert shown == MISSING


def test_places_follow_the_width():
    assert [decimals_for(w) for w in (0.08, 0.2, 0.012, 30.0, 3.0)] == [2, 2, 3, 0, 1]
