"""Laws, axes and parameters in words and formulas, for figures, alternative text and the report."""

from collections.abc import Callable, Mapping

from analysis.law import SumLaw
from analysis.laws import law_named
from analysis.numbers import number
from gopher.errors import UsageError

LAW_NAMES = {
    "power_law": "power law",
    "power_law_offset": "power law + irreducible loss",
    "kaplan_n": "Kaplan L(N)",
    "kaplan_d": "Kaplan L(D)",
    "kaplan_c": "Kaplan L(C)",
    "flops": "power law + irreducible loss",
    "flops_power_law": "power law",
    "chinchilla": "Chinchilla law (approach 3)",
    "chinchilla_tied": "Chinchilla law with one exponent",
    "two_step": "two-step downstream law",
    "score_from_loss": "score from task loss",
    "square_root": "growth as the square root of C",
    "isoflop": "Chinchilla approach 2 (isoFLOP parabolas)",
    "envelope": "Chinchilla approach 1 (envelope)",
    "data_constrained": "data-constrained law",
    "overtraining": "over-training law",
    "bnsl": "broken power law",
    "last_point": "last rung's loss again",
    "last_optimum": "last optimum again",
    "no_offset": "power law",
    "shared_offset": "power laws with a shared irreducible loss",
}
AXIS_NAMES = {"params": "parameters", "tokens": "tokens", "flops": "training FLOPs"}
SYMBOLS = {"params": "N", "tokens": "D", "flops": "C", "unique_tokens": "U", "ratio": "(D/N)"}
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ", "eta": "η"}
MEANINGS = {
    "E": "irreducible loss",
    "a_opt": "power of C with which the optimal size grows",
    "b_opt": "power of C with which the optimal tokens grow",
    "N_exponent": "power of C with which the optimal size grows",
    "D_exponent": "power of C with which the optimal tokens grow",
    "R_D": "repetitions after which a token is worth 1/e",
    "eta": "exponent of compute",
}
SUPERSCRIPT = str.maketrans("-−0123456789.", "⁻⁻⁰¹²³⁴⁵⁶⁷⁸⁹·")


def law_words(name: str) -> str:
    return LAW_NAMES.get(name, name.replace("_", " "))


def axis_words(axis: str, parameters: str) -> str:
    """What an axis counts: non-embedding parameters, tokens, training FLOPs."""
    return convention(parameters) if axis == "params" else AXIS_NAMES[axis]


def convention(parameters: str) -> str:
    """params_non_embedding -> non-embedding parameters."""
    return "non-embedding parameters" if "non_embedding" in parameters else "total parameters"


def symbol(parameter: str) -> str:
    """alpha -> α, alpha@dense -> α (dense)."""
    base, _, family = parameter.partition("@")
    return GREEK.get(base, base) + (f" ({family})" if family else "")


def plain_power(base: str, exponent: str) -> str:
    return base + exponent.translate(SUPERSCRIPT)


def html_power(base: str, exponent: str) -> str:
    return f"<i>{base}</i><sup>{exponent}</sup>"


def equation(
    law: str, params: Mapping[str, float], x: str | None = "params", power: Callable[[str, str], str] = plain_power
) -> str | None:
    """L = 1.82 + 477.8/N⁰·³⁴⁷ + 2,143/D⁰·³⁶⁷, constants first; None for laws that are no sum of powers."""
    try:
        found = law_named(law, x or "params")
    except UsageError:
        return None
    if not isinstance(found, SumLaw) or "family" in found.inputs:
        return None
    constants: list[str] = []
    terms: list[str] = []
    for term in found.terms:
        amplitude = number(params[next(p for p, f, _ in term.factors if f == "1")], 3)
        powers = [(SYMBOLS[f], sign * params[p]) for p, f, sign in term.factors if f != "1"]
        text = amplitude
        for base, exponent in powers:
            text += ("/" if exponent < 0 else "·") + power(base, number(abs(exponent), 3))
        (terms if powers else constants).append(text)
    return f"{'<i>L</i>' if power is html_power else 'L'} = " + " + ".join(constants + terms)
