"""Activation functions: each a formula, its gradient, and a layer.

The formulas use the functions of the standard, and are stable for every finite input:
exponentials are taken only of negative numbers. Masks are products, which are faster than `where`.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from gpunn._typing import Array, Namespace
from gpunn.arrays.checks import flag, number
from gpunn.arrays.settings import checked
from gpunn.kernels import kernels
from gpunn.kernels.declared import declare
from gpunn.nn.layer import Layer
from gpunn.nn.special import erfc
from gpunn.nn.tape import Tape


class Activation(Layer):
    """A function h = f(x) without parameters, as a layer; the base of all activations.

    A subclass defines `function` and `gradient`, and sets `saves_output` to whether the gradient is
    computed from h rather than x. The library's own activations name their fused kernel in
    `kernel`. The name applies to that class only; subclasses run their formula as written.

    Notes
    -----
    *Shapes*: any, the first axis the batch; softmax and log-softmax act on the last axis.
    *Saves*: one array of the shape of x (h or x itself, not a copy).
    """

    has_parameters: ClassVar[bool] = False
    saves_output: bool = True
    kernel: ClassVar[str | None] = None
    #: The default initializer of the weights of a layer with this activation; see `gpunn.init`.
    preferred_init: ClassVar[str] = "glorot_uniform"

    def __init_subclass__(cls, **settings: Any) -> None:
        """Note the declarations of the class; see `gpunn.kernels.declared`."""
        super().__init_subclass__(**settings)
        if "kernel" in vars(cls):
            cls.has_parameters = False
        cls._declared = declare(cls, ("function", "gradient"))

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return h = f(x), as a new array or `x` itself."""
        raise NotImplementedError(f"{type(self).__name__} must define function(xp, x)")

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return dJ/dx from dJ/dh and `saved`: h, or x if not `saves_output`."""
        raise NotImplementedError(f"{type(self).__name__} must define gradient(xp, grad, saved)")

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return f(x)."""
        h = kernels(x).activation(x, self)
        if tape is not None:
            tape.push(self, h if self.saves_output else x)
        return h

    def backward(self, grad: Array, tape: Tape) -> Array:
        """Return dJ/dx."""
        (saved,) = tape.pop(self)
        return kernels(grad).activation_backward(grad, saved, self)


class Identity(Activation):
    """h = x; dh/dx = 1."""

    kernel = "identity"

    def function(self, xp: Namespace, x: Array) -> Array:  # noqa: ARG002
        """Return x."""
        return x

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:  # noqa: ARG002
        """Return grad."""
        return grad


