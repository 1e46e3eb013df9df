"""From points to a fitted law: settings in, one result object out, the same from Python and the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.points import Array, Excluded, Points

LEVELS = (80, 95)


@dataclass(frozen=True, kw_only=True)
class FitSettings:
    """All that decides the numbers of a fit besides the points."""

    law: str = "auto"  # see analysis.laws.LAWS; auto chooses by hold-out error
    x: str = "params"  # size axis of one-variable laws: params | tokens | flops
    parameters: str = "auto"  # auto | non_embedding | total: which parameter count enters
    delta: float | None = None  # Huber delta on log residuals; None: the law's own (1e-3, or least squares for ladders)
    bootstrap: int = 1000  # resamples; 0: no intervals
    seed: int = 0
    pinned: Mapping[str, float] = field(default_factory=dict)  # parameters held fixed, natural units: {E: 1.69}
    targets: tuple[Mapping[str, float], ...] = ()  # inputs to predict: ({params: 280e9, tokens: 300e9}, {flops: 5.76e23})
    holdout: int | None = None  # largest rungs left out in turn; None: up to 3 as the data allow, 0: none
    fallback: bool = True  # use the law that the data can carry when the one asked for is not identified
    sensitivity: bool = True  # the table of other deltas, outlier rules, laws and parameter conventions


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Evidence that the minimum is the minimum."""

    start_share: float  # of the starts that reached it (within 1e-6 relative)
    starts: int
    runner_up: float | None  # objective of the next distinct minimum; None when every start agreed
    runner_up_params: dict[str, float] | None
    grad_norm: float  # scale-free: |g| / objective in scaled coordinates
    condition: float  # of the scaled, centred Gauss-Newton matrix


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether the data determine the parameters of the law asked for, and if not why."""

    identified: bool
    reasons: tuple[str, ...] = ()
    law: str = ""  # the law the verdict is about (the one asked for)
    refused_params: dict[str, float] | None = None  # its numbers, when a simpler law is reported instead


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Objective along one parameter with all others refitted; `limit` is the 95 % cut."""

    parameter: str
    values: tuple[float, ...]  # natural units
    excess: tuple[float, ...]  # robust deviance above the minimum; 3.84 is the large-sample 95 % cut
    limit: float


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """One rung predicted from smaller ones only."""

    rung: str
    predicted: float
    actual: float  # geometric mean over the rung's runs
    interval95: tuple[float, float] | None  # prediction interval: parameters and residual noise
    law: str
    fitted_rungs: int  # how many smaller rungs were fitted
    decades: float  # log10 distance of the rung from the largest fitted one, along `x`
    x: str
    runs: int  # of the held-out rung
    baselines: dict[str, float]  # naive predictions: power law without offset, last point

    @property
    def error_percent(self) -> float:
        return 100.0 * (self.predicted / self.actual - 1.0)


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Scatter of log loss about the law."""

    residual_sd_log: float | None
    residual_dof: int
    seed_sd_log: float | None  # pooled over rungs with two or more seeds
    seed_dof: int
    prediction_sd_log: float | None  # the one used in prediction intervals
    prediction_dof: int


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The law at one target: median path, intervals with residual noise, and the optimal allocation where the law has one."""

    inputs: dict[str, float]
    mean: float
    intervals: dict[str, tuple[float, float]]  # "50", "80", "95": prediction intervals
    derived: dict[str, float] = field(default_factory=dict)  # N_opt, D_opt, tokens_per_parameter at {flops: C}
    derived_ci: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One law that was tried, with its hold-out error: what the choice was made on."""

    law: str
    x: str | None
    params: dict[str, float]
    objective: float
    identified: bool
    holdout_rmse_log: float | None
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
    ci: dict[str, dict[str, tuple[float, float]]]  # name -> {"80": (lo, hi), "95": (lo, hi)}; derived quantities too
    standard_errors: dict[str, float]
    derived: dict[str, float]  # a_opt, b_opt, ...
    verdict: Verdict
    holdout: tuple[HoldOut, ...]
    noise: Noise
    predictions: tuple[Prediction, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    profiles: tuple[Profile, ...] = ()
    sensitivity: tuple[dict[str, Any], ...] = ()
    also: tuple["FitResult", ...] = ()  # auto: the same ladder against FLOPs
    tables: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)  # law-specific rows, e.g. isoFLOP minima
    samples: Array = field(default_factory=lambda: np.empty((0, 0)), repr=False, compare=False)  # bootstrap x parameters
    resampling: str = "none"  # pairs by run | parametric by rung | none
    fitted: Array = field(default_factory=lambda: np.empty(0), repr=False, compare=False)  # law at the points

    @property
    def excluded(self) -> tuple[Excluded, ...]:
        return self.points.excluded

    def predict(self, inputs: Mapping[str, Any]) -> Array:
        """Loss of the law at `inputs` (params, tokens, unique_tokens, flops as the law needs)."""
        raise RuntimeError("being written")

    def interval(self, inputs: Mapping[str, Any], level: float = 95, noise: bool = True) -> tuple[Array, Array]:
        """(low, high) at `inputs`: prediction interval of one new run, or of the curve alone with noise=False."""
        raise RuntimeError("being written")


def fit(points: Points, settings: FitSettings | None = None) -> FitResult:
    """The law asked for, at its true optimum, with intervals, verdict and hold-outs."""
    raise RuntimeError("being written")


def to_json(result: FitResult) -> dict[str, Any]:
    """The one JSON object of `gopher fit format=json`; the command line prints it with `dumps`."""
    raise RuntimeError("being written")


def dumps(value: dict[str, Any]) -> str:
    """Canonical text of that object: the same bytes from Python and the command line."""
    raise RuntimeError("being written")
