"""Layers for sequences of tokens: a vector for each token, and one for each position."""

from __future__ import annotations

from typing import Any, NoReturn

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import Backend, backend_of, device_mismatch, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import float_dtype, number, whole_number
from gpunn.arrays.facts import is_integer
from gpunn.errors import DataError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.host import is_on_host
from gpunn.nn.init import as_generator
from gpunn.nn.layer import Layer, wants_integers
from gpunn.nn.parameter import Parameter
from gpunn.nn.sequences import check_sequence
from gpunn.nn.tape import Tape


class Embedding(Layer):
    r"""A vector for each token, h = E[x]: row x of a table of weights.

    Since x holds integers, it has no gradient. The gradient of a row of the table is the sum of the
    gradients at all places of its token:

    .. math:: \partial J/\partial E_v = \sum_{i: x_i = v} \partial J/\partial h_i.

    Parameters
    ----------
    n_tokens : int
        V, the number of different tokens, at least 1.
    features : int
        C, the length of a vector, at least 1.
    scale : float, default 1.0
        The standard deviation of the initial weights, which are drawn from a normal distribution.
    rng : None, int or numpy.random.Generator, default None
        The seed. One seed gives the same weights on every backend.
    dtype : {"float32", "float64"}, default "float32"
        Of the weights, and so of the output.
    backend : str, Backend or None, default None
        The library and device of the weights, as for `get_backend`.

    Attributes
    ----------
    weight : Parameter
        E, of shape (n_tokens, features).

    Raises
    ------
    DTypeError, DeviceError
        By `forward`, if `x` does not fit.
    DataError
        By `forward`, for a token outside [0, V) on the host. On a device, where nothing is read
        back, the vector of such a token is NaN, and so is the loss.

    Notes
    -----
    *Shapes*: x (N, ...), integers in [0, V); h (N, ..., C).
    *Saves*: x.

    A `Loader` converts integers to floats, as needed for images; for tokens, pass
    ``Loader(..., keep_integers=True)``.

    References
    ----------
    Bengio et al., "A neural probabilistic language model", JMLR 3, 2003.
    """

    records = True
    takes_integers = True

    def __init__(
        self,
        n_tokens: int,
        features: int,
        *,
        scale: float = 1.0,
        rng: RNG = None,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name = type(self).__name__
        self.n_tokens = whole_number(name, "n_tokens", n_tokens)
        self.features = whole_number(name, "features", features)
        shape = self.n_tokens, self.features
        self.weight = _normal(self, shape, scale, rng, dtype, backend)

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return E[x]."""
        table = self.weight.value
        place = backend_of(x)
        if place is None or place != backend_of(table) or not is_integer(place.xp, x.dtype):
            self._refuse(x, place)
        if is_on_host(x) and x.size:
            self.check_integers(int(x.min()), int(x.max()))
        if tape is not None:
            tape.push(self, x)
        return kernels(x).embedding(x, table)

    def backward(self, grad: Array, tape: Tape) -> None:
        """Add to the table's gradient; tokens have none."""
        (x,) = tape.pop(self)
        if tape.wants(self.weight):
            weight = self.weight
            weight.add_grad(
                kernels(grad).embedding_backward(x, grad, weight.value, into=weight.grad_buffer)
            )

    def check_integers(self, lowest: int, highest: int) -> None:
        """Check that tokens between these two are in the table."""
        if lowest < 0 or highest >= self.n_tokens:
            raise DataError(
                f"{self!r}: expected tokens in 0..{self.n_tokens - 1}, got {lowest} to {highest}; "
                "make n_tokens larger, or map the tokens to that range"
            )

    def _refuse(self, x: Array, place: Backend | None) -> NoReturn:
        home = backend_of(self.weight.value)
        if place is not None and place != home:
            raise device_mismatch(repr(self), home, place)
        raise wants_integers(self, x)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"{type(self).__name__}({self.n_tokens}, {self.features})"


class Position(Layer):
    r"""A learned vector for each position of a sequence, :math:`y_t = x_t + P_t`.

    dJ/dx = grad, and :math:`\partial J/\partial P_t = \sum_n \partial J/\partial y_{nt}`.

    Parameters
    ----------
    length : int
        L, the largest number of positions, at least 1; shorter sequences use the first rows.
    features : int
        C, at least 1.
    scale : float, default 0.02
        The standard deviation of the initial weights, which are drawn from a normal distribution.
    rng, dtype, backend
        See `Embedding`.

    Attributes
    ----------
    weight : Parameter
        P, of shape (length, features).

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.

    Notes
    -----
    *Shapes*: x and y (N, T, C), where T is at most L.
    *Saves*: nothing.
    """

    records = True

    def __init__(
        self,
        length: int,
        features: int,
        *,
        scale: float = 0.02,
        rng: RNG = None,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name = type(self).__name__
        self.length = whole_number(name, "length", length)
        self.features = whole_number(name, "features", features)
        shape = self.length, self.features
        self.weight = _normal(self, shape, scale, rng, dtype, backend)

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return x plus a row for each position."""
        table = self.weight.value
        check_sequence(self, x, table, self.features)
        if x.shape[1] > self.length:
            raise ShapeError(
                f"{self!r}: expected at most {self.length} positions, got {tuple(x.shape)}"
            )
        if tape is not None:
            tape.push(self)
        return kernels(x).add_positions(x, table)

    def backward(self, grad: Array, tape: Tape) -> Array:
        """Return grad; add its sum over the batch to the gradient of the positions."""
        tape.pop(self)
        weight = self.weight
        if tape.wants(weight):
            weight.add_grad(
                kernels(grad).positions_backward(grad, weight.value, into=weight.grad_buffer)
            )
        return grad

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"{type(self).__name__}({self.length}, {self.features})"


def _normal(  # noqa: PLR0917 (the parameters of the layers)
    layer: Layer,
    shape: tuple[int, int],
    scale: float,
    rng: RNG,
    dtype: str,
    backend: str | Backend | None,
) -> Parameter:
    """Return a table drawn from a normal distribution."""
    name = type(layer).__name__
    scale = number(name, "scale", scale, "[0, 1e37]")
    dtype, place = float_dtype(name, dtype), get_backend(backend)
    generator = as_generator(rng, name)
    with room_for(repr(layer), place, shape):
        drawn: Any = generator.standard_normal(shape) * scale
        return Parameter(place.asarray(drawn, dtype))
