"""A law estimated on points: the one step that fits, hold-outs, profiles and sensitivity tables share."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from analysis.law import Law, named
from analysis.noise import Noise, noise_of
from analysis.objective import Model, gap, model_of
from analysis.optimum import Optimum, optimise
from analysis.rows import Array, Points
from gopher.errors import UsageError

COLUMN = {"params": "a parameter count", "tokens": "tokens", "flops": "FLOPs", "unique_tokens": "unique tokens"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """A law at its optimum on a set of points."""

    law: Law
    points: Points
    inputs: dict[str, Array]
    loss: Array
    weights: Array  # of each run in the objective
    delta: float | None
    pinned: Mapping[str, float]
    model: Model
    optimum: Optimum
    noise: Noise  # of ln(loss)
    objective_sd: float | None  # of a residual of weight 1 in the units of the objective

    @property
    def params(self) -> dict[str, float]:
        return named(self.law, self.optimum.theta)

    @property
    def free(self) -> int:
        return self.model.size

    @property
    def free_columns(self) -> list[int]:
        """Positions among the law's parameters of those that are not pinned."""
        return [i for i, name in enumerate(self.law.parameters) if name not in self.pinned]

    @property
    def derived(self) -> dict[str, float]:
        """What follows from the parameters, such as a_opt."""
        with np.errstate(all="ignore"):
            found = self.law.derived({name: np.array([value]) for name, value in self.params.items()})
            return {name: float(v[0]) for name, v in found.items()}

    @property
    def residuals(self) -> Array:
        """ln(loss) - ln(law): positive where a run is worse than the law."""
        return self.model.z - self.model.log_law(self.model.from_theta(self.optimum.theta))[0]


def law_inputs(law: Law, points: Points, parameters: str = "auto") -> dict[str, Array]:
    """The columns that `law` reads, checked: all present and positive."""
    table = points.inputs(parameters)
    out: dict[str, Array] = {}
    for name in law.inputs:
        if name == "family":
            out[name] = np.array([p.family for p in points])
            continue
        bad = [p for p, v in zip(points, table[name], strict=True) if not (np.isfinite(v) and v > 0)]
        if bad:
            column = points.parameter_column(parameters) if name == "params" else name
            which = "no point has a" if len(bad) == len(points) else f"{len(bad)} of {len(points)} points have no"
            first = "" if len(bad) == len(points) else f" (first: {bad[0].run_id})"
            raise UsageError(
                f"law {law.name} reads {COLUMN[name]} and {which} positive {column}{first}; "
                f"map the column with columns.{column}=NAME, choose another law or leave such points out with where="
            )
        out[name] = table[name]
    return out


def design_of(inputs: Mapping[str, Array]) -> Array:
    """Integer code of each point's design: points equal in every input the law reads are repetitions by seed."""
    columns = [np.unique(np.asarray(v), return_inverse=True)[1] for v in inputs.values()]
    return np.unique(np.stack(columns, 1), axis=0, return_inverse=True)[1].ravel()


def estimate(
    law: Law,
    points: Points,
    *,
    parameters: str = "auto",
    delta: float | None = None,
    pinned: Mapping[str, float] | None = None,
    seeds: str = "runs",
    wide: bool = False,
) -> Estimate:
    """`law` at its optimum on `points`; wide=True adds the plain grid of starts.

    seeds='mean' gives every design point weight 1, however many seeds it has: right when what separates points from the
    law is lack of fit, which more seeds do not reduce. seeds='runs' gives every run weight 1.
    """
    held = {k: float(v) for k, v in (pinned or {}).items() if k in law.parameters}
    inputs = law_inputs(law, points, parameters)
    loss = points.column("loss")
    model = model_of(law, inputs, loss, held)
    design = design_of(inputs)
    weights = 1.0 / np.bincount(design)[design] if seeds == "mean" else np.ones(len(loss))
    optimum = optimise(model, inputs, weights, delta, held, wide)
    fitted = model.log_law(model.from_theta(optimum.theta))[0]
    seen = gap(fitted, model.z, model.absolute)
    return Estimate(
        law=law,
        points=points,
        inputs=inputs,
        loss=loss,
        weights=weights,
        delta=delta,
        pinned=held,
        model=model,
        optimum=optimum,
        noise=noise_of(fitted - model.z, design, weights, model.size),
        objective_sd=noise_of(seen, design, weights, model.size).unit_sd_log,
    )
