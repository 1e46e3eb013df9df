"""From points to a fitted law: settings in, one result object out, the same from Python and the command line.

fit -> law asked for -> estimate at the true optimum -> verdict -> (fall back) -> intervals -> hold-outs -> predictions
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from analysis.bootstrap import Interval, Resamples, intervals, resample, uncertainty
from analysis.envelope import fit_envelope
from analysis.estimate import Estimate, estimate
from analysis.holdout import HoldOut, error_log, next_rungs, rolling, size_axis
from analysis.identify import Profile, Verdict, judge, other_size_reasons, structural_reasons
from analysis.intervals import prediction_intervals
from analysis.isoflop import fit_isoflop, too_few_minima
from analysis.law import Law
from analysis.laws import AXES, LAWS, law_named, shared_offset
from analysis.noise import Noise
from analysis.optimum import Optimum
from analysis.result import (
    Candidate,
    FitResult,
    FitSettings,
    Prediction,
    dumps,
    to_json,
)
from analysis.rows import Excluded, Point, Points
from analysis.sensitivity import sensitivity_rows
from gopher.errors import UsageError, did_you_mean

__all__ = [
    "Candidate", "Excluded", "FitResult", "FitSettings", "HoldOut", "Noise", "Optimum", "Point", "Points",
    "Prediction", "Profile", "Verdict", "dumps", "fit", "to_json",
]  # fmt: skip


METHODS: dict[str, Callable[[Points, FitSettings], FitResult]] = {"isoflop": fit_isoflop, "envelope": fit_envelope}
ALIASES = {
    "approach1": "envelope",
    "approach2": "isoflop",
    "approach3": "chinchilla",
    "power": "power_law",
    "power_offset": "power_law_offset",
}


def fit(points: Points, settings: FitSettings | None = None) -> FitResult:
    """The law asked for, at its true optimum, with intervals, verdict and hold-outs."""
    s = settings or FitSettings()
    name = ALIASES.get(s.law, s.law)
    check(points, name, s)
    if name == "auto":
        return choose(points, s)
    if name in METHODS:
        return fit_method(points, name, s)
    if name == "shared_offset":
        return fit_law(points, shared_law(points, s), s)
    return fit_law(points, law_named(name, s.x), s)


def fit_method(points: Points, name: str, s: FitSettings) -> FitResult:
    """Approach 1 or 2; approach 3 in place of 2 where too few budgets have a minimum among their sizes to give a line."""
    if name == "isoflop" and s.fallback and np.isfinite(points.column("tokens")).all():
        refused = too_few_minima(points, s)
        if refused is not None:
            return fall_back(points, refused, "chinchilla", s)
    return METHODS[name](points, s)


def shared_law(points: Points, s: FitSettings) -> Law:
    """One irreducible loss for all families of the points."""
    families = tuple(sorted({p.family for p in points}))
    if len(families) < 2 or "" in families:
        raise UsageError(
            f"law shared_offset shares E over families and the points have {len(families)} ({', '.join(map(repr, families))}); "
            "map the column with columns.family=NAME or fit power_law_offset"
        )
    return shared_offset(s.x, families)


def check(points: Points, law: str, s: FitSettings) -> None:
    """Refuse settings that name nothing."""
    names = ["auto", *LAWS, *METHODS, *ALIASES, "shared_offset", "two_step"]
    if law == "two_step":
        raise UsageError(
            "law two_step needs checkpoints with a task score; use analysis.command.run_fit or analysis.chain.fit_chain"
        )
    if law not in names:
        raise UsageError(f"law is '{s.law}'{did_you_mean(s.law, names)} (there are {', '.join(names)})")
    if s.x not in AXES:
        raise UsageError(f"x is '{s.x}'; use one of {', '.join(AXES)}")
    if s.parameters not in ("auto", "non_embedding", "total"):
        raise UsageError(f"parameters is '{s.parameters}'; use auto, non_embedding or total")
    if s.bootstrap < 0:
        raise UsageError(f"bootstrap is {s.bootstrap}; give the number of resamples, 0 for none")
    if s.delta is not None and not s.delta > 0:
        raise UsageError(f"delta is {s.delta}; give a positive Huber width on log residuals, or null for the law's own")
    if len(points) < 2:
        raise UsageError(
            f"{points.source or 'the table'} has {len(points)} point(s); a law needs at least 2, so add runs"
        )
    if bad := next((p for p in points if not (np.isfinite(p.loss) and p.loss > 0)), None):
        raise UsageError(
            f"run {bad.run_id} has {bad.loss_name} = {bad.loss:g} and laws are fitted to the logarithm; leave such runs out with where="
        )


# ------------------------------------------------------------------------------------------ one law


def fit_law(points: Points, law: Law, s: FitSettings) -> FitResult:
    """`law` fitted; a simpler one reported in its place when the data cannot carry it."""
    check_pinned(law, s)
    e = law_estimate(points, law, s, wide=True)
    structural = structural_reasons(e)
    r = None if structural else resample(e, s.bootstrap, s.seed)
    verdict, found = judge(e, r)
    carried = verdict.identified or (not structural and (law.keeps or other_size_reasons(e)))  # no simpler law mends it
    if carried or not s.fallback or law.simpler is None:
        return report(e, r, verdict, found, s)
    return fall_back(points, verdict, law.simpler, s)


def fall_back(points: Points, verdict: Verdict, simpler: str, s: FitSettings) -> FitResult:
    """The law `simpler` with the verdict on the one asked for."""
    lower = fit_law(points, law_named(simpler, s.x), replace(s, pinned={}))
    told = (*verdict.reasons, f"{lower.law} is reported instead of {verdict.law}")
    if not lower.verdict.identified:
        told = (*told, *lower.verdict.reasons)
    return replace(lower, requested=s.law, settings=s, verdict=replace(verdict, reasons=told, reported=lower.law))


def check_pinned(law: Law, s: FitSettings) -> None:
    for name, value in s.pinned.items():
        if name not in law.parameters:
            raise UsageError(
                f"pinned.{name} is no parameter of {law.name}{did_you_mean(name, law.parameters)} (it has {', '.join(law.parameters)})"
            )
        if law.logged()[law.parameters.index(name)] and not value > 0:
            raise UsageError(
                f"pinned.{name} is {value}, and {name} of {law.name} is positive; pin it to a number above 0 or choose a law without it"
            )


def law_delta(law: Law, s: FitSettings) -> float | None:
    return law.delta if s.delta is None else s.delta


def counts(law: Law, s: FitSettings) -> str:
    """The parameter count a law is fitted with: the one asked for, else the law's own."""
    return law.counts if s.parameters == "auto" else s.parameters


