"""Activation functions composed of straight lines and parabolas; at most kinks, dh/dx is 0."""

from __future__ import annotations

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.nn.activation import Activation


class Hardtanh(Activation):
    """h = x, clipped to [-l, l]; dh/dx = 1 where -l < h < l, else 0.

    Parameters
    ----------
    limit : float, default 1.0
        l, above 0.
    """

    kernel = "hardtanh"
    limit: float = checked(number, "(0, inf)")

    def __init__(self, limit: float = 1.0) -> None:
        self.limit = limit

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return min(max(x, -l), l)."""
        return xp.minimum(xp.maximum(x, -self.limit), self.limit)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad where abs(h) < l, else 0."""
        return grad * xp.astype(xp.abs(saved) < self.limit, grad.dtype)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"Hardtanh({self.limit})"


class ReLU6(Activation):
    """h = min(max(x, 0), 6); dh/dx = 1 where 0 < h < 6, else 0."""

    kernel = "relu6"
    preferred_init = "he_normal"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return min(max(x, 0), 6)."""
        return xp.minimum(xp.maximum(x, 0.0), 6.0)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad where 0 < h < 6, else 0."""
        return grad * xp.astype(xp.abs(saved - 3.0) < 3.0, grad.dtype)


class Hardsigmoid(Activation):
    """h = min(max(x/6 + 1/2, 0), 1); dh/dx = 1/6 where 0 < h < 1, else 0."""

    kernel = "hardsigmoid"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return min(max(x/6 + 1/2, 0), 1)."""
        return hard_sigmoid(xp, x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad / 6 where 0 < h < 1, else 0."""
        return grad * ((1.0 / 6.0) * xp.astype((saved > 0.0) & (saved < 1.0), grad.dtype))


class Hardswish(Activation):
    """h = x s with s = min(max(x/6 + 1/2, 0), 1); dh/dx = s + x/6 where abs(x) < 3, else s.

    References
    ----------
    Howard et al., "Searching for MobileNetV3", ICCV 2019.
    """

    kernel = "hardswish"
    preferred_init = "he_normal"
    saves_output = False

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return x s."""
        return x * hard_sigmoid(xp, x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad (s + x/6) where abs(x) < 3, else grad s."""
        inside = xp.astype(xp.abs(saved) < 3.0, grad.dtype)
        return grad * (hard_sigmoid(xp, saved) + saved * inside * (1.0 / 6.0))


class Softshrink(Activation):
    """h = x - l if x > l, x + l if x < -l, else 0; dh/dx = 1 where h is not 0, else 0.

    Parameters
    ----------
    limit : float, default 0.5
        l, at least 0.
    """

    kernel = "softshrink"
    limit: float = checked(number, "[0, inf)")

    def __init__(self, limit: float = 0.5) -> None:
        self.limit = limit

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return x minus x clipped to [-l, l]."""
        return x - xp.minimum(xp.maximum(x, -self.limit), self.limit)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad where abs(h) > 0, else 0."""
        return grad * xp.astype(xp.abs(saved) > 0.0, grad.dtype)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"Softshrink({self.limit})"


def hard_sigmoid(xp: Namespace, x: Array) -> Array:
    """Return min(max(x/6 + 1/2, 0), 1)."""
    return xp.minimum(xp.maximum(x + 3.0, 0.0), 6.0) / 6.0  # near -3, x/6 + 1/2 would cancel
