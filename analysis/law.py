"""What a scaling law is: one small object with predict, gradient and parameter transform.

Most laws are sums of terms whose logarithm is linear in the parameters,
    L = sum_k exp(sum_j sign_kj * theta_j * feature_kj(inputs)),
so a law is declared by its terms and prediction, derivatives, centring and starts follow from them.
The others (`CurveLaw`) bring their own logarithm and its derivatives. Internal parameters: ln of amplitudes and scales,
exponents as they are. The laws themselves are in `analysis.powers`, `analysis.repetition` and `analysis.broken`, the list
of them in `analysis.laws`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from analysis.rows import Array

Quantities = dict[str, Array]


def nothing(_: Quantities) -> Quantities:
    return {}


def no_allocation(_: Quantities, __: float) -> Quantities:
    return {}


@dataclass(frozen=True, kw_only=True)
class Law(ABC):
    """What the solver, the bootstrap and the figures need from a law; `SumLaw` and `CurveLaw` bring ln(loss) and its slopes."""

    name: str
    parameters: tuple[str, ...]  # natural names in order: A, B, E, alpha, beta
    inputs: tuple[str, ...]  # which of params, tokens, unique_tokens, flops, family it reads
    scales: tuple[str, ...]  # parameters whose internal value is the logarithm
    limits: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # of internal parameters; there: a finding
    delta: float | None = None  # Huber delta on log residuals by default; None is least squares
    absolute: bool = False  # whether residuals are of the loss itself instead of its logarithm
    counts: str = "auto"  # parameter count it is defined for (total, non_embedding), or auto
    simpler: str | None = None  # the law to fall back to when the data cannot carry this one
    keeps: bool = False  # falls back only where the design has nothing for its terms, not for loose parameters
    derive: Callable[[Quantities], Quantities] = nothing
    allocation: Callable[[Quantities, float], Quantities] = no_allocation

    @abstractmethod
    def log_predict(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        """ln(loss) for a batch of internal parameters: (batch, points)."""

    @abstractmethod
    def log_slopes(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        """d ln(loss) / d internal parameters: (batch, points, parameters)."""

    def logged(self) -> Array:
        """Mask of the parameters whose internal value is the logarithm."""
        return np.array([name in self.scales for name in self.parameters])

    def predict(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        """Loss at `inputs`."""
        return np.exp(self.log_predict(internal(self, params)[None], inputs)[0])

    def gradient(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        """d ln(loss) / d internal parameter, one row per input, one column per parameter."""
        return self.log_slopes(internal(self, params)[None], inputs)[0]

    def derived(self, params: Quantities) -> Quantities:
        """Quantities that follow from the parameters alone (a_opt, N_c), elementwise over samples."""
        return self.derive(params)

    def allocate(self, params: Quantities, flops: float) -> Quantities:
        """N_opt, D_opt, tokens_per_parameter at a budget under C = 6 N D; empty where the law has none."""
        return self.allocation(params, flops)


def internal(law: Law, params: Mapping[str, float]) -> Array:
    """Natural parameters as the law's internal vector."""
    values = np.array([float(params[name]) for name in law.parameters])
    with np.errstate(divide="ignore"):
        return np.where(law.logged(), np.log(np.where(law.logged(), values, 1.0)), values)


def natural(law: Law, theta: Array) -> Array:
    """Internal vectors (last axis) as natural parameters."""
    mask = law.logged()
    with np.errstate(over="ignore"):  # a runaway resample is infinite, which is no error
        return np.where(mask, np.exp(np.where(mask, theta, 0.0)), theta)


def named(law: Law, theta: Array) -> dict[str, float]:
    """One internal vector as {name: natural value}."""
    return {name: float(v) for name, v in zip(law.parameters, natural(law, theta), strict=True)}


def feature(name: str, inputs: Mapping[str, Any]) -> Array:
    """ln of an input by name; `1` is constant, `ratio` is tokens per parameter, `x@family` is zero outside that family."""
    base, _, family = name.partition("@")
    if base == "ratio":
        value = np.log(np.asarray(inputs["tokens"], float)) - np.log(np.asarray(inputs["params"], float))
    elif base == "1":
        length = max(np.size(v) for v in inputs.values())
        value = np.ones(length)
    else:
        value = np.log(np.atleast_1d(np.asarray(inputs[base], float)))
    return value * (np.asarray(inputs["family"]) == family) if family else value


@dataclass(frozen=True, kw_only=True)
class Term:
    """exp of a sum of factors (parameter, feature, sign); a parameter with feature `1` is an amplitude."""

    factors: tuple[tuple[str, str, float], ...]

    def log(self, theta: Mapping[str, Array], inputs: Mapping[str, Any]) -> Array:
        """ln of the term: (batch, points)."""
        return sum((sign * theta[p][:, None] * feature(f, inputs)[None] for p, f, sign in self.factors), np.zeros(1))


@dataclass(frozen=True, kw_only=True)
class SumLaw(Law):
    """A law declared by its terms."""

    terms: tuple[Term, ...]
    parameters: tuple[str, ...] = field(init=False)
    inputs: tuple[str, ...] = field(init=False)
    scales: tuple[str, ...] = field(init=False)
    exponents: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        factors = [factor for term in self.terms for factor in term.factors]
        features = [f.partition("@") for _, f, _ in factors]
        read = [("tokens", "params") if base == "ratio" else (base,) for base, _, _ in features if base != "1"]
        grouped = ("family",) if any(family for _, _, family in features) else ()
        scales = tuple(dict.fromkeys(p for p, f, _ in factors if f.startswith("1")))
        exponents = tuple(dict.fromkeys(p for p, f, _ in factors if not f.startswith("1")))
        known = {"scales": scales, "exponents": exponents, "parameters": scales + exponents}
        known["inputs"] = tuple(dict.fromkeys(n for group in read for n in group)) + grouped
        for name, value in known.items():
            object.__setattr__(self, name, value)  # the one way to fill a frozen dataclass in

    def _logs(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        """ln of every term: (terms, batch, points)."""
        columns = {name: theta[:, i] for i, name in enumerate(self.parameters)}
        logs = [term.log(columns, inputs) for term in self.terms]
        return np.stack(np.broadcast_arrays(*logs))

    def log_predict(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        return np.logaddexp.reduce(self._logs(theta, inputs), axis=0)

    def log_slopes(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        logs = self._logs(theta, inputs)
        shares = np.exp(logs - np.logaddexp.reduce(logs, axis=0))
        out = np.zeros((*shares.shape[1:], len(self.parameters)))
        for share, term in zip(shares, self.terms, strict=True):
            for name, feat, sign in term.factors:
                out[:, :, self.parameters.index(name)] += share * sign * feature(feat, inputs)
        return out


@dataclass(frozen=True, kw_only=True)
class CurveLaw(Law):
    """A law with a formula of its own: ln(loss) (batch, points) and its Jacobian (batch, points, parameters)."""

    log_loss: Callable[[Array, Mapping[str, Any]], Array]
    log_gradient: Callable[[Array, Mapping[str, Any]], Array]
    starts: Callable[[Mapping[str, Any], Array], Array]  # internal starts from inputs and loss

    def log_predict(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        return self.log_loss(theta, inputs)

    def log_slopes(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        return self.log_gradient(theta, inputs)
