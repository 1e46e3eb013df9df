"""The objective of a law on data, with exact derivatives, for a batch of parameters at once.

    sum of w * Huber(residual, delta), residual = ln(law) - ln(loss), or law - loss where a published recipe says so

One row of a batch is one fit: its own parameters, weights (bootstrap counts) and, where the data are redrawn, its own
log losses. Float64 and centred logarithms throughout: with raw ln N the Gauss-Newton condition number of the
Chinchilla fit is 7e6, with centred ones 6e3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from analysis.law import CurveLaw, Law, SumLaw, feature, internal
from analysis.rows import Array

STEEPEST = 12.0  # exponent beyond which amplitudes would leave float64; far outside what a verdict accepts


def huber(residual: Array, delta: float | None) -> Array:
    """r^2 / 2 within delta, delta (|r| - delta / 2) beyond; r^2 / 2 everywhere when delta is None."""
    square = 0.5 * residual * residual
    if delta is None:
        return square
    size = np.abs(residual)
    return np.where(size <= delta, square, delta * (size - 0.5 * delta))


class Model(Protocol):
    """A law tied to data, in coordinates where it is well scaled and only free parameters move."""

    z: Array  # ln of the losses
    size: int  # free parameters

    @property
    def law(self) -> Law: ...

    limits: tuple[Array, Array]  # lowest and highest coordinates
    absolute: bool  # residuals of the loss instead of its logarithm

    def log_law(self, t: Array) -> Array:
        """ln(law): (batch, points)."""
        ...

    def evaluate(
        self, t: Array, w: Array, delta: float | None, exact: bool, z: Array | None = None
    ) -> tuple[Array, Array, Array]:
        """Objective, gradient and Hessian per row; exact=False gives the Gauss-Newton (IRLS) majoriser."""
        ...

    def from_theta(self, theta: Array) -> Array:
        """Internal parameters of the law -> coordinates of this model."""
        ...

    def to_theta(self, t: Array) -> Array:
        """Coordinates of this model -> internal parameters of the law, pinned ones filled in."""
        ...


def gap(fitted: Array, z: Array, absolute: bool) -> Array:
    """The residual that the objective sees: ln(law) - ln(loss), or law - loss; `fitted` and `z` are logarithms."""
    return np.exp(fitted) - np.exp(z) if absolute else fitted - z


def weigh(
    fitted: Array, z: Array, w: Array, delta: float | None, exact: bool, absolute: bool
) -> tuple[Array, Array, Array]:
    """(objective, psi, outer): its slope in ln(law) and the weight of the outer product of gradients in its Hessian.

    The Hessian is sum outer g g' + psi d2(ln law); exact=False replaces it by the IRLS (Gauss-Newton) majoriser.
    """
    residual = gap(fitted, z, absolute)
    value = (huber(residual, delta) * w).sum(1)
    if delta is None:
        psi, outer = residual * w, np.broadcast_to(w, residual.shape)
    else:
        psi = np.clip(residual, -delta, delta) * w
        size = np.abs(residual)
        outer = w * (size <= delta) if exact else w * np.minimum(1.0, delta / np.maximum(size, 1e-300))
    if absolute:
        level = np.exp(fitted)
        outer = outer * level**2 + (psi * level if exact else 0.0)
        psi = psi * level
    return value, psi, outer


@dataclass(frozen=True, eq=False)
class Coordinates:
    """theta = shift + basis @ t: pinned parameters held, logarithms centred under each amplitude."""

    shift: Array  # (parameters,)
    basis: Array  # (parameters, free)
    inverse: Array  # (free, parameters)

    def to_theta(self, t: Array) -> Array:
        return self.shift + t @ self.basis.T

    def from_theta(self, theta: Array) -> Array:
        return np.atleast_2d(theta) @ self.inverse.T


def coordinates(law: Law, pinned: Mapping[str, float], centre: Array | None = None) -> Coordinates:
    """Coordinates for `law` with `pinned` natural values; t = (1 + centre) @ theta on the free parameters."""
    names = law.parameters
    held = np.array([name in pinned for name in names])
    values = internal(law, {name: pinned.get(name, 1.0) for name in names})
    forward = np.eye(len(names)) + (0 if centre is None else centre)
    back = np.linalg.inv(forward)
    return Coordinates(shift=back[:, held] @ values[held], basis=back[:, ~held], inverse=forward[~held])


class SumModel:
    """A `SumLaw` on data: derivatives assembled by matrix products over the (batch x points) shares of its terms."""

    def __init__(
        self, law: SumLaw, inputs: Mapping[str, Any], loss: Array, pinned: Mapping[str, float], centred: bool = True
    ) -> None:
        self.law, self.z, self.absolute = law, np.log(np.asarray(loss, float)), law.absolute
        raw = [self._matrix(term.factors, inputs) for term in law.terms]
        self.coordinates = coordinates(law, pinned, self._centre(raw, pinned) if centred else None)
        self.size = self.coordinates.basis.shape[1]
        steep = np.where(law.logged()[[name not in pinned for name in law.parameters]], np.inf, STEEPEST)
        self.limits = (-steep, steep)
        # ln term = offset + features @ t[columns]; most columns of a term are zero and dropped
        self.terms: list[tuple[Array, Array, Array]] = []
        for matrix in raw:
            features = matrix @ self.coordinates.basis
            columns = np.flatnonzero(np.abs(features).max(0) > 1e-12)
            self.terms.append((columns, np.ascontiguousarray(features[:, columns]), matrix @ self.coordinates.shift))
        n = len(self.z)
        self.products = {
            (k, m): np.ascontiguousarray((self.terms[k][1][:, :, None] * self.terms[m][1][:, None, :]).reshape(n, -1))
            for k in range(len(self.terms))
            for m in range(k, len(self.terms))
        }

    def _matrix(self, factors: tuple[tuple[str, str, float], ...], inputs: Mapping[str, Any]) -> Array:
        out = np.zeros((len(self.z), len(self.law.parameters)))
        for name, feat, sign in factors:
            out[:, self.law.parameters.index(name)] += sign * feature(feat, inputs)
        return out

    def _centre(self, raw: list[Array], pinned: Mapping[str, float]) -> Array:
        """Means of each term's features under its amplitudes: what a free amplitude can absorb."""
        names, logged = self.law.parameters, self.law.logged()
        centre = np.zeros((len(names), len(names)))
        free = np.array([name not in pinned for name in names])
        for matrix in raw:
            for a in np.flatnonzero(logged & free & (np.abs(matrix).max(0) > 0)):
                rows = matrix[:, a] != 0
                centre[a] += np.where(free & ~logged, matrix[rows].mean(0), 0.0)
        return centre

    def from_theta(self, theta: Array) -> Array:
        return self.coordinates.from_theta(theta)

    def to_theta(self, t: Array) -> Array:
        return self.coordinates.to_theta(t)

    def _parts(self, t: Array) -> tuple[Array, list[Array]]:
        """ln(law) and each term's share of it: (batch, points)."""
        logs = [offset + t[:, columns] @ features.T for columns, features, offset in self.terms]
        if len(logs) == 1:
            return logs[0], [np.ones_like(logs[0])]
        top = np.maximum.reduce(logs)
        shares = [np.exp(u - top) for u in logs]
        total = np.add.reduce(shares)
        for share in shares:
            share /= total
        return top + np.log(total), shares

    def log_law(self, t: Array) -> Array:
        return self._parts(t)[0]

    def evaluate(
        self, t: Array, w: Array, delta: float | None, exact: bool, z: Array | None = None
    ) -> tuple[Array, Array, Array]:
        fitted, shares = self._parts(t)
        value, psi, outer = weigh(fitted, self.z if z is None else z, w, delta, exact, self.absolute)
        gradient = np.zeros((len(t), self.size))
        hessian = np.zeros((len(t), self.size, self.size))
        # d2(ln law) = sum_k p_k x_k x_k' - g g' with g = sum_k p_k x_k, so the exact Hessian needs only shares and features
        outer = outer - psi if exact else outer
        for k, (rows, features, _) in enumerate(self.terms):
            gradient[:, rows] += (psi * shares[k]) @ features
            weighted = outer * shares[k]
            for m in range(k, len(self.terms)):
                columns = self.terms[m][0]
                scale = weighted * shares[m]
                if exact and m == k:
                    scale += psi * shares[k]
                block = (scale @ self.products[k, m]).reshape(len(t), len(rows), len(columns))
                hessian[:, rows[:, None], columns[None]] += block
                if m != k:
                    hessian[:, columns[:, None], rows[None]] += block.transpose(0, 2, 1)
        return value, gradient, hessian


