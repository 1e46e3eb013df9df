"""What a fit says, in sentences: a headline, then each finding as good, worth knowing, or a warning. Nothing is softened:
a held-out rung outside its interval, a loss that does not fall, a law the data cannot carry are said in these words."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, get_args

import numpy as np

from analysis.holdout import HoldOut
from analysis.numbers import (
    count,
    decimals_for,
    fixed,
    interval,
    known,
    listed,
    number,
    percent,
    plural,
    power_of_ten,
    rung_name,
    with_interval,
)
from analysis.result import FitResult, Prediction
from analysis.words import GREEK, axis_words, equation, law_words, symbol

Level = Literal["warning", "good", "note"]  # in the order in which they are read
SIZE = 1e5  # what is held out is a loss or score below it, an optimal size above
FAR_DECADES = 1.0  # beyond this a prediction is called a long extrapolation


@dataclass(frozen=True, kw_only=True)
class Finding:
    level: Level
    text: str
    details: tuple[str, ...] = ()


def warning(text: str, details: tuple[str, ...] = ()) -> Finding:
    return Finding(level="warning", text=text, details=details)


def good(text: str) -> Finding:
    return Finding(level="good", text=text)


def note(text: str) -> Finding:
    return Finding(level="note", text=text)


@dataclass(frozen=True, kw_only=True)
class Findings:
    headline: str
    findings: tuple[Finding, ...]


def findings(result: FitResult) -> Findings:
    """The headline and everything a reader must know before using a number, warnings first."""
    found = [
        *holdout_findings(result),
        *(finding for fit in result.also for finding in also_findings(fit)),
        *order_findings(result),
        *verdict_findings(result),
        *baseline_findings(result),
        *noise_findings(result),
        *interval_findings(result),
        *target_findings(result),
        *(finding for fit in elsewhere(result) for finding in target_findings(fit)),
        *choice_findings(result),
        *optimum_findings(result),
        *exclusion_findings(result),
        *(warning(sentence(text)) for text in result.points.notes),
    ]
    order = get_args(Level)
    return Findings(headline=headline(result), findings=tuple(sorted(found, key=lambda f: order.index(f.level))))


def sentence(text: str) -> str:
    """The text with a capital (names such as alpha or power_law stay as they are) and a full stop."""
    text = text.strip()
    first = text.split(" ")[0]
    named = "_" in first or first in GREEK
    return (text if named else text[:1].upper() + text[1:]) + ("" if text.endswith((".", "!", "?")) else ".")


# ------------------------------------------------------------------------------------------------ headline


def headline(result: FitResult) -> str:
    """Two sentences: the law with its exponent, and the largest rung predicted against measured."""
    held = largest_holdout(result)
    parts = [law_sentence(result)]
    if not result.verdict.identified:
        asked = result.verdict.law
        parts.append(
            f"The data do not determine the {law_words(asked)}{', so this is a simpler law' if asked != result.law else ''}."
        )
    if held is not None:
        parts.append(holdout_sentence(held))
    elif result.predictions:
        parts.append(prediction_sentence(result.predictions[0]))
    return " ".join(parts)


def law_sentence(result: FitResult) -> str:
    """Loss falls as N⁻⁰·⁰⁵³, exponent 0.053 [0.047, 0.060]."""
    alpha = result.params.get("alpha")
    if result.x is not None and alpha is not None:
        formula = equation(result.law, result.params, result.x)
        power = f"exponent {ranged(result, 'alpha')}"
        floor = f", irreducible loss {ranged(result, 'E')}" if "E" in result.params else ""
        axis = axis_words(result.x, result.parameters)
        start = (
            f"Loss falls with {axis} as"
            if clearly_falls(result)
            else f"Loss does NOT clearly fall with {axis}; the fit is"
        )
        return f"{start} {formula}: {power}{floor}."
    if "a_opt" in result.derived:
        formula = equation(result.law, result.params, result.x)
        start = f"{formula}. " if formula else ""
        return (
            f"{start}Compute-optimal size grows as C to the power {ranged(result, 'a_opt', result.derived['a_opt'])}."
        )
    formula = equation(result.law, result.params, result.x)
    return f"{law_words(result.law)[:1].upper()}{law_words(result.law)[1:]}: {formula or listed([f'{symbol(k)} {number(v, 3)}' for k, v in result.params.items()], 8)}."


def clearly_falls(result: FitResult) -> bool:
    """Whether each rung is better than the one before and the exponent's interval stays above 0."""
    low = result.ci.get("alpha", {}).get("95", (result.params["alpha"], 0.0))[0]
    return low > 0 and not any(f.level == "warning" for f in order_findings(result))


