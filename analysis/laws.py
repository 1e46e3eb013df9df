"""Scaling laws, each one small object: predict, gradient, parameter transform.

Most laws are sums of terms whose logarithm is linear in the parameters,
    L = sum_k exp(theta_amplitude + sum_j sign * theta_exponent * ln input),
so a law is declared by its terms and everything else (prediction, derivatives, centring, starts) follows.
Internal parameters: ln of amplitudes, exponents as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from analysis.points import Array


class Law(Protocol):
    """What the solver, the bootstrap and the figures need from a law."""

    name: str
    parameters: tuple[str, ...]  # natural names in order: A, B, E, alpha, beta
    inputs: tuple[str, ...]  # which of params, tokens, unique_tokens, flops it reads

    def predict(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        """Loss at `inputs`."""
        ...

    def gradient(self, params: Mapping[str, float], inputs: Mapping[str, Any]) -> Array:
        """d ln(loss) / d internal parameter, one row per input, one column per parameter."""
        ...

    def internal(self, params: Mapping[str, float]) -> Array:
        """Natural -> internal (ln of amplitudes)."""
        ...

    def natural(self, theta: Array) -> Array:
        """Internal -> natural, over the last axis."""
        ...


@dataclass(frozen=True, kw_only=True)
class Term:
    """amplitude * prod_j input_j ** (sign_j * exponent_j)."""

    amplitude: str
    powers: tuple[tuple[str, str, float], ...] = ()  # (exponent name, input, sign)
