"""Broken neural scaling law with one break (Caballero et al. 2022, eq. 1).

    L = a + b x^-c0 (1 + (x / d1)^(1 / f1))^(-c1 f1)

A power law of slope c0 that turns, around x = d1 and over a width f1 in ln x, into one of slope c0 + c1. Needs points on
both sides of the break: the published example predicts beyond it to 1 % where a plain power law with offset is 80 % off.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from analysis.law import CurveLaw
from analysis.rows import Array

NAMES = ("a", "b", "c0", "c1", "d1", "f1")


def pieces(theta: Array, x: Array) -> tuple[Array, Array, Array, Array]:
    """(v, softplus(v), sigmoid(v), ln of the power part) with v = (ln x - ln d1) / f1."""
    _, b, c0, c1, d1, f1 = (theta[:, i : i + 1] for i in range(6))
    v = (x - d1) / np.exp(f1)
    soft = np.logaddexp(0.0, v)
    return v, soft, np.exp(-np.logaddexp(0.0, -v)), b - c0 * x - c1 * np.exp(f1) * soft


def broken(axis: str) -> CurveLaw:
    """The law on one size axis."""

    def log_x(inputs: Mapping[str, Any]) -> Array:
        return np.log(np.atleast_1d(np.asarray(inputs[axis], float)))[None]

    def log_loss(theta: Array, inputs: Mapping[str, Any]) -> Array:
        return np.logaddexp(theta[:, 0:1], pieces(theta, log_x(inputs))[3])

    def log_gradient(theta: Array, inputs: Mapping[str, Any]) -> Array:
        x = log_x(inputs)
        v, soft, rise, power = pieces(theta, x)
        width, slope = np.exp(theta[:, 5:6]), theta[:, 3:4]
        share = np.exp(power - np.logaddexp(theta[:, 0:1], power))
        columns = [
            1 - share,
            share,
            -x * share,
            -width * soft * share,
            slope * rise * share,
            -slope * width * (soft - rise * v) * share,
        ]
        return np.stack(np.broadcast_arrays(*columns), -1)

    return CurveLaw(
        name="bnsl",
        parameters=NAMES,
        inputs=(axis,),
        scales=("a", "b", "d1", "f1"),
        log_loss=log_loss,
        log_gradient=log_gradient,
        starts=lambda inputs, loss: starts(log_x(inputs)[0], loss),
        simpler="power_law_offset",
    )


def starts(x: Array, loss: Array) -> Array:
    """A grid of break places, widths and floors; slopes and scale by linear least squares on the rest."""
    out = []
    for d1 in np.quantile(x, np.linspace(0.1, 0.98, 8)):
        for f1 in (0.03, 0.1, 0.3, 1.0):
            soft = np.logaddexp(0.0, (x - d1) / f1)
            design = np.stack([np.ones_like(x), -x, -f1 * soft], 1)
            for share in (1e-4, 0.3, 0.8):
                floor = share * loss.min()
                b, c0, c1 = np.linalg.lstsq(design, np.log(loss - floor), rcond=None)[0]
                out.append([np.log(floor), b, c0, c1, d1, np.log(f1)])
    return np.array(out)
