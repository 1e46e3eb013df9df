"""Laws that are sums of powers: one size axis, parameters and tokens, FLOPs, over-training."""

import numpy as np

from analysis.law import Quantities, SumLaw, Term

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
    """L = E + (a M^eta + b M^-eta) C^-eta, M = tokens per parameter (Gadre et al. 2024, eq. 4).

    With C = 6 N D this is approach 3 with one exponent, -2 eta, for N and D. They fit absolute residuals.
    """
    return SumLaw(
        name="overtraining",
        terms=(
            Term(factors=(("a", "1", 1.0), ("eta", "flops", -1.0), ("eta", "ratio", 1.0))),
            Term(factors=(("b", "1", 1.0), ("eta", "flops", -1.0), ("eta", "ratio", -1.0))),
            floor(),
        ),
        absolute=True,
        counts="total",
        simpler="flops",
        derive=lambda p: {"exponent": -2 * p["eta"]},
    )


def flops_law() -> SumLaw:
    """L = E + A / C^alpha: FLOPs alone."""
    return SumLaw(name="flops", terms=(power("A", "alpha", "flops"), floor()), simpler="flops_power_law")


def flops_power_law() -> SumLaw:
    """L = A / C^alpha."""
    return SumLaw(name="flops_power_law", terms=(power("A", "alpha", "flops"),))