class CurveModel:
    """A `CurveLaw` on data: its own Jacobian, second derivatives by differences of its gradient."""

    def __init__(self, law: CurveLaw, inputs: Mapping[str, Any], loss: Array, pinned: Mapping[str, float]) -> None:
        self.law, self.z, self.absolute = law, np.log(np.asarray(loss, float)), law.absolute
        self.inputs = {name: inputs[name] for name in law.inputs}
        self.coordinates = coordinates(law, pinned)
        self.size = self.coordinates.basis.shape[1]
        ends = [law.limits.get(name, (-np.inf, np.inf)) for name in law.parameters if name not in pinned]
        self.limits = (np.array([low for low, _ in ends]), np.array([high for _, high in ends]))

    def from_theta(self, theta: Array) -> Array:
        return self.coordinates.from_theta(theta)

    def to_theta(self, t: Array) -> Array:
        return self.coordinates.to_theta(t)

    def log_law(self, t: Array) -> Array:
        return self.law.log_predict(self.to_theta(t), self.inputs)

    def _jacobian(self, t: Array) -> Array:
        return self.law.log_slopes(self.to_theta(t), self.inputs) @ self.coordinates.basis

    def evaluate(
        self, t: Array, w: Array, delta: float | None, exact: bool, z: Array | None = None
    ) -> tuple[Array, Array, Array]:
        value, psi, outer = weigh(self.log_law(t), self.z if z is None else z, w, delta, exact, self.absolute)
        jacobian = self._jacobian(t)
        gradient = np.einsum("bn,bnp->bp", psi, jacobian)
        hessian = np.einsum("bn,bnp,bnq->bpq", outer, jacobian, jacobian)
        if exact:
            for j in range(self.size):
                step = np.zeros(self.size)
                step[j] = 1e-6
                hessian[:, j] += (np.einsum("bn,bnp->bp", psi, self._jacobian(t + step)) - gradient) / 1e-6
            hessian = 0.5 * (hessian + hessian.transpose(0, 2, 1))
        return value, gradient, hessian


def model_of(
    law: Law, inputs: Mapping[str, Any], loss: Array, pinned: Mapping[str, float] | None = None, centred: bool = True
) -> Model:
    """`law` tied to data, ready for the solver; centred=False keeps amplitudes as coordinates (for their profiles)."""
    if isinstance(law, SumLaw):
        return SumModel(law, inputs, loss, pinned or {}, centred)
    return CurveModel(cast(CurveLaw, law), inputs, loss, pinned or {})
