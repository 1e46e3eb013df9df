"""Forecasts as objects: a prediction written down before its run, scored after it, and the record of all of them.

A forecast is frozen from points that cannot contain its target (`analysis.target`). The file holds everything the
prediction rests on; its hash covers all but the outcome, so an edited forecast is refused when it is read. It counts in
the calibration record only if its run is known to have come later: no run of the target was in the source when it was
frozen, and each that it is scored by says when it ended, and that it began later where its beginning is known. Anything
else is a backtest. Nothing here talks to MLflow; the
caller logs what it gets back.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from analysis.fit import FitResult, FitSettings, fit
from analysis.rows import Point, Points
from analysis.target import Target, apart, completed, own_reasons, points_table
from gopher.errors import UsageError
from gopher.identity import content_hash, short_key

LEVELS = (50, 80, 95)


@dataclass(frozen=True, kw_only=True)
class UsedPoint:
    """A run that the forecast rests on."""

    run_id: str
    rung: str
    loss: float
    seed: int | None = None
    params: float | None = None
    tokens: float | None = None
    flops: float | None = None
    mlflow_run: str | None = None
    config_hash: str | None = None
    data_hash: str | None = None


@dataclass(frozen=True, kw_only=True)
class KeptOut:
    """A run of the target itself that was in the source and did not enter the fit."""

    run_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One run of the target, as it came out."""

    run_id: str
    loss: float
    seed: int | None = None
    finished_at: str | None = None  # as the source tells it


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the target's runs gave: the geometric mean over them against the forecast."""

    runs: tuple[Measured, ...]
    actual: float
    error_percent: float  # of the prediction: positive where it was too high
    inside: Mapping[str, bool]  # "50", "80", "95"
    scored_at: str
    after_freeze: bool = False  # every run is known to have come after the forecast was frozen


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A frozen prediction. Everything but `outcome` and `earlier_outcomes` is covered by `sha256`."""

    id: str  # first 12 digits of the hash of what was predicted from what, without the time
    study: str
    created_at: str  # UTC, ISO 8601
    target: Target
    mean: float
    intervals: Mapping[str, tuple[float, float]]  # "50", "80", "95": of one new run
    loss_name: str
    law: str
    x: str | None
    parameters: str
    params: Mapping[str, float]
    objective: float
    identified: bool
    reasons: tuple[str, ...]
    decades: float | None  # log10 distance of the target beyond the largest point, along the law's size axis
    points: tuple[UsedPoint, ...]
    points_sha256: str
    kept_out: tuple[KeptOut, ...]
    before_run: bool  # no run of the target was in the source, whether it would have been fitted or not
    settings: Mapping[str, Any]
    code: Mapping[str, str]  # commit, dirty, versions: whatever the caller knows
    config_hash: str | None = None
    sha256: str = ""
    outcome: Outcome | None = None
    earlier_outcomes: tuple[Outcome, ...] = field(default=())

    @property
    def is_backtest(self) -> bool:
        """Whether the target's outcome was there first, or is not known to have come later."""
        return not (self.before_run and (self.outcome is None or self.outcome.after_freeze))


# ------------------------------------------------------------------------------------------------ freezing


def freeze(
    points: Points,
    target: Target,
    settings: FitSettings | None = None,
    *,
    study: str = "",
    code: Mapping[str, str] | None = None,
    config_hash: str | None = None,
    now: datetime | None = None,
) -> Forecast:
    """The prediction for `target` from all other points, with everything it rests on. Nothing is written."""
    settings = settings or FitSettings()
    target = completed(target, points)
    kept, out = apart(points, target)
    result = fit(kept, replace(settings, targets=(), sensitivity=False))
    inputs = law_inputs(result, target)
    mean = float(np.asarray(result.predict(inputs)).ravel()[0])
    forecast = Forecast(
        id="",
        study=study,
        created_at=stamp(now),
        target=target,
        mean=mean,
        intervals={str(level): ends(result, inputs, level) for level in LEVELS},
        loss_name=kept.rows[0].loss_name,
        law=result.law,
        x=result.x,
        parameters=result.parameters,
        params={k: float(v) for k, v in result.params.items()},
        objective=float(result.objective),
        identified=result.verdict.identified,
        reasons=result.verdict.reasons,
        decades=distance(result, inputs),
        points=tuple(used(p, result.parameters) for p in kept),
        points_sha256=kept.sha256,
        kept_out=tuple(KeptOut(run_id=e.run_id, reason=e.reason) for e in out),
        before_run=not out,
        settings=plain_settings(settings),
        code=dict(code or {}),
        config_hash=config_hash,
    )
    body = frozen_part(forecast)
    forecast = replace(forecast, id=short_key({k: v for k, v in body.items() if k not in ("created_at", "id", "code")}))
    return replace(forecast, sha256=content_hash(frozen_part(forecast)))


