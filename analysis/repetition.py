"""The data-constrained law: what repeated tokens and excess parameters are still worth (Muennighoff et al. 2023, eqs. 5-7).

    L = E + A / N'^alpha + B / D'^beta
    D' = U_D + U_D R_D* (1 - exp(-R_D / R_D*)),   R_D = D / U_D - 1     (repetitions of the unique tokens U_D)
    N' = U_N + U_N R_N* (1 - exp(-R_N / R_N*)),   R_N = N / U_N - 1     (parameters beyond U_N)
    U_N = min(N, N_opt(U_D)), N_opt(U_D) = G (G U_D)^(beta/alpha), G = (alpha A / (beta B))^(1/(alpha+beta))

R* large means that repetition costs nothing. 1 - exp(-R / R*) is computed by expm1: written out it loses all digits for
large R* and makes a false minimum there.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import CurveLaw
from analysis.optimum import projected_starts
from analysis.powers import chinchilla
from analysis.rows import Array

WORTHS = (math.log(1e-2), math.log(1e5))  # of ln R*: beyond, no number of repetitions anybody runs tells values apart
NAMES = ("A", "B", "E", "alpha", "beta", "R_D", "R_N")


def worth(excess: Array, scale: Array) -> Array:
    """R* (1 - exp(-R / R*)): what `excess` repetitions are worth, at most `scale`."""
    return -scale * np.expm1(-excess / scale)


def effective(theta: Array, inputs: Mapping[str, Any]) -> dict[str, Array]:
    """ln N', ln D' and the pieces their derivatives need, (batch, points)."""
    a, b, _, alpha, beta, r_d, r_n = (theta[:, i : i + 1] for i in range(7))
    n, d, u = (np.asarray(inputs[name], float)[None] for name in ("params", "tokens", "unique_tokens"))
    alpha, beta = np.maximum(alpha, 1e-6), np.maximum(beta, 1e-6)
    log_g = (np.log(alpha) + a - np.log(beta) - b) / (alpha + beta)
    log_optimal = log_g + beta / alpha * (np.log(u) + log_g)
    capped = log_optimal < np.log(n)
    log_base = np.where(capped, log_optimal, np.log(n))
    excess_n = np.where(capped, np.expm1(np.minimum(np.log(n) - log_base, 300.0)), 0.0)
    excess_d = np.maximum(d / u - 1.0, 0.0)
    scale_n, scale_d = np.exp(r_n), np.exp(r_d)
    return {
        "log_g": log_g,
        "capped": capped,
        "log_u": np.log(u),
        "excess_n": excess_n,
        "excess_d": excess_d,
        "worth_n": worth(excess_n, scale_n),
        "worth_d": worth(excess_d, scale_d),
        "decay_n": np.exp(-excess_n / scale_n),
        "decay_d": np.exp(-excess_d / scale_d),
        "log_n": log_base + np.log1p(worth(excess_n, scale_n)),
        "log_d": np.log(np.minimum(u, d)) + np.log1p(worth(excess_d, scale_d)),
    }


def log_terms(theta: Array, e: Mapping[str, Array]) -> Array:
    """ln of the three terms, (3, batch, points)."""
    a, b, floor, alpha, beta = (theta[:, i : i + 1] for i in range(5))
    return np.stack(np.broadcast_arrays(a - alpha * e["log_n"], b - beta * e["log_d"], floor + 0 * e["log_n"]))


def log_loss(theta: Array, inputs: Mapping[str, Any]) -> Array:
    return np.logaddexp.reduce(log_terms(theta, effective(theta, inputs)), axis=0)


def log_gradient(theta: Array, inputs: Mapping[str, Any]) -> Array:
    """d ln(loss) / d theta, (batch, points, 7)."""
    e = effective(theta, inputs)
    logs = log_terms(theta, e)
    share_n, share_d, share_e = np.exp(logs - np.logaddexp.reduce(logs, axis=0))
    alpha, beta = np.maximum(theta[:, 3:4], 1e-6), np.maximum(theta[:, 4:5], 1e-6)
    total, reach = alpha + beta, e["log_u"] + e["log_g"]
    # d ln U_N where U_N is the compute-optimal size for the unique tokens, 0 where it is N itself
    d_g = {
        "A": 1 / total,
        "B": -1 / total,
        "alpha": (1 / alpha - e["log_g"]) / total,
        "beta": -(1 / beta + e["log_g"]) / total,
    }
    direct = {"alpha": -beta / alpha**2 * reach, "beta": reach / alpha}
    through = e["capped"] * (1 - e["decay_n"] * (1 + e["excess_n"]) / (1 + e["worth_n"]))  # d ln N' / d ln U_N
    out = np.zeros((*share_n.shape, 7))
    for i, name in enumerate(("A", "B", "E", "alpha", "beta")):
        if name in d_g:
            d_log_n = through * ((1 + beta / alpha) * d_g[name] + direct.get(name, 0.0))
            out[:, :, i] = -theta[:, 3:4] * share_n * d_log_n
    out[:, :, 0] += share_n
    out[:, :, 1] += share_d
    out[:, :, 2] += share_e
    out[:, :, 3] -= share_n * e["log_n"]
    out[:, :, 4] -= share_d * e["log_d"]
    out[:, :, 5] = -theta[:, 4:5] * share_d * (e["worth_d"] - e["excess_d"] * e["decay_d"]) / (1 + e["worth_d"])
    out[:, :, 6] = -theta[:, 3:4] * share_n * (e["worth_n"] - e["excess_n"] * e["decay_n"]) / (1 + e["worth_n"])
    return out


def starts(inputs: Mapping[str, Any], loss: Array) -> Array:
    """For repetition worths of 4 to 60 epochs: a Chinchilla start on the effective tokens, with several R_N*."""
    n, d, u = (np.asarray(inputs[name], float) for name in ("params", "tokens", "unique_tokens"))
    out = []
    for r_d in (4.0, 15.0, 60.0):
        d_eff = np.minimum(u, d) * (1 + worth(np.maximum(d / u - 1, 0.0), np.array(r_d)))
        first = projected_starts(chinchilla(), {"params": n, "tokens": d_eff}, loss, {})
        misfit = np.square(chinchilla().log_predict(first, {"params": n, "tokens": d_eff}) - np.log(loss)).sum(1)
        for theta in first[np.argsort(misfit)[:2]]:
            out += [np.append(theta, [np.log(r_d), np.log(r_n)]) for r_n in (1.0, 5.0, 1e3)]
    return np.array(out)


def data_constrained() -> CurveLaw:
    return CurveLaw(
        name="data_constrained",
        parameters=NAMES,
        inputs=("params", "tokens", "unique_tokens"),
        scales=("A", "B", "E", "R_D", "R_N"),
        log_loss=log_loss,
        log_gradient=log_gradient,
        starts=starts,
        limits={"R_D": WORTHS, "R_N": WORTHS},
        delta=1e-3,
        simpler="chinchilla",
        keeps=True,  # a loose R* is a finding: Chinchilla's law would take repeated tokens for new ones
    )