def ranged(result: FitResult, name: str, estimate: float | None = None) -> str:
    """A parameter with its 95 % interval."""
    estimate = result.params.get(name) if estimate is None else estimate
    ends = result.ci.get("N_exponent" if name == "a_opt" and "N_exponent" in result.ci else name, {}).get("95")
    return with_interval(estimate, ends[0], ends[1], extra=1) if ends else number(estimate, 3)


def largest_holdout(result: FitResult) -> HoldOut | None:
    """The largest rung as predicted from all the smaller ones by the law reported."""
    own = [h for h in result.holdout if h.law == result.law]
    return max(own, key=lambda h: (h.fitted_rungs, h.decades), default=None)


def holdout_sentence(h: HoldOut) -> str:
    name, others = held_words(h)
    start = f"{name}, predicted from the {others}: "
    if h.interval95 is None:
        error = percent(h.error_percent, True)
        return f"{start}{value(h.predicted)}, measured {value(h.actual)}: {error}, with no interval to judge it by."
    verdict = "inside" if h.inside else "OUTSIDE"
    measured = value(h.actual) if h.actual >= SIZE else same_places(h.actual, h.interval95)
    return f"{start}{guess(h)}, measured {measured}: {verdict} the 95 % interval."


def value(v: float) -> str:
    """A loss or score as it is, an optimal size as a count."""
    return count(v) if v >= SIZE else number(v)


def guess(h: HoldOut) -> str:
    """What was predicted, with its 95 % interval where there is one."""
    if h.interval95 is None:
        return value(h.predicted)
    return f"{value(h.predicted)} {range95(h)}" if h.predicted >= SIZE else with_interval(h.predicted, *h.interval95)


def range95(h: HoldOut) -> str:
    """The 95 % interval in the words of `value`."""
    low, high = h.interval95 or (float("nan"), float("nan"))
    return f"[{value(low)}, {value(high)}]" if h.predicted >= SIZE else interval(low, high)


def held_words(h: HoldOut) -> tuple[str, str]:
    """What was held out and what it was predicted from: a rung from rungs, an optimum from smaller budgets, a range of sizes."""
    name = rung_name(h.rung)
    if "opt at" in name:
        return name, plural(h.fitted_rungs, "smaller budget")
    if name == h.rung or len(name) <= 10:
        return name, plural(h.fitted_rungs, "smaller rung")
    return f"The largest runs ({name})", "smaller ones"


def same_places(value: float, ends: tuple[float, float]) -> str:
    """A measured value with the places of the interval it is compared with, and more where it would sit on an end."""
    places = decimals_for(ends[1] - ends[0])
    while places < 6 and any(fixed(value, places) == fixed(end, places) for end in ends):
        places += 1
    return fixed(value, places)


def prediction_sentence(p: Prediction) -> str:
    names = {"params": "parameters", "flops": "FLOPs"}
    at = listed([f"{power_of_ten(v) if k == 'flops' else count(v)} {names.get(k, k)}" for k, v in p.inputs.items()])
    ends = p.intervals.get("95")
    parts = [f"the law predicts {with_interval(p.mean, *ends) if ends else number(p.mean)}"] if known(p.mean) else []
    if "N_opt" in p.derived:
        split = f"{optimum_words(p, 'N_opt')} parameters and {optimum_words(p, 'D_opt')} tokens"
        parts.append(f"best spent on {split}" if parts else f"the optimum is {split}")
    return f"At {at} {', '.join(parts)}."


