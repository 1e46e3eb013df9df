"""Numbers as people read them: 44M, 2.31, 1.2×10¹⁷, 3.94 [3.90, 3.98]. Used by figures, report and tables alike."""

import math
import re

MISSING = "–"  # an en dash: not known; never 0
SUFFIXES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def count(value: float | None) -> str:
    """Parameters and tokens with two figures below ten and whole numbers above: 1.3M, 44M, 280B; 512; beyond 1,000T a power of ten."""
    if value is None or not math.isfinite(value):
        return MISSING
    if abs(value) >= 999.5e12:
        return power_of_ten(value)
    for i, (scale, suffix) in enumerate(SUFFIXES):
        if abs(value) >= scale * 0.9995:
            mantissa = value / scale
            if abs(mantissa) >= 999.5 and i > 0:  # 999,600 is 1.0M, not 1000k
                mantissa, suffix = mantissa / 1000, SUFFIXES[i - 1][1]
            digits = 1 if abs(mantissa) < 9.95 else 0
            return minus(f"{mantissa:.{digits}f}{suffix}")
    return minus(f"{value:.0f}" if abs(value) >= 10 or value == int(value) else f"{value:.2g}")


def tick(value: float) -> str:
    """`count` without a needless decimal, for axis ticks: 1M, 200k, 1.5M."""
    text = count(value)
    return text.replace(".0", "", 1) if any(text.endswith(f".0{suffix}") for _, suffix in SUFFIXES) else text


def power_of_ten(value: float | None, digits: int = 2) -> str:
    """FLOPs and other large numbers: 1.2×10¹⁷."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    raised = "10" + str(int(exponent)).translate(SUPERSCRIPTS)
    return raised if float(mantissa) == 1 else minus(f"{mantissa}×{raised}")


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant figures, thousands separated, powers of ten outside 0.0001 … 1,000,000."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -4 or magnitude >= 6:
        return power_of_ten(value, min(digits, 3))
    return fixed(value, max(0, digits - 1 - magnitude))


def fixed(value: float | None, decimals: int) -> str:
    """`decimals` places, thousands separated, a real minus sign, and no negative zero."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:,.{decimals}f}"
    return minus(text if float(text.replace(",", "")) != 0 else text.lstrip("-"))


def decimals_for(width: float) -> int:
    """Decimal places at which an interval of this width still shows: one figure of the width, two when it begins with 1 to 4."""
    if not (math.isfinite(width) and width > 0):
        return 3
    exponent = math.floor(math.log10(width))
    leading = width / 10.0**exponent
    return min(8, max(0, -exponent + (1 if leading < 4.95 else 0)))


def interval(low: float | None, high: float | None, decimals: int | None = None) -> str:
    """[3.90, 3.98], with as many places as the width deserves; large ends as powers of ten."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return MISSING
    if low > 0 and high / low > 10 or max(abs(low), abs(high)) >= 1e6:  # ends that share no decimal place
        return f"[{number(low, 3)}, {number(high, 3)}]"
    places = decimals_for(high - low) if decimals is None else decimals
    return f"[{fixed(low, places)}, {fixed(high, places)}]"


def with_interval(value: float | None, low: float | None, high: float | None, extra: int = 0) -> str:
    """3.94 [3.90, 3.98]: value and ends with the same places (`extra` more); the value alone when there is no interval."""
    if value is None or low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return number(value)
    if low > 0 and high / low > 10 or max(abs(low), abs(high)) >= 1e6:
        return f"{number(value, 3)} {interval(low, high)}"
    places = decimals_for(high - low) + extra
    return f"{fixed(value, places)} {interval(low, high, places)}"


def uncertain(value: float | None, error: float | None) -> str:
    """3.994 ± 0.009."""
    if value is None or error is None or not math.isfinite(error) or error <= 0:
        return number(value)
    places = decimals_for(error)
    return f"{fixed(value, places)} ± {fixed(error, places)}"


def percent(value: float | None, signed: bool = False) -> str:
    """Percent with two figures below ten: 0.52 %, +1.2 %, 31 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    text = fixed(value, 2 if size < 0.995 else 1 if size < 9.95 else 0)
    plus = "+" if signed and value > 0 and any(c in "123456789" for c in text) else ""
    return f"{plus}{text} %"


def minus(text: str) -> str:
    return text.replace("-", "−")


def rung_name(rung: str) -> str:
    """A rung as people write it: 1_3m is 1.3M, 280b is 280B; `flops 9.9e+20 to 1.3e+22` gets readable ends."""
    size = re.fullmatch(r"(\d+)(?:[_.](\d+))?([kKmMbBtT])", rung)
    if size:
        whole, part, suffix = size.groups()
        return (f"{whole}.{part}" if part else whole) + ("k" if suffix in "kK" else suffix.upper())
    span = re.fullmatch(r"(flops|params|tokens) ([\d.e+]+) to ([\d.e+]+)", rung)
    if span:
        axis, ends = span[1], (float(span[2]), float(span[3]))
        low, high = (power_of_ten(v) if axis == "flops" else count(v) for v in ends)
        return f"{low if low == high else f'{low} – {high}'} {'FLOPs' if axis == 'flops' else axis}"
    return re.sub(r"\d(?:\.\d+)?e\+\d+", lambda match: power_of_ten(float(match[0])), rung)


def listed(names: list[str] | tuple[str, ...], most: int = 6) -> str:
    """a, b and c; a long list ends with how many more there are."""
    if len(names) > most:
        return ", ".join(names[:most]) + f" and {len(names) - most} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1] if names else "")))


def plural(n: int, word: str) -> str:
    """1 run, 2 runs, no runs."""
    return f"{n if n else 'no'} {word}{'' if n == 1 else 's'}"
