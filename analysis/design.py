"""Which run to buy next: candidates ranked by how much each narrows the target's prediction per unit cost.

V-optimal design. With J the law's Jacobian d ln(loss)/d theta at the runs done, W their weights and s^2 the residual
variance, the parameters have covariance (s^-2 J' W J + P)^-1 and the target, with gradient g, the variance g' Cov g.
One more run with gradient j and noise v lowers it by (g' Cov j)^2 / (v + j' Cov j), exactly so for the linearised law.
P is a weak prior (a factor of 20 on amplitudes, 1 on exponents), so that a direction the data leave open counts as wide
open and not as known. The irreducible noise of the target's own run is no part of what is ranked.

What a seed is worth follows the fit's noise: where rungs scatter about the law by more than seeds do, a further seed of
a rung shrinks only the seed part; otherwise it counts as a full observation.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from analysis.estimate import Estimate
from analysis.result import FitResult
from analysis.rows import Array
from analysis.sizes import same_design
from gopher.errors import UsageError

PRIOR_SD_LOG = 3.0  # of internal parameters that are logarithms: a factor of 20
PRIOR_SD = 1.0  # of exponents
MOST_PICKS = 30
INPUTS = ("params", "tokens", "unique_tokens", "flops")


@dataclass(frozen=True, kw_only=True)
class Option:
    """A run that could be made. `cost` is in any unit, the same for all options; None takes the FLOPs."""

    name: str
    params: float | None = None
    tokens: float | None = None
    flops: float | None = None
    unique_tokens: float | None = None
    cost: float | None = None

    @property
    def price(self) -> float:
        price = self.cost if self.cost is not None else self.flops
        if price is None or not (math.isfinite(price) and price > 0):
            raise UsageError(f"option {self.name} has cost {price}; give each option a cost above 0 or its FLOPs")
        return price


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """One option with what it would do to the target. Standard deviations are of the law at the target, in percent of the loss."""

    option: Option
    cost: float
    runs_there: int  # runs already at that size and token count; 0: a new rung
    sd_now: float | None  # None: the fit has no degrees of freedom to measure noise by
    sd_after: float | None
    drop: float  # share of the target's variance that goes: 0 … 1
    drop_per_cost: float  # relative to the best option: 1 for the best


@dataclass(frozen=True, kw_only=True)
class Advice:
    """The ranking of single runs, and a sequence that spends a budget greedily, each pick given the ones before."""

    target: Mapping[str, float]
    law: str
    unit: str  # of the costs
    ranking: tuple[Suggestion, ...]
    sequence: tuple[Suggestion, ...]
    notes: tuple[str, ...]


def suggest(
    result: FitResult,
    target: Mapping[str, float],
    options: Sequence[Option],
    *,
    picks: int | None = None,
    budget: float | None = None,
    unit: str | None = None,
) -> Advice:
    """Options (`analysis.options` makes some) ranked by drop of the target's variance per cost.

    `target` holds what the law reads (params, tokens, flops). `budget` is in the unit of the costs; with it the sequence
    goes on until nothing more fits (or `picks` runs), without it the sequence has three runs.
    """
    e = result.known_estimate()
    goal = gradient_at(e, target, "the target")
    free = [o.name for o in options if o.cost is None]
    if 0 < len(free) < len(options):
        raise UsageError(
            f"option {free[0]} has no cost and others have ({len(free)} of {len(options)} have none); give every option a cost or none"
        )
    found = list(options)
    if budget is not None:
        found = [o for o in found if o.price <= budget]
    if not found:
        raise UsageError(
            f"there is no option to rank{'' if budget is None else f' within a budget of {budget:.4g}'}; give options or a larger budget"
        )
    state = State(covariance=covariance(e), runs=[runs_there(e, o) for o in found])
    ranking = ranked(e, goal, found, state)
    return Advice(
        target=dict(target),
        law=result.law,
        unit=unit or ("FLOPs" if free else "cost"),
        ranking=tuple(ranking),
        sequence=tuple(sequence(e, goal, found, state, picks or (3 if budget is None else MOST_PICKS), budget)),
        notes=notes(result, e),
    )


# ------------------------------------------------------------------------------------------------ the linearised law


@dataclass(frozen=True, kw_only=True)
class State:
    """What is known: covariance of the internal parameters in units of the noise variance, and runs per option."""

    covariance: Array
    runs: list[int]


def covariance(e: Estimate) -> Array:
    """(J' W J + s^2 P)^-1 over the free parameters, in units of s^2 (1 % noise stands in where none was measured)."""
    columns = e.free_columns
    rows = e.law.gradient(e.params, e.inputs)[:, columns]
    prior = np.where(e.law.logged()[columns], PRIOR_SD_LOG, PRIOR_SD) ** -2.0
    information = (rows.T * e.weights) @ rows + unit_variance(e) * np.diag(prior)
    scale = 1 / np.sqrt(np.diag(information))  # correlations invert more exactly than raw sums
    inverse: Array = np.linalg.inv(information * np.outer(scale, scale)) * np.outer(scale, scale)
    return inverse


def unit_variance(e: Estimate) -> float:
    sd = e.noise.unit_sd_log
    return sd**2 if sd else 1e-4


def gradient_at(e: Estimate, inputs: Mapping[str, Any], what: str) -> Array:
    """d ln(loss)/d free parameters at one design."""
    missing = [name for name in e.law.inputs if inputs.get(name) is None]
    if missing:
        raise UsageError(
            f"{what} lacks {' and '.join(missing)}, which law {e.law.name} reads; give {', '.join(e.law.inputs)}"
        )
    at = {name: np.array([float(inputs[name])]) for name in e.law.inputs}
    row: Array = e.law.gradient(e.params, at)[0, e.free_columns]
    return row


def option_inputs(option: Option) -> dict[str, float | None]:
    return {name: getattr(option, name) for name in INPUTS}


def runs_there(e: Estimate, option: Option) -> int:
    """Runs already done at the option's design (equal in everything the law reads)."""
    known = {name: e.inputs[name] for name in e.law.inputs}
    wanted = {name: option_inputs(option).get(name) for name in e.law.inputs}
    return 0 if None in wanted.values() else int(same_design(known, wanted).sum())


def noise_of_next(e: Estimate, runs: int) -> float:
    """Noise variance of one more run where `runs` are, in units of s^2: what it adds to the information of its rung's mean.

    With rung effects of variance t^2 and seeds of v, the mean of k runs has variance t^2 + v/k; the gain in precision is
    the difference between k + 1 and k runs.
    """
    unit = unit_variance(e)
    seed = e.noise.seed_sd_log**2 if e.noise.seed_sd_log else None
    if e.noise.per != "rung" or seed is None:
        return 1.0 / e.noise.seed_weight if e.noise.seed_weight else 1.0
    seed = min(seed / unit, 1.0)
    rung = max(1.0 / e.noise.rung_weight - seed / e.noise.rung_weight, 0.0)
    if runs == 0:
        return rung + seed
    gain = 1 / (rung + seed / (runs + 1)) - 1 / (rung + seed / runs)
    return 1 / gain if gain > 0 else math.inf


# ------------------------------------------------------------------------------------------------ ranking


def ranked(e: Estimate, goal: Array, options: Sequence[Option], state: State) -> list[Suggestion]:
    """All options, best drop per cost first."""
    now = float(goal @ state.covariance @ goal)
    out = []
    for option, runs in zip(options, state.runs, strict=True):
        row = gradient_at(e, option_inputs(option), f"option {option.name}")
        gone = float(goal @ state.covariance @ row) ** 2 / (
            noise_of_next(e, runs) + float(row @ state.covariance @ row)
        )
        out.append(suggestion(e, option, runs, now, gone))
    best = max((s.drop / s.cost for s in out), default=0.0) or 1.0
    out = [replace(s, drop_per_cost=s.drop / s.cost / best) for s in out]
    return sorted(out, key=lambda s: (-s.drop_per_cost, s.cost, s.option.name))


def suggestion(e: Estimate, option: Option, runs: int, now: float, gone: float) -> Suggestion:
    unit = e.noise.unit_sd_log
    return Suggestion(
        option=option,
        cost=option.price,
        runs_there=runs,
        sd_now=100 * unit * math.sqrt(now) if unit else None,
        sd_after=100 * unit * math.sqrt(max(now - gone, 0.0)) if unit else None,
        drop=gone / now if now > 0 else 0.0,
        drop_per_cost=0.0,
    )


def sequence(
    e: Estimate, goal: Array, options: Sequence[Option], state: State, picks: int, budget: float | None
) -> list[Suggestion]:
    """The greedy sequence, or within a budget the one run that narrows most where that does better (small cheap steps can
    use up a budget that one large run would have used better; the better of the two is never below half the optimum)."""
    steps = greedy(e, goal, options, state, picks, budget)
    single = max(ranked(e, goal, options, state), key=lambda s: s.drop)
    kept = math.prod(1 - s.drop for s in steps)
    return [single] if budget is not None and 1 - single.drop < kept else steps


def greedy(
    e: Estimate, goal: Array, options: Sequence[Option], state: State, picks: int, budget: float | None
) -> list[Suggestion]:
    """The best option, then the best given that it was run, and so on: `picks` runs or until the budget is spent."""
    left, chosen = math.inf if budget is None else budget, []
    for _ in range(picks):
        able = [i for i, o in enumerate(options) if o.price <= left]
        if not able:
            break
        best = ranked(e, goal, [options[i] for i in able], replace(state, runs=[state.runs[i] for i in able]))[0]
        chosen.append(best)
        left -= best.cost
        state = after(e, options, state, next(i for i in able if options[i] is best.option))
    return chosen


def after(e: Estimate, options: Sequence[Option], state: State, pick: int) -> State:
    """What is known once the picked run is done (its expected effect; the covariance does not depend on its loss)."""
    row = gradient_at(e, option_inputs(options[pick]), options[pick].name)
    moved = state.covariance @ row
    noise = noise_of_next(e, state.runs[pick])
    runs = [n + (i == pick) for i, n in enumerate(state.runs)]
    return State(covariance=state.covariance - np.outer(moved, moved) / (noise + float(row @ moved)), runs=runs)


def notes(result: FitResult, e: Estimate) -> tuple[str, ...]:
    """What a reader of the ranking should know."""
    out = []
    if e.noise.unit_sd_log is None:
        out.append("the fit has no degrees of freedom, so the ranking is relative and no standard deviations are given")
    if e.noise.seed_sd_log is None:
        out.append(
            "no rung has two seeds, so a further seed is taken to average out all scatter about the law; a second seed of one rung would show whether it does"
        )
    if not result.verdict.identified:
        out.append(
            f"the ranking rests on {result.law}, the law that the data carry: {'; '.join(result.verdict.reasons)}"
        )
    return tuple(out)
