"""Scaling laws, each one small object: predict, gradient, parameter transform.

Most laws are sums of terms whose logarithm is linear in the parameters,
    L = sum_k exp(sum_j sign_kj * theta_j * feature_kj(inputs)),
so a law is declared by its terms and prediction, derivatives, centring and starts follow from them.
The others (`CurveLaw`) bring their own logarithm and its derivatives: repetition in `analysis.repetition`,
broken power laws in `analysis.broken`. Internal parameters: ln of amplitudes and scales, exponents as they are.

Adding a law: one entry in `LAWS` (and, for a `CurveLaw`, its formula).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from analysis.rows import Array
from gopher.errors import UsageError, did_you_mean

AXES = ("params", "tokens", "flops")
Quantities = dict[str, Array]


class Law(Protocol):
    """What the solver, the bootstrap and the figures need from a law."""

    @property
    def name(self) -> str: ...
    @property
    def parameters(self) -> tuple[str, ...]:
        """Natural names in order: A, B, E, alpha, beta."""
        ...

    @property
    def inputs(self) -> tuple[str, ...]:
        """Which of params, tokens, unique_tokens, flops, family it reads."""
        ...

    @property
    def delta(self) -> float | None:
        """Huber delta on log residuals by default; None is least squares."""
        ...

    @property
    def simpler(self) -> str | None:
        """The law to fall back to when the data cannot carry this one."""
        ...

    def logged(self) -> Array:
        """Mask of the parameters whose internal value is the logarithm."""
        ...

    def log_predict(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        """ln(loss) for a batch of internal parameters: (batch, points)."""
        ...

    def predict(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        """Loss at `inputs`."""
        ...

    def gradient(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        """d ln(loss) / d internal parameter, one row per input, one column per parameter."""
        ...

    def derived(self, params: Quantities) -> Quantities:
        """Quantities that follow from the parameters alone (a_opt, N_c), elementwise over samples."""
        ...

    def allocate(self, params: Quantities, flops: float) -> Quantities:
        """N_opt, D_opt, tokens_per_parameter at a budget under C = 6 N D; empty where the law has none."""
        ...


def internal(law: Law, params: Mapping[str, float]) -> Array:
    """Natural parameters as the law's internal vector."""
    values = np.array([float(params[name]) for name in law.parameters])
    with np.errstate(divide="ignore"):
        return np.where(law.logged(), np.log(np.where(law.logged(), values, 1.0)), values)


def natural(law: Law, theta: Array) -> Array:
    """Internal vectors (last axis) as natural parameters."""
    mask = law.logged()
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


def nothing(_: Quantities) -> Quantities:
    return {}


def no_allocation(_: Quantities, __: float) -> Quantities:
    return {}