def law_seeds(law: Law) -> str:
    """Ladders (least squares) count each design point once; the published Huber fits count each run."""
    return "mean" if law.delta is None else "runs"


def law_estimate(points: Points, law: Law, s: FitSettings, wide: bool = False) -> Estimate:
    return estimate(
        law,
        points,
        parameters=counts(law, s),
        delta=law_delta(law, s),
        pinned=s.pinned,
        seeds=law_seeds(law),
        wide=wide,
    )


def law_holdouts(points: Points, law: Law, s: FitSettings, axis: str | None = None) -> tuple[HoldOut, ...]:
    pinned = {k: v for k, v in s.pinned.items() if k in law.parameters}
    return rolling(
        law, points, parameters=counts(law, s), delta=law_delta(law, s), pinned=pinned, seeds=law_seeds(law),
        most=s.holdout, seed=s.seed, axis=axis,
    )  # fmt: skip


def report(
    e: Estimate,
    r: Resamples | None,
    verdict: Verdict,
    found: tuple[Profile, ...],
    s: FitSettings,
    held: tuple[HoldOut, ...] | None = None,
) -> FitResult:
    """The result object of an estimate: intervals, hold-outs, predictions, sensitivity."""
    sampled = r.quantities(e) if r else {}
    ci, errors = uncertainty({name: v for name, v in sampled.items() if name not in e.pinned})
    return FitResult(
        law=e.law.name,
        requested=s.law,
        settings=s,
        x=e.law.inputs[0] if len(e.law.inputs) == 1 else None,
        parameters=e.points.parameter_column(counts(e.law, s)),
        points=e.points,
        params=e.params,
        objective=e.optimum.objective,
        objective_name=objective_name(e),
        optimum=e.optimum,
        ci=ci,
        standard_errors=errors,
        derived=e.derived,
        verdict=verdict,
        holdout=(law_holdouts(e.points, e.law, s) if s.holdout != 0 else ()) if held is None else held,
        noise=e.noise,
        resampling=r.method if r else "none",
        predictions=tuple(predict_target(e, r, target, s) for target in s.targets),
        allocation=allocation_of(e, r, s),
        profiles=found,
        sensitivity=sensitivity_rows(e, counts(e.law, s), s.targets) if s.sensitivity and e.free else (),
        fitted=e.loss * np.exp(-e.residuals),
        estimate=e,
        resamples=r,
    )