def optimum_words(p: Prediction, key: str) -> str:
    ends = p.derived_ci.get(key, {}).get("95")
    optimum = count(p.derived[key])
    return f"{optimum} [{count(ends[0])}, {count(ends[1])}]" if ends else optimum


# ------------------------------------------------------------------------------------------------ findings


def holdout_findings(result: FitResult) -> Iterator[Finding]:
    held = largest_holdout(result)
    if held is None:
        yield warning("No rung was held out, so nothing shows how well this law predicts.")
        return
    name, others = held_words(held)
    far = (
        f"{fixed(held.decades, 2)} decades beyond what it was made from"
        if held.decades > 0
        else "within the sizes it was made from"
    )
    error = percent(held.error_percent, True)
    if held.interval95 is None:
        yield note(
            f"Held out: {name} is predicted from the {others} with an error of {error}, {far}; there is no interval to judge it by."
        )
        return
    say, where = (good, "inside") if held.inside else (warning, "OUTSIDE")
    yield say(
        f"Held out: {name} ({value(held.actual)}) is {where} the 95 % prediction interval {range95(held)}; "
        f"the prediction is off by {error}, {far}."
    )
    yield from rolling_findings(result)


def rolling_findings(result: FitResult) -> Iterator[Finding]:
    """How many of all hold-outs lie inside their intervals."""
    judged = [h for h in result.holdout if h.law == result.law and h.interval95 is not None]
    missed = [h for h in judged if not h.inside]
    if len(judged) < 2:
        return
    kept = len(judged) - len(missed)
    text = f"{kept} of {len(judged)} hold-outs {'lies' if kept == 1 else 'lie'} inside the 95 % interval"
    if missed:
        names = listed([f"{rung_name(h.rung)} from {h.fitted_rungs}" for h in missed])
        yield warning(f"{text}; outside: {names} smaller ones.")
    else:
        yield good(f"{text}.")


def elsewhere(result: FitResult) -> list[FitResult]:
    """The fits in `also` with those targets alone that the main law did not read."""
    mine = [p.inputs for p in result.predictions]
    return [replace(fit, predictions=tuple(p for p in fit.predictions if p.inputs not in mine)) for fit in result.also]


def also_findings(fit: FitResult) -> Iterator[Finding]:
    """The same ladder against another axis: its held-out rung, and its verdict when that is bad."""
    held, axis = largest_holdout(fit), axis_words(fit.x or "params", fit.parameters)
    for f in verdict_findings(fit):
        if f.level == "warning":
            yield replace(f, text=f"Against {axis}: {f.text[0].lower()}{f.text[1:]}")
    if held is not None and held.interval95 is not None:
        say = good if held.inside else warning
        yield say(f"Against {axis}: {holdout_sentence(held)}")


def order_findings(result: FitResult) -> Iterator[Finding]:
    """Whether loss falls strictly along the ladder (mean over seeds)."""
    if result.x is None or result.estimate is None:
        return
    rungs = result.points.rungs(result.parameters)
    if len(rungs) < 2 or len(rungs) > 40:
        return
    loss = result.points.column("loss")
    means = [(rung_name(name), float(loss[rows].mean())) for name, rows in rungs.items()]
    wrong = [
        f"{b} ({number(after)}) is not below {a} ({number(before)})"
        for (a, before), (b, after) in pairwise(means)
        if after >= before
    ]
    if wrong:
        yield warning(
            f"Loss does NOT fall at every step of the ladder: {listed(wrong)}. "
            "Check the learning rate and the length of those runs before trusting the curve."
        )
    else:
        (first, high), (last, low) = means[0], means[-1]
        yield good(
            f"Loss falls at every step of the ladder, from {number(high)} at {first} to {number(low)} at {last}."
        )


def verdict_findings(result: FitResult) -> Iterator[Finding]:
    v = result.verdict
    if v.identified:
        yield good(f"The data determine every parameter of the {law_words(result.law)}.")
        return
    asked = v.law or result.law
    ending = (
        f"; the {law_words(result.law)} is reported instead."
        if result.law != asked
        else ", so its numbers are not to be relied on."
    )
    reasons = (sentence(r) for r in v.reasons if " is reported instead of " not in r)
    yield warning(f"The data do not determine the {law_words(asked)}{ending}", tuple(reasons))


