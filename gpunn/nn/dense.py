"""The fully connected layer."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NoReturn

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import Backend, backend_of, device_mismatch, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import flag, float_dtype, whole_number
from gpunn.arrays.facts import dtype_name
from gpunn.errors import DTypeError, ShapeError
from gpunn.kernels import kernels
from gpunn.nn.activation import Activation, Identity
from gpunn.nn.activation_names import get_activation, name_of
from gpunn.nn.init import Initializer, as_generator, draw, get_initializer
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.nn.tape import Tape


class Dense(Layer):
    r"""A fully connected layer of neurons, h = f(W x + b).

    For a batch with one sample per row, that is :math:`H = f(X W + 1 b^T)`. A batch of sequences
    has one row per position of each sample, and all rows are treated alike. With
    :math:`G = \partial J / \partial Z`, the gradient with respect to :math:`Z = X W + 1 b^T`,
    which f's own backward pass computes from :math:`\partial J / \partial H`, the backward pass is

    .. math:: \partial J/\partial W = X^T G, \quad \partial J/\partial b = G^T 1,
              \quad \partial J/\partial X = G W^T.

    Parameters
    ----------
    in_features, out_features : int
        Number of inputs and of neurons, at least 1.
    activation : str, Activation or None, default None
        f, by name (``"relu"``, ``"tanh"``, ...; see `ACTIVATIONS`) or as an object; None is the
        identity.
    bias : bool, default True
        Whether to add b.
    init : str, function or None, default None
        The distribution of the initial weights (see `gpunn.init`); None is the one that suits the
        activation (`Activation.preferred_init`): ``"he_normal"`` before rectifiers, else
        ``"glorot_uniform"``. Biases start at 0.
    rng : None, int or numpy.random.Generator, default None
        The seed. One seed gives the same weights on every backend. Give each layer its own seed,
        or all layers one Generator: layers of equal shape and seed start with equal weights.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters, and so of the input.
    backend : str, Backend or None, default None
        The library and device of the parameters, as for `get_backend`.

    Attributes
    ----------
    weight : Parameter
        W, of shape (in_features, out_features), in which no product needs a copy.
    bias : Parameter or None
        b, of shape (out_features,); weight decay does not apply to it.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.
    DeviceMemoryError
        If the device has too little memory for the parameters.

    Notes
    -----
    *Shapes*: x (N, ..., in_features), h (N, ..., out_features); N may be 0.
    *Saves*: x, and h or z, whichever f's gradient needs: in_features + out_features per row.
    """

    records = True

    def __init__(
        self,
        in_features: int,
        out_features: int,
        activation: str | Activation | None = None,
        *,
        bias: bool = True,
        init: str | Initializer | None = None,
        rng: RNG = None,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name = type(self).__name__
        self.in_features = whole_number(name, "in_features", in_features)
        self.out_features = whole_number(name, "out_features", out_features)
        self.activation = get_activation(activation, name)
        has_bias = flag(name, "bias", bias)
        init = self.activation.preferred_init if init is None else init
        place = get_backend(backend)
        initializer, generator = get_initializer(init, name), as_generator(rng, name)
        drawn = draw(repr(self), initializer, generator, (self.in_features, self.out_features))
        dtype = float_dtype(repr(self), dtype)
        with room_for(repr(self), place, (self.out_features,)):
            self.weight = Parameter(place.asarray(drawn, dtype))
            zeros = place.full((self.out_features,), 0.0, dtype)
        self.bias = Parameter(zeros, decay=False) if has_bias else None

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return f(x W + b)."""
        weight = self.weight.value
        if type(x) is not type(weight) and backend_of(x) != backend_of(weight):
            self._refuse(x)
        if x.ndim < 2 or x.shape[-1] != self.in_features or x.dtype != weight.dtype:
            self._refuse(x)
        bias = None if self.bias is None else self.bias.value
        k = kernels(x)
        rows = as_rows(x)
        h, saved = k.bias_activation(k.product(rows, weight), bias, self.activation)
        if tape is not None:
            tape.push(self, rows, saved)
        return h if rows is x else k.reshape(h, (*x.shape[:-1], self.out_features))

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return G W^T; add X^T G to the weight's gradient and 1^T G to the bias's.

        Each of the three is skipped if the tape does not want it.
        """
        x, saved = tape.pop(self)
        k, wanted, leading = kernels(grad), tape.parameters, grad.shape[:-1]
        grad = as_rows(grad)
        bias = self.bias if wanted is None or self.bias in wanted else None
        if bias is None:
            grad = k.activation_backward(grad, saved, self.activation)
        else:
            grad, grad_bias = k.bias_activation_backward(
                grad, saved, self.activation, into=bias.grad_buffer
            )
            bias.add_grad(grad_bias)
        if wanted is None or self.weight in wanted:
            self.weight.add_grad(k.product(x.T, grad, into=self.weight.grad_buffer))
        if not tape.wants_grad:
            return None
        grad_x = k.product(grad, self.weight.value.T)
        return grad_x if len(leading) == 1 else k.reshape(grad_x, (*leading, self.in_features))

    def holds_any(self, parameters: Collection[Parameter]) -> bool:
        """Return whether the layer holds any of these parameters."""
        if type(self) is not Dense:  # a subclass may hold more
            return super().holds_any(parameters)
        return self.weight in parameters or self.bias in parameters

    def _refuse(self, x: Array) -> NoReturn:
        """Raise the error that says what is wrong with `x`."""
        place, home = backend_of(x), backend_of(self.weight.value)
        if place is None:
            raise DTypeError(f"{self!r}: expected an array, got {type(x).__name__}")
        if place != home:
            raise device_mismatch(repr(self), home, place)
        if x.ndim < 2 or x.shape[-1] != self.in_features:
            flat = x.ndim > 2 and math.prod(x.shape[1:]) == self.in_features
            wanted = "N, ..." if x.ndim > 2 and not flat else "N"
            raise ShapeError(
                f"{self!r}: expected x of shape ({wanted}, {self.in_features}), "
                f"got {tuple(x.shape)}{'; flatten it first' if flat else ''}"
            )
        wanted = dtype_name(self.weight.value)
        raise DTypeError(
            f"{self!r}: the weights are {wanted} and x is {x.dtype}; convert x with "
            f'x.astype("{wanted}") or Loader(..., dtype="{wanted}"), or the model with '
            "model.to(dtype=...)"
        )

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = (
            ""
            if isinstance(self.activation, Identity)
            else f", activation={name_of(self.activation)}"
        )
        return f"Dense({self.in_features}, {self.out_features}{shown})"


def as_rows(x: Array) -> Array:
    """Return x (N, ..., P) as a matrix, with the leading axes merged into rows."""
    if x.ndim == 2:
        return x
    return kernels(x).reshape(x, (math.prod(x.shape[:-1]), x.shape[-1]))