def allocation_of(e: Estimate, r: Resamples | None, s: FitSettings) -> Prediction | None:
    """The optimal split of the largest budget among the points, for laws that have one; None where it is no number."""
    inputs = e.points.inputs(counts(e.law, s))
    spent = np.where(np.isfinite(inputs["flops"]), inputs["flops"], 6 * inputs["params"] * inputs["tokens"])
    flops = float(np.nanmax(spent, initial=-np.inf))
    with np.errstate(all="ignore"):
        known = {k: v[0] for k, v in e.law.allocate({k: np.array([v]) for k, v in e.params.items()}, flops).items()}
        if not known or not np.isfinite(list(known.values())).all():
            return None
        return predict_target(e, r, {"flops": flops}, s)


def objective_name(e: Estimate) -> str:
    if e.delta is not None:
        return f"sum of Huber(log residual, delta={e.delta:g})"
    return "sum of squared log residuals / 2" + (", each design point counted once" if (e.weights < 1).any() else "")


def predict_target(e: Estimate, r: Resamples | None, target: Mapping[str, float], s: FitSettings) -> Prediction:
    """The law at one target. A target in FLOPs alone is met at the law's own optimal allocation."""
    given = {str(k): float(v) for k, v in target.items()}
    derived: dict[str, float] = {}
    derived_ci: dict[str, dict[str, Interval]] = {}
    params = {name: np.array([v]) for name, v in e.params.items()}
    allocation = e.law.allocate(params, given["flops"]) if set(given) == {"flops"} else {}
    inputs = dict(given)
    if allocation:
        derived = {name: float(v[0]) for name, v in allocation.items()}
        inputs |= {"params": derived["N_opt"], "tokens": derived["D_opt"]}
        if r is not None:
            sampled = e.law.allocate(r.quantities(e), given["flops"])
            derived_ci = {k: intervals(v) for k, v in sampled.items()}
    missing = [name for name in e.law.inputs if name not in inputs]
    if missing:
        raise UsageError(
            f"target {given} lacks {', '.join(missing)}, which law {e.law.name} reads; give every one of {', '.join(e.law.inputs)}"
        )
    mean = float(e.law.predict(e.params, inputs)[0])
    bounds = prediction_intervals(e, r, inputs, (50.0, 80.0, 95.0), seed=s.seed) if e.free or r else {}
    ends = {
        f"{level:g}": (float(lo[0]), float(hi[0])) if np.isfinite([lo[0], hi[0]]).all() else None
        for level, (lo, hi) in bounds.items()
    }
    return Prediction(inputs=given, mean=mean, intervals=ends, derived=derived, derived_ci=derived_ci)


# --------------------------------------------------------------------------------------- law=auto


def choose(points: Points, s: FitSettings) -> FitResult:
    """The law with the smallest hold-out error among those that the data can carry.

    A ladder: a power law with and without a floor, against its size axis and (in `also`) against FLOPs. Where tokens vary
    apart from parameters a curve in one of them is no function of the data, so L(N, D) competes with L(C).
    """
    flops = points.column("flops")
    compute = bool((np.isfinite(flops) & (flops > 0)).all()) and float(np.ptp(np.log(flops))) > 0.1
    if both_vary(points, s):
        rivals = [("flops_power_law", "flops"), ("flops", "flops")] if compute else [("power_law", s.x)]
        return best_of(points, [*rivals, ("chinchilla", "params")], s)
    axis = varying_axis(points, s)
    mine = [t for t in s.targets if axis in t or not (compute and "flops" in t)]  # the others are for the law in `also`
    best = best_of(points, [("power_law", axis), ("power_law_offset", axis)], replace(s, targets=tuple(mine)))
    best = replace(best, settings=s)
    if axis == "flops" or not compute:
        return best
    quiet = replace(s, targets=tuple(t for t in s.targets if "flops" in t), sensitivity=False)
    return replace(best, also=(best_of(points, [("flops_power_law", "flops"), ("flops", "flops")], quiet),))