def law_inputs(result: FitResult, target: Target) -> dict[str, Any]:
    """The target as the inputs of the fitted law."""
    needed = result.known_estimate().law.inputs
    known = {"params": getattr(target, result.parameters), "tokens": target.tokens, "flops": target.flops}
    known["unique_tokens"] = target.tokens
    missing = [name for name in needed if known.get(name) is None]
    if missing:
        raise UsageError(
            f"law {result.law} reads {' and '.join(missing)}, which the target {target} lacks; "
            f"give target.{result.parameters if missing[0] == 'params' else missing[0]} or another law"
        )
    return {name: np.array([float(known[name] or 0)]) for name in needed}


def ends(result: FitResult, inputs: Mapping[str, Any], level: int) -> tuple[float, float]:
    """The prediction interval of one new run; refused when the fit cannot give one, since a forecast without is no forecast."""
    low, high = (float(np.asarray(v).ravel()[0]) for v in result.interval(inputs, level=level, noise=True))
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise UsageError(
            f"law {result.law} on {len(result.points)} points gives no {level} % interval at the target; "
            "set bootstrap to 1000 or more and fit at least one rung more than the law has parameters"
        )
    return low, high


def distance(result: FitResult, inputs: Mapping[str, Any]) -> float | None:
    axis = result.x or ("flops" if "flops" in inputs else "params")
    if axis not in inputs:
        return None
    largest = float(np.nanmax(result.points.inputs(result.parameters)[axis]))
    return float(np.log10(float(inputs[axis][0]) / largest))


def used(point: Point, column: str) -> UsedPoint:
    return UsedPoint(
        run_id=point.run_id,
        rung=point.rung,
        loss=point.loss,
        seed=point.seed,
        params=getattr(point, column),
        tokens=point.tokens,
        flops=point.flops,
        mlflow_run=point.mlflow_run,
        config_hash=point.config_hash,
        data_hash=point.data_hash,
    )


def plain_settings(settings: FitSettings) -> dict[str, Any]:
    kept = {
        f.name: getattr(settings, f.name)
        for f in dataclasses.fields(settings)
        if f.name not in ("targets", "sensitivity")
    }
    return {k: dict(v) if isinstance(v, Mapping) else v for k, v in kept.items()}


def frozen_part(forecast: Forecast) -> dict[str, Any]:
    body = asdict(forecast)
    return {k: v for k, v in body.items() if k not in ("sha256", "outcome", "earlier_outcomes")}


def stamp(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).astimezone(UTC).isoformat(timespec="seconds")


# ------------------------------------------------------------------------------------------------ scoring


def score(forecast: Forecast, points: Points, now: datetime | None = None) -> Forecast:
    """The forecast with its outcome once a run of the target is among `points`; unchanged when there is none or nothing new.

    More seeds than at the last scoring replace the outcome and the former one is kept in `earlier_outcomes`.
    """
    runs = own_runs(forecast, points)
    if not runs:
        return forecast
    outcome = outcome_of(forecast, runs, stamp(now))
    former = forecast.outcome
    if former is not None and former.runs == outcome.runs:
        return forecast
    earlier = (*forecast.earlier_outcomes, former) if former is not None else forecast.earlier_outcomes
    return replace(forecast, outcome=outcome, earlier_outcomes=earlier)


