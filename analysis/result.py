"""What a fit takes and gives: settings, result and its one JSON form."""

import json
import math
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from analysis.bootstrap import Interval, Resamples
from analysis.estimate import Estimate
from analysis.holdout import HoldOut
from analysis.identify import Profile, Verdict
from analysis.intervals import prediction_intervals
from analysis.noise import Noise
from analysis.optimum import Optimum
from analysis.rows import Array, Excluded, Points
from gopher.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """All that decides the numbers of a fit besides the points."""

    law: str = "auto"  # a name in analysis.laws.LAWS or analysis.fit.METHODS; auto chooses by hold-out error
    x: str = "params"  # size axis of one-variable laws: params | tokens | flops
    parameters: str = "auto"  # auto | non_embedding | total: which parameter count enters
    delta: float | None = None  # Huber delta on log residuals; None: the law's own (1e-3, or least squares for ladders)
    bootstrap: int = 1000  # resamples; 0: no intervals
    seed: int = 0
    pinned: Mapping[str, float] = field(default_factory=dict)  # parameters held fixed, natural units: {E: 1.69}
    targets: tuple[
        Mapping[str, float], ...
    ] = ()  # inputs to predict: ({params: 280e9, tokens: 300e9}, {flops: 5.76e23})
    holdout: int | None = None  # largest rungs left out in turn; None: up to 3 as the data allow, 0: none
    fallback: bool = True  # report the law that the data can carry when the one asked for is not identified
    sensitivity: bool = True  # the table of other deltas, outlier rules, laws and parameter conventions

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; give a whole number from 0 up, it starts the resampling")
        if self.holdout is not None and self.holdout < 0:
            raise UsageError(f"holdout is {self.holdout}; give how many of the largest rungs are held out, 0 for none")
        if odd := [name for name, value in self.pinned.items() if not math.isfinite(value)]:
            raise UsageError(f"pinned.{odd[0]} is {self.pinned[odd[0]]}; pin it to a number such as pinned.E=1.69")
        for target in self.targets:
            for name, value in target.items():
                if not (math.isfinite(value) and value > 0):
                    raise UsageError(
                        f"targets has {name} = {value:g}, which no run can have; give sizes above 0, such as {{params: 2.8e+11, tokens: 3.0e+11}}"
                    )


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The law at one target, with prediction intervals, and the optimal allocation where the law has one."""

    inputs: dict[str, float]
    mean: float
    intervals: dict[str, Interval | None]  # "50", "80", "95": a new run lies inside with that probability
    derived: dict[str, float] = field(default_factory=dict)  # N_opt, D_opt, tokens_per_parameter at {flops: C}
    derived_ci: dict[str, dict[str, Interval]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One law that was tried, with the hold-out error on which the choice rests."""

    law: str
    x: str | None
    params: dict[str, float]
    identified: bool
    holdout_rmse_log: float | None  # over the hold-outs that all candidates share
    chosen: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """A fitted law with everything needed to judge, draw and predict from it."""

    law: str  # the law reported
    requested: str
    settings: FitSettings
    x: str | None  # size axis of one-variable laws
    parameters: str  # params_non_embedding | params_total: the count that was used
    points: Points
    params: dict[str, float]
    objective: float
    objective_name: str  # sum of Huber(log residual, delta=0.001)
    optimum: Optimum | None
    ci: dict[str, dict[str, Interval]]  # name -> {"80": (lo, hi), "95": (lo, hi)}; derived quantities too
    standard_errors: dict[str, float]
    derived: dict[str, float]  # a_opt, b_opt, ...
    verdict: Verdict
    holdout: tuple[HoldOut, ...]
    noise: Noise | None
    resampling: str  # pairs: runs drawn with replacement | parametric, residuals: losses redrawn about the law | none
    predictions: tuple[Prediction, ...] = ()
    allocation: Prediction | None = None  # N_opt, D_opt, tokens per parameter at the largest FLOPs of the points
    candidates: tuple[Candidate, ...] = ()
    profiles: tuple[Profile, ...] = ()
    sensitivity: tuple[dict[str, Any], ...] = ()
    also: tuple["FitResult", ...] = ()  # auto: the same runs against FLOPs
    tables: dict[str, tuple[dict[str, Any], ...]] = field(
        default_factory=dict
    )  # law-specific rows, e.g. isoFLOP minima
    fitted: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)  # law at the points
    estimate: Estimate | None = field(default=None, repr=False, compare=False)
    resamples: Resamples | None = field(default=None, repr=False, compare=False)
    sample_values: Array | None = field(default=None, repr=False, compare=False)  # for methods without an estimate

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        return self.points.excluded

    @property
    def samples(self) -> Array:
        """Resampled parameters in natural units: (resamples, parameters), columns as in `params`."""
        if self.sample_values is not None:
            return self.sample_values
        if self.resamples is None or self.estimate is None:
            return np.empty((0, len(self.params)))
        quantities = self.resamples.quantities(self.estimate)
        return np.stack([quantities[name] for name in self.params], 1)

    def predict(self, inputs: Mapping[str, Any]) -> Array:
        """Loss of the law at `inputs` (params, tokens, unique_tokens, flops as the law needs)."""
        e = self.known_estimate()
        return e.law.predict(self.params, inputs)

    def interval(self, inputs: Mapping[str, Any], level: float = 95, noise: bool = True) -> tuple[Array, Array]:
        """(low, high) at `inputs`: where one new run lies, or the curve alone with noise=False; nan where unbounded."""
        e = self.known_estimate()
        return prediction_intervals(e, self.resamples, inputs, [level], noise=noise, seed=self.settings.seed)[level]

    def known_estimate(self) -> Estimate:
        if self.estimate is None:
            raise UsageError(
                f"law {self.law} gives an allocation and no loss; fit law=chinchilla on the same points to predict losses"
            )
        return self.estimate