def varying_axis(points: Points, s: FitSettings) -> str:
    """`x` if it varies, else the first size axis that does."""
    table = points.inputs(s.parameters)
    usable = [
        a for a in (s.x, *AXES) if (np.isfinite(table[a]) & (table[a] > 0)).all() and np.ptp(np.log(table[a])) > 0.1
    ]
    if not usable:
        raise UsageError(
            f"{points.source or 'the table'} has no size axis that varies (params, tokens, flops); a curve needs at least two sizes"
        )
    return usable[0]


def both_vary(points: Points, s: FitSettings) -> bool:
    """Whether L(N, D) can be tried: tokens known, at least eight design points, N and D not collinear."""
    table = points.inputs(s.parameters)
    n, d = table["params"], table["tokens"]
    if not (np.isfinite(n) & np.isfinite(d) & (n > 0) & (d > 0)).all() or len(set(zip(n, d, strict=True))) < 8:
        return False
    return not structural_reasons(law_estimate(points, law_named("chinchilla"), replace(s, pinned={})))


def best_of(points: Points, names: list[tuple[str, str]], s: FitSettings) -> FitResult:
    """Fit every candidate, hold out the same rungs from each, report the identified one that predicts them best."""
    laws = [law_named(name, axis) for name, axis in names]
    axis = "flops" if any(len(law.inputs) > 1 for law in laws) else size_axis(laws[0])
    tried = [
        attempt(points, law, replace(s, pinned={k: v for k, v in s.pinned.items() if k in law.parameters}), axis)
        for law in laws
    ]
    nexts = [next_rungs(t.held) for t in tried]  # one step ahead: farther ones from fewer rungs would drown the rest
    shared = sorted(set.intersection(*map(set, nexts)))  # in an order of its own, so that sums have the same last bit
    errors = [error_log(held[key] for key in shared) for held in nexts]
    able = [i for i, t in enumerate(tried) if t.verdict.identified] or [0]
    pick = min(able, key=lambda i: np.inf if errors[i] is None else float(errors[i] or 0.0))
    best = tried[pick]
    result = report(best.e, best.r, best.verdict, best.found, best.settings, best.held)
    others = tuple(h for i, t in enumerate(tried) if i != pick for h in t.held)
    candidates = tuple(candidate(t, error, i == pick) for i, (t, error) in enumerate(zip(tried, errors, strict=True)))
    return replace(result, settings=s, candidates=candidates, holdout=(*result.holdout, *others))


@dataclass(frozen=True, kw_only=True, eq=False)
class Attempt:
    """One candidate law, fitted and held out."""

    e: Estimate
    r: Resamples | None
    verdict: Verdict
    found: tuple[Profile, ...]
    held: tuple[HoldOut, ...]
    settings: FitSettings


def attempt(points: Points, law: Law, s: FitSettings, axis: str) -> Attempt:
    e = law_estimate(points, law, s, wide=True)
    r = None if structural_reasons(e) else resample(e, s.bootstrap, s.seed)
    verdict, found = judge(e, r)
    held = () if s.holdout == 0 else law_holdouts(points, law, s, axis)
    return Attempt(e=e, r=r, verdict=verdict, found=found, held=held, settings=s)


def candidate(tried: Attempt, error: float | None, chosen: bool) -> Candidate:
    told = (
        "no rung could be held out: the simplest law is taken"
        if error is None
        else f"hold-out error {100 * error:.2f} %"
    )
    law = tried.e.law
    return Candidate(
        law=law.name,
        x=law.inputs[0] if len(law.inputs) == 1 else None,
        params=tried.e.params,
        identified=tried.verdict.identified,
        holdout_rmse_log=error,
        chosen=chosen,
        reason=told if tried.verdict.identified else "; ".join(tried.verdict.reasons),
    )
