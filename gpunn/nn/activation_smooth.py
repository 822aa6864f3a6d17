"""More smooth activation functions: SELU, CELU, Mish, softsign, the log of the sigmoid.

Where the derivative is small in a tail, it is computed from x: computed from h = f(x), which is
near its limit there, it would be a difference of nearly equal numbers.
"""

from __future__ import annotations

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import number
from gpunn.arrays.settings import checked
from gpunn.nn.activation import Activation


class SELU(Activation):
    r"""h = s x if x > 0, else :math:`s a (e^x - 1)`; dh/dx = s, or :math:`s a e^x`.

    a = 1.6733 and s = 1.0507 are such that a mean of 0 and a variance of 1 are a fixed point, for
    weights as `init.lecun_normal` draws them.

    References
    ----------
    Klambauer et al., "Self-normalizing neural networks", NeurIPS 2017.
    """

    kernel = "selu"
    preferred_init = "lecun_normal"
    saves_output = False
    _ALPHA, _SCALE = 1.6732632423543772, 1.0507009873554805

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return s (max(x, 0) + a (e^min(x, 0) - 1)): one of the two terms is zero."""
        left = xp.expm1(xp.minimum(x, 0.0))
        return self._SCALE * xp.maximum(x, 0.0) + (self._SCALE * self._ALPHA) * left

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return s grad where x > 0, else s a e^x grad."""
        positive = xp.astype(saved > 0, grad.dtype)
        left = (self._SCALE * self._ALPHA) * xp.exp(xp.minimum(saved, 0.0))
        return grad * (self._SCALE * positive + (1.0 - positive) * left)


class CELU(Activation):
    r"""h = x if x > 0, else :math:`a (e^{x/a} - 1)`; dh/dx = 1, or :math:`e^{x/a}`: without a kink.

    Parameters
    ----------
    alpha : float, default 1.0
        a, above 0.

    References
    ----------
    Barron, "Continuously differentiable exponential linear units", arXiv:1704.07483, 2017.
    """

    kernel = "celu"
    preferred_init = "he_normal"
    saves_output = False
    alpha: float = checked(number, "(0, inf)")

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return max(x, 0) + a (e^(min(x, 0) / a) - 1): one of the two terms is zero."""
        return xp.maximum(x, 0.0) + self.alpha * xp.expm1(xp.minimum(x, 0.0) / self.alpha)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad e^(min(x, 0) / a)."""
        return grad * xp.exp(xp.minimum(saved, 0.0) / self.alpha)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"CELU({self.alpha})"


class Mish(Activation):
    r"""h = x t with :math:`t = \tanh(\log(1 + e^x))`.

    With s the logistic function, :math:`dh/dx = t + x (1 - t^2) s`. Nothing overflows: with
    :math:`w = \min(e^x, 1)` and :math:`v = \min(e^{-x}, 1)`,
    :math:`t = (w^2 + 2 w v) / (w^2 + 2 w v + 2 v^2)` and s = w / (w + v).

    References
    ----------
    Misra, "Mish: a self regularized non-monotonic activation function", BMVC 2020.
    """

    kernel = "mish"
    preferred_init = "he_normal"
    saves_output = False

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return x t."""
        w, v = _halves(xp, x)
        above = w * (w + 2.0 * v)
        return x * (above / (above + 2.0 * v * v))

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad (t + x (1 - t) (1 + t) s), with all fractions combined into one."""
        w, v = _halves(xp, saved)
        above, rest = w * (w + 2.0 * v), 2.0 * v * v
        below, both = above + rest, w + v
        slope = above * below * both + saved * rest * (below + above) * w
        return grad * (slope / (below * below * both))


class Softsign(Activation):
    r""":math:`h = x / (1 + |x|)`; :math:`dh/dx = 1 / (1 + |x|)^2`."""

    kernel = "softsign"
    saves_output = False

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return x / (1 + abs(x))."""
        return x / (1.0 + xp.abs(x))

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad / (1 + abs(x))^2."""
        share = 1.0 / (1.0 + xp.abs(saved))
        return grad * (share * share)


class LogSigmoid(Activation):
    r""":math:`h = -\log(1 + e^{-x})`, which is -softplus(-x); :math:`dh/dx = 1 - e^h`."""

    kernel = "log_sigmoid"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return min(x, 0) - log(1 + e^-abs(x))."""
        return xp.minimum(x, 0.0) - xp.log1p(xp.exp(-xp.abs(x)))

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad (1 - e^h)."""
        return grad * -xp.expm1(saved)


def _halves(xp: Namespace, x: Array) -> tuple[Array, Array]:
    """Return min(e^x, 1) and min(e^-x, 1)."""
    return xp.exp(xp.minimum(x, 0.0)), xp.exp(-xp.maximum(x, 0.0))