def own_runs(forecast: Forecast, points: Points) -> list[Point]:
    """Finished runs of the target: with its key, of its rung, or of its design; each at its last step."""
    target = forecast.target
    found = [p for p, why in zip(points, own_reasons(points_table(points), target), strict=True) if why]
    leaked = sorted({p.run_id for p in forecast.points} & {p.run_id for p in found})
    if leaked:
        raise UsageError(
            f"run {leaked[0]} is both in the fit of forecast {forecast.id} and its target; the forecast is void"
        )
    if found and found[0].loss_name != forecast.loss_name:
        raise UsageError(
            f"forecast {forecast.id} predicts {forecast.loss_name} and the points hold {found[0].loss_name}; score it with the metric it was made for"
        )
    ascending = sorted(found, key=lambda p: (p.tokens or 0.0, p.flops or 0.0, p.step or 0))
    last = {(p.seed if p.seed is not None else -1, p.run_id): p for p in ascending}
    return [last[run] for run in sorted(last)]


def outcome_of(forecast: Forecast, runs: Sequence[Point], scored_at: str) -> Outcome:
    actual = float(np.exp(np.mean(np.log([p.loss for p in runs]))))
    return Outcome(
        runs=tuple(Measured(run_id=p.run_id, loss=p.loss, seed=p.seed, finished_at=p.finished_at) for p in runs),
        actual=actual,
        error_percent=100 * (forecast.mean / actual - 1),
        inside={level: bool(low <= actual <= high) for level, (low, high) in forecast.intervals.items()},
        scored_at=scored_at,
        after_freeze=all(came_after(p, forecast.created_at) for p in runs),
    )


def came_after(run: Point, created_at: str) -> bool:
    """Whether the source shows that a run ended after this time, and began after it where that is told: a run under way
    may have been seen. Without an end it shows nothing."""
    told = [name for name in ("started_at", "finished_at") if getattr(run, name) is not None]
    return "finished_at" in told and all(moment(run, name) > datetime.fromisoformat(created_at) for name in told)


def moment(run: Point, name: str) -> datetime:
    try:
        at = datetime.fromisoformat(getattr(run, name))
    except ValueError:
        raise UsageError(
            f"run {run.run_id} has {name} = '{getattr(run, name)}', which is no time; write it as 2030-01-31T12:00:00+00:00"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How past forecasts did. Coverage is counted over scored forecasts whose runs came later; backtests are counted apart."""

    scored: int
    pending: int
    backtests: int
    inside: Mapping[str, int]  # of `scored`, per nominal level
    coverage95: Mapping[str, tuple[float, float]]  # exact 95 % range of the true coverage, per nominal level
    mean_error_percent: float | None
    mean_abs_error_percent: float | None


def calibration(forecasts: Sequence[Forecast]) -> Calibration:
    """The record over all forecasts of a folder."""
    scored = [(f, f.outcome) for f in forecasts if f.outcome is not None and not f.is_backtest]
    errors = [o.error_percent for _, o in scored]
    inside = {str(level): sum(o.inside[str(level)] for _, o in scored) for level in LEVELS}
    return Calibration(
        scored=len(scored),
        pending=sum(f.outcome is None for f in forecasts),
        backtests=sum(f.outcome is not None and f.is_backtest for f in forecasts),
        inside=inside,
        coverage95={level: exact_range(k, len(scored)) for level, k in inside.items()} if scored else {},
        mean_error_percent=float(np.mean(errors)) if errors else None,
        mean_abs_error_percent=float(np.mean(np.abs(errors))) if errors else None,
    )


def exact_range(k: int, n: int) -> tuple[float, float]:
    """Clopper-Pearson 95 % range of a share seen as k of n."""
    from scipy.stats import beta

    return (float(beta.ppf(0.025, k, n - k + 1)) if k else 0.0, float(beta.ppf(0.975, k + 1, n - k)) if k < n else 1.0)
