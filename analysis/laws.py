"""The list of laws: adding one is its formula in a module of its own (or a few terms in `analysis.powers`) and one line here."""

from collections.abc import Callable

from analysis.broken import broken
from analysis.law import CurveLaw, Law, Quantities, SumLaw, Term, feature, internal, named, natural
from analysis.powers import (
    chinchilla,
    chinchilla_tied,
    flops_law,
    flops_power_law,
    kaplan,
    overtraining,
    power_law,
    power_law_offset,
    shared_offset,
)
from analysis.repetition import data_constrained
from gopher.errors import UsageError, did_you_mean

__all__ = [
    "AXES", "LAWS", "CurveLaw", "Law", "Quantities", "SumLaw", "Term", "feature", "internal", "law_named", "named",
    "natural", "shared_offset",
]  # fmt: skip

AXES = ("params", "tokens", "flops")

LAWS: dict[str, Callable[[str], Law]] = {
    "power_law": power_law,
    "power_law_offset": power_law_offset,
    "flops": lambda _: flops_law(),
    "flops_power_law": lambda _: flops_power_law(),
    "kaplan_n": lambda _: kaplan("params", "N"),
    "kaplan_d": lambda _: kaplan("tokens", "D"),
    "kaplan_c": lambda _: kaplan("flops", "C"),
    "chinchilla": lambda _: chinchilla(),
    "chinchilla_tied": lambda _: chinchilla_tied(),
    "overtraining": lambda _: overtraining(),
    "data_constrained": lambda _: data_constrained(),
    "bnsl": broken,
}


def law_named(name: str, x: str = "params") -> Law:
    """The law of that name on the size axis `x`."""
    if name not in LAWS:
        raise UsageError(f"law is '{name}'{did_you_mean(name, list(LAWS))} (there are {', '.join(sorted(LAWS))})")
    if x not in AXES:
        raise UsageError(f"x is '{x}'; use one of {', '.join(AXES)}")
    return LAWS[name](x)