def baseline_findings(result: FitResult) -> Iterator[Finding]:
    """A naive prediction that did better than the law is said, not hidden."""
    held = largest_holdout(result)
    if held is None:
        return
    own = abs(held.error_percent)
    naive = {name: 100 * abs(v / held.actual - 1) for name, v in held.baselines.items() if known(v)}
    better = [f"{law_words(name)} ({percent(error)})" for name, error in naive.items() if error < own - 1e-6]
    if better:
        yield warning(
            f"On the held-out rung a naive prediction did better than the law ({percent(own)}): {listed(better)}."
        )


def noise_findings(result: FitResult) -> Iterator[Finding]:
    n = result.noise
    if n is None:
        return
    if n.seed_sd_log is None:
        yield note(
            "Seed noise was not measured: no rung has two seeds, so scatter between seeds and error of the law cannot be told apart."
        )
        return
    seeds = f"Seeds of one rung differ by {percent(100 * n.seed_sd_log)} (standard deviation, {plural(n.seed_dof, 'degree')} of freedom)"
    if n.residual_sd_log is None:
        yield note(f"{seeds}; no degrees of freedom are left to see how far rungs lie from the law.")
        return
    told = (
        "more than seeds explain, so more seeds will not narrow the curve; intervals use the larger number."
        if n.per == "rung"
        else "no more than seeds explain."
    )
    yield note(f"{seeds}, rungs lie {percent(100 * n.residual_sd_log)} from the law: {told}")


def interval_findings(result: FitResult) -> Iterator[Finding]:
    if not result.ci:
        why = "bootstrap is 0" if result.settings.bootstrap == 0 else "no degrees of freedom are left"
        yield warning(f"There are no confidence intervals, because {why}.")


def target_findings(result: FitResult) -> Iterator[Finding]:
    """How far each target lies beyond the data."""
    inputs = result.points.inputs(result.parameters)
    for p in result.predictions:
        axis = "flops" if "flops" in p.inputs else "params"
        largest = float(np.nanmax(inputs[axis])) if np.isfinite(inputs[axis]).any() else None
        decades = float(np.log10(p.inputs[axis] / largest)) if largest and axis in p.inputs else 0.0
        beyond = f" That is {fixed(decades, 2)} decades beyond the largest run." if decades > 0 else ""
        unsure = decades > FAR_DECADES or (known(p.mean) and p.intervals.get("95") is None)
        say = warning if unsure else note
        yield say(prediction_sentence(p) + beyond)


def choice_findings(result: FitResult) -> Iterator[Finding]:
    """Which laws were tried and what decided."""
    tried = result.candidates
    if len(tried) < 2:
        return
    words = [
        f"{law_words(c.law)} {percent(100 * c.holdout_rmse_log) if c.holdout_rmse_log is not None else 'not judged'}{'' if c.identified else ' (not determined by the data)'}"
        for c in tried
    ]
    yield note(
        f"The law was chosen by its error on held-out rungs, not by its fit: {listed(words)}. Chosen: {law_words(result.law)}."
    )


def optimum_findings(result: FitResult) -> Iterator[Finding]:
    o = result.optimum
    if o is None:
        return
    if not o.starts:
        yield note("Nothing was searched: the minimum is found in closed form.")
        return
    ending = (
        "no other distinct minimum was found."
        if o.runner_up is None
        else f"the next distinct minimum is {percent(100 * (o.runner_up / o.objective - 1))} higher."
    )
    yield note(f"{percent(100 * o.start_share)} of {o.starts:,} starts reached the minimum; {ending}")


def exclusion_findings(result: FitResult) -> Iterator[Finding]:
    n = len(result.excluded)
    if n:
        yield note(f"{plural(n, 'run')} left out of the fit, each named below with its reason.")
    else:
        yield good("No run was left out.")