class Sigmoid(Activation):
    r"""The logistic function, :math:`h = 1 / (1 + e^{-x})`; dh/dx = h (1 - h).

    Computed as :math:`e^{\min(x, 0)} / (1 + e^{-|x|})`, exact in both tails.
    """

    kernel = "sigmoid"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return the logistic function of x."""
        return sigmoid(xp, x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:  # noqa: ARG002
        """Return grad h (1 - h)."""
        return grad * (saved * (1.0 - saved))


class Tanh(Activation):
    r"""h = tanh x; :math:`dh/dx = 1 - h^2`."""

    kernel = "tanh"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return tanh x."""
        return xp.tanh(x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:  # noqa: ARG002
        """Return grad (1 - h^2)."""
        return grad * (1.0 - saved * saved)


class ReLU(Activation):
    """h = max(x, 0); dh/dx = 1 where x > 0, else 0 (also at zero)."""

    kernel = "relu"
    preferred_init = "he_normal"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return max(x, 0)."""
        return xp.maximum(x, 0.0)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad where h > 0, else 0."""
        return grad * xp.astype(saved > 0, grad.dtype)


class LeakyReLU(Activation):
    """h = max(x, s x); dh/dx = 1 where x > 0, else s.

    Parameters
    ----------
    negative_slope : float, default 0.01
        The slope s below zero, in [0, 1).
    """

    kernel = "leaky_relu"
    preferred_init = "he_normal"
    negative_slope: float = checked(number, "[0, 1)")

    def __init__(self, negative_slope: float = 0.01) -> None:
        self.negative_slope = negative_slope

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return max(x, s x)."""
        return xp.maximum(x, self.negative_slope * x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad where h > 0, else s grad."""
        positive = xp.astype(saved > 0, grad.dtype)
        return grad * (positive * (1.0 - self.negative_slope) + self.negative_slope)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"LeakyReLU({self.negative_slope})"


class ELU(Activation):
    r"""h = x where x > 0, else :math:`a (e^x - 1)`; dh/dx = 1 where x > 0, else h + a.

    Parameters
    ----------
    alpha : float, default 1.0
        The limit a > 0: h tends to -a.

    References
    ----------
    Clevert, Unterthiner and Hochreiter, "Fast and accurate deep network learning by exponential
    linear units", ICLR 2016.
    """

    kernel = "elu"
    preferred_init = "he_normal"
    alpha: float = checked(number, "(0, inf)")

    def __init__(self, alpha: float = 1.0) -> None:
        self.alpha = alpha

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return max(x, 0) + a (e^min(x, 0) - 1): one of the two terms is zero."""
        return xp.maximum(x, 0.0) + self.alpha * xp.expm1(xp.minimum(x, 0.0))

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad where h > 0, else grad (h + a)."""
        positive = xp.astype(saved > 0, grad.dtype)
        return grad * (xp.minimum(saved, 0.0) + self.alpha + (1.0 - self.alpha) * positive)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"ELU({self.alpha})"


class SiLU(Activation):
    """h = x s(x) with s the logistic function; dh/dx = s (1 + x (1 - s)). Also called swish.

    References
    ----------
    Elfwing, Uchibe and Doya, "Sigmoid-weighted linear units", Neural Networks 107, 2018.
    """

    kernel = "silu"
    preferred_init = "he_normal"
    saves_output = False

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return x times its logistic function."""
        return x * sigmoid(xp, x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad s (1 + x (1 - s))."""
        s = sigmoid(xp, saved)
        return grad * (s * (1.0 + saved * (1.0 - s)))


class GELU(Activation):
    r"""h = x P(X <= x) for a standard normal X.

    Exact: :math:`h = x\,\Phi(x)` with :math:`\Phi(x) = \mathrm{erfc}(-x/\sqrt2) / 2`;
    :math:`dh/dx = \Phi(x) + x\,e^{-x^2/2} / \sqrt{2\pi}`.

    Tanh form: :math:`h = x (1 + t) / 2` with :math:`t = \tanh(c (x + b x^3))`,
    :math:`c = \sqrt{2/\pi}` and b = 0.044715; :math:`dh/dx = (1 + t) / 2 +
    x (1 - t^2) c (1 + 3 b x^2) / 2`.

    Parameters
    ----------
    approximate : bool, default False
        Whether to use the tanh form, which differs from the exact one by at most 5e-4.

    References
    ----------
    Hendrycks and Gimpel, "Gaussian error linear units", arXiv:1606.08415, 2016.
    """

    kernel = "gelu"
    preferred_init = "he_normal"
    saves_output = False
    _C = math.sqrt(2.0 / math.pi)
    _B = 0.044715

    approximate: bool = checked(flag)

    def __init__(self, *, approximate: bool = False) -> None:
        self.approximate = approximate

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return x times the normal distribution function."""
        return x * self._distribution(xp, x)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad dh/dx."""
        x, p = saved, self._distribution(xp, saved)
        square = x * x
        if self.approximate:
            # (1 + t) / 2 = p, so (1 - t^2) / 2 = 2 p (1 - p)
            density = 2.0 * p * (1.0 - p) * (self._C * (1.0 + 3.0 * self._B * square))
        else:
            density = xp.exp(-0.5 * square) * (1.0 / math.sqrt(2.0 * math.pi))
        return grad * (p + x * density)

    def _distribution(self, xp: Namespace, x: Array) -> Array:
        if self.approximate:
            return sigmoid(xp, (2.0 * self._C) * (x + self._B * (x * x * x)))
        return 0.5 * erfc(xp, x * -math.sqrt(0.5))

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return "GELU(approximate=True)" if self.approximate else "GELU()"


class Softplus(Activation):
    r""":math:`h = \log(1 + e^x)`; dh/dx is the logistic function of x, :math:`1 - e^{-h}`."""

    kernel = "softplus"
    preferred_init = "he_normal"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return max(x, 0) + log(1 + e^-abs(x))."""
        return xp.maximum(x, 0.0) + xp.log1p(xp.exp(-xp.abs(x)))

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad (1 - e^-h)."""
        return grad * -xp.expm1(-saved)


class Softmax(Activation):
    r"""Shares that add up to 1, :math:`h_k = e^{x_k} / \sum_j e^{x_j}`, along the last axis.

    With :math:`g = \partial J/\partial h`, the gradient is
    :math:`\partial J/\partial x_k = h_k (g_k - \sum_j g_j h_j)`.

    To train a classifier, end the network without it and use `SoftmaxCrossEntropy`, which applies
    softmax in a stable form.
    """

    kernel = "softmax"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return e^(x - max x), divided by its sum."""
        exponentials = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
        return exponentials / xp.sum(exponentials, axis=-1, keepdims=True)

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return h (grad - sum_j grad_j h_j)."""
        return saved * (grad - xp.sum(grad * saved, axis=-1, keepdims=True))


class LogSoftmax(Activation):
    r"""The logarithm of softmax, :math:`h_k = x_k - \log \sum_j e^{x_j}`, along the last axis.

    With :math:`g = \partial J/\partial h`, the gradient is
    :math:`\partial J/\partial x_k = g_k - e^{h_k} \sum_j g_j`.
    """

    kernel = "log_softmax"

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return the logarithm of softmax; the maximum is subtracted first."""
        shifted = x - xp.max(x, axis=-1, keepdims=True)
        return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return grad - e^h sum_j grad_j."""
        return grad - xp.exp(saved) * xp.sum(grad, axis=-1, keepdims=True)


def sigmoid(xp: Namespace, x: Array) -> Array:
    """Return 1 / (1 + e^-x), without overflow and exact in both tails."""
    return xp.exp(xp.minimum(x, 0.0)) / (1.0 + xp.exp(-xp.abs(x)))