@dataclass(frozen=True, kw_only=True)
class SumLaw:
    """A law declared by its terms."""

    name: str
    terms: tuple[Term, ...]
    delta: float | None = None
    simpler: str | None = None
    derive: Callable[[Quantities], Quantities] = nothing
    allocation: Callable[[Quantities, float], Quantities] = no_allocation

    @property
    def amplitudes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p for t in self.terms for p, f, _ in t.factors if f.startswith("1")))

    @property
    def exponents(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(p for t in self.terms for p, f, _ in t.factors if not f.startswith("1")))

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.amplitudes + self.exponents

    @property
    def inputs(self) -> tuple[str, ...]:
        names = [f.partition("@") for t in self.terms for _, f, _ in t.factors]
        read = [("tokens", "params") if base == "ratio" else (base,) for base, _, _ in names if base != "1"]
        grouped = ("family",) if any(family for _, _, family in names) else ()
        return tuple(dict.fromkeys(n for group in read for n in group)) + grouped

    def logged(self) -> Array:
        return np.array([name in self.amplitudes for name in self.parameters])

    def _logs(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        columns = {name: theta[:, i] for i, name in enumerate(self.parameters)}
        logs = [term.log(columns, inputs) for term in self.terms]
        return np.stack(np.broadcast_arrays(*logs))

    def log_predict(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        return np.logaddexp.reduce(self._logs(theta, inputs), axis=0)

    def predict(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        return np.exp(self.log_predict(internal(self, params)[None], inputs)[0])

    def gradient(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        logs = self._logs(internal(self, params)[None], inputs)[:, 0]
        shares = np.exp(logs - np.logaddexp.reduce(logs, axis=0))
        out = np.zeros((logs.shape[1], len(self.parameters)))
        for share, term in zip(shares, self.terms, strict=True):
            for name, feat, sign in term.factors:
                out[:, self.parameters.index(name)] += share * sign * feature(feat, inputs)
        return out

    def derived(self, params: Quantities) -> Quantities:
        return self.derive(params)

    def allocate(self, params: Quantities, flops: float) -> Quantities:
        return self.allocation(params, flops)


@dataclass(frozen=True, kw_only=True)
class CurveLaw:
    """A law with a formula of its own: ln(loss) (batch, points) and its Jacobian (batch, points, parameters)."""

    name: str
    parameters: tuple[str, ...]
    inputs: tuple[str, ...]
    scales: tuple[str, ...]  # parameters whose internal value is the logarithm
    log_loss: Callable[[Array, Mapping[str, Any]], Array]
    log_gradient: Callable[[Array, Mapping[str, Any]], Array]
    starts: Callable[[Mapping[str, Any], Array], Array]  # internal starts from inputs and loss
    delta: float | None = None
    simpler: str | None = None
    derive: Callable[[Quantities], Quantities] = nothing
    allocation: Callable[[Quantities, float], Quantities] = no_allocation

    def logged(self) -> Array:
        return np.array([name in self.scales for name in self.parameters])

    def log_predict(self, theta: Array, inputs: Mapping[str, Any]) -> Array:
        return self.log_loss(theta, inputs)

    def predict(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        return np.exp(self.log_loss(internal(self, params)[None], inputs)[0])

    def gradient(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        return self.log_gradient(internal(self, params)[None], inputs)[0]

    def derived(self, params: Quantities) -> Quantities:
        return self.derive(params)

    def allocate(self, params: Quantities, flops: float) -> Quantities:
        return self.allocation(params, flops)


# ---------------------------------------------------------------------------------- one size axis


def power(amplitude: str, exponent: str, axis: str) -> Term:
    """amplitude / axis^exponent."""
    return Term(factors=((amplitude, "1", 1.0), (exponent, axis, -1.0)))


def floor(name: str = "E") -> Term:
    return Term(factors=((name, "1", 1.0),))


def power_law(x: str) -> SumLaw:
    """L = A / x^alpha."""
    return SumLaw(name="power_law", terms=(power("A", "alpha", x),))


def power_law_offset(x: str) -> SumLaw:
    """L = E + A / x^alpha, E the irreducible loss (free; hold it with pinned.E)."""
    return SumLaw(name="power_law_offset", terms=(power("A", "alpha", x), floor()), simpler="power_law")


def kaplan(axis: str, letter: str) -> SumLaw:
    """L = (X_c / x)^alpha (Kaplan et al. 2020, eqs. 1.1-1.3): a power law whose scale X_c = A^(1/alpha) is what they print."""

    def scale(p: Quantities) -> Quantities:
        return {f"{letter}_c": np.exp(np.log(p["A"]) / p["alpha"])}

    return SumLaw(name=f"kaplan_{letter.lower()}", terms=(power("A", "alpha", axis),), derive=scale)


def shared_offset(x: str, families: tuple[str, ...]) -> SumLaw:
    """L = E + A_f / x^alpha_f: one irreducible loss for several families (architectures on the same data)."""
    factors = [((f"A@{f}", f"1@{f}", 1.0), (f"alpha@{f}", f"{x}@{f}", -1.0)) for f in families]
    return SumLaw(
        name="shared_offset",
        terms=(Term(factors=tuple(factor for pair in factors for factor in pair)), floor()),
        simpler=None,
    )


# ------------------------------------------------------------------------------- parameters and tokens


def compute_optimal(p: Quantities) -> Quantities:
    """N_opt ~ C^a_opt, D_opt ~ C^b_opt for L = E + A/N^alpha + B/D^beta under C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
    a_opt = p["beta"] / (p["alpha"] + p["beta"])
    log_g = np.log(p["alpha"] * p["A"] / (p["beta"] * p["B"])) / (p["alpha"] + p["beta"])
    return {"a_opt": a_opt, "b_opt": 1 - a_opt, "G": np.exp(log_g)}


def optimal_at(p: Quantities, flops: float) -> Quantities:
    """N_opt, D_opt, tokens per parameter and the loss there, at a budget in FLOPs (C = 6 N D)."""
    d = compute_optimal(p)
    n_opt = d["G"] * (flops / 6) ** d["a_opt"]
    d_opt = (flops / 6) / n_opt
    loss = p["E"] + p["A"] * n_opt ** -p["alpha"] + p["B"] * d_opt ** -p["beta"]
    return {"N_opt": n_opt, "D_opt": d_opt, "tokens_per_parameter": d_opt / n_opt, "loss_opt": loss}


def chinchilla() -> SumLaw:
    """L = E + A / N^alpha + B / D^beta (Hoffmann et al. 2022, approach 3; Huber 1e-3 on log loss)."""
    return SumLaw(
        name="chinchilla",
        terms=(power("A", "alpha", "params"), power("B", "beta", "tokens"), floor()),
        delta=1e-3,
        simpler="flops",
        derive=compute_optimal,
        allocation=optimal_at,
    )


def chinchilla_tied() -> SumLaw:
    """Approach 3 with one exponent for N and D: four parameters, N_opt ~ D_opt ~ C^0.5 by construction."""

    def untied(p: Quantities) -> Quantities:
        return p | {"beta": p["alpha"]}

    return SumLaw(
        name="chinchilla_tied",
        terms=(power("A", "alpha", "params"), power("B", "alpha", "tokens"), floor()),
        delta=1e-3,
        simpler="flops",
        derive=lambda p: compute_optimal(untied(p)),
        allocation=lambda p, c: optimal_at(untied(p), c),
    )


def overtraining() -> SumLaw:
    """L = E + (a M^eta + b M^-eta) C^-eta, M = tokens per parameter (Gadre et al. 2024, eq. 4)."""
    return SumLaw(
        name="overtraining",
        terms=(
            Term(factors=(("a", "1", 1.0), ("eta", "flops", -1.0), ("eta", "ratio", 1.0))),
            Term(factors=(("b", "1", 1.0), ("eta", "flops", -1.0), ("eta", "ratio", -1.0))),
            floor(),
        ),
        simpler="flops",
    )


def flops_law() -> SumLaw:
    """L = E + A / C^alpha: FLOPs alone."""
    return SumLaw(name="flops", terms=(power("A", "alpha", "flops"), floor()), simpler="flops_power_law")


def flops_power_law() -> SumLaw:
    """L = A / C^alpha."""
    return SumLaw(name="flops_power_law", terms=(power("A", "alpha", "flops"),))


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
}


def law_named(name: str, x: str = "params") -> Law:
    """The law of that name on the size axis `x`."""
    if name not in LAWS:
        raise UsageError(f"law is '{name}'{did_you_mean(name, list(LAWS))} (there are {', '.join(sorted(LAWS))})")
    if x not in AXES:
        raise UsageError(f"x is '{x}'; use one of {', '.join(AXES)}")
    return LAWS[name](x)