# -------------------------------------------------------------------------------------------- JSON


def to_json(result: FitResult) -> dict[str, Any]:
    """The one JSON object of `gopher fit format=json`; `dumps` writes it."""
    out = body(result)
    out["excluded"] = [asdict(e) for e in result.excluded]
    out["notes"] = list(result.points.remarks)
    out["points"] = records(result)
    out["also"] = [body(other) for other in result.also]
    out["settings"] = asdict(result.settings)
    out["data_sha256"] = result.points.sha256
    out["versions"] = versions()
    cleaned: dict[str, Any] = clean(out)
    return cleaned


def body(r: FitResult) -> dict[str, Any]:
    """Everything about the fit itself."""
    return {
        "law": r.law,
        "requested": r.requested,
        "x": r.x,
        "parameters": r.parameters,
        "params": r.params,
        "derived": r.derived,
        "objective": r.objective,
        "objective_name": r.objective_name,
        "n_points": len(r.points),
        "source": r.points.source,
        "optimum": optimum_json(r.optimum),
        "ci": r.ci,
        "standard_errors": r.standard_errors,
        "resampling": {"method": r.resampling, "resamples": len(r.samples), "seed": r.settings.seed},
        "verdict": asdict(r.verdict),
        "holdout": [{**asdict(h), "error_percent": h.error_percent} for h in r.holdout],
        "noise": None if r.noise is None else asdict(r.noise),
        "scatter": scatter(r),
        "predictions": [asdict(p) for p in r.predictions],
        "allocation": None if r.allocation is None else asdict(r.allocation),
        "candidates": [asdict(c) for c in r.candidates],
        "profiles": [asdict(p) for p in r.profiles],
        "sensitivity": list(r.sensitivity),
        "tables": {name: list(rows) for name, rows in r.tables.items()},
    }


def optimum_json(o: Optimum | None) -> dict[str, Any] | None:
    if o is None:
        return None
    names = ("start_share", "starts", "runner_up", "runner_up_params", "grad_norm", "condition")
    return {name: getattr(o, name) for name in names} | {"search": o.search}


def scatter(r: FitResult) -> dict[str, float] | None:
    """How the points lie about the law, in ln(loss)."""
    if len(r.fitted) != len(r.points):
        return None
    residual = np.log(r.points.column("loss") / r.fitted)
    return {
        "rms_log": float(np.sqrt(np.mean(residual**2))),
        "max_abs_log": float(np.abs(residual).max()),
        "sum_abs_log": float(np.abs(residual).sum()),
        "sum_square_log": float((residual**2).sum()),
    }


def records(r: FitResult) -> list[dict[str, Any]]:
    """The points with what the law gives for each."""
    rows = r.points.records()
    known = len(r.fitted) == len(rows)
    return [{**row, "fitted": float(v)} for row, v in zip(rows, r.fitted, strict=True)] if known else rows


def clean(value: Any) -> Any:
    """Plain JSON types: tuples as lists, numpy scalars as numbers, anything not finite as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return clean(asdict(value))
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, np.ndarray):
        return clean(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """What computed the numbers."""
    out = {"python": platform.python_version()}
    for name in ("gopher-sweeps", "numpy", "scipy", "pandas"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = "unknown"
    return out


def dumps(value: Mapping[str, Any]) -> str:
    """Canonical text of the JSON object: the same bytes from Python and from the command line."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
