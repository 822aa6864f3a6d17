"""Self-attention."""

from __future__ import annotations

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import Backend, backend_of
from gpunn.arrays.checks import flag, whole_number
from gpunn.errors import DTypeError, SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.nn.dense import Dense
from gpunn.nn.init import Initializer, as_generator
from gpunn.nn.layer import Layer
from gpunn.nn.sequences import check_sequence
from gpunn.nn.tape import Tape


class MultiHeadAttention(Layer):
    r"""Self-attention: each position takes a weighted mean of all positions' values.

    Three products of x give queries, keys and values; each of H heads has d = C / H columns of
    them. With Q, K, V those of one head and one sample, each (T, d),

    .. math:: P = \mathrm{softmax}(Q K^T / \sqrt d), \quad A = P V,

    where the softmax is by rows, over the keys that a query may see. The A of all heads are
    concatenated, and :math:`y = A W_o + b_o`. With G the gradient of a head's A, the backward pass
    is

    .. math:: \partial J/\partial V = P^T G, \quad
              \partial J/\partial S = P \circ (G V^T - (P \circ G V^T) 1 1^T),

    .. math:: \partial J/\partial Q = \partial J/\partial S \, K / \sqrt d, \quad
              \partial J/\partial K = (\partial J/\partial S)^T Q / \sqrt d,

    with the backward passes of the products before and after it; see `Dense`. A row of P that may
    see no key is 0: the output of its position is :math:`b_o`, and it passes no gradient on.

    Parameters
    ----------
    features : int
        C, the width of x and y, at least 1.
    heads : int
        H, a divisor of C.
    causal : bool, default False
        Whether a position sees only itself and those before it.
    bias : bool, default True
        Whether the products have biases.
    init : str, function or None, default None
        The distribution of the initial weights (see `gpunn.init`); None is ``"glorot_uniform"``.
        The weights of queries, keys and values are drawn as one array (C, 3 C).
    rng : None, int or numpy.random.Generator, default None
        The seed. One seed gives the same weights on every backend.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters, and so of x.
    backend : str, Backend or None, default None
        The library and device of the parameters, as for `get_backend`.

    Attributes
    ----------
    projection : Dense
        From x to queries, keys and values, (N, T, 3 C), concatenated in this order, each by heads.
    output : Dense
        From A to y.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` or `mask` does not fit.

    Notes
    -----
    *Shapes*: x and y (N, T, C); N may be 0, but not T.
    *Saves*: x, queries, keys and values, P, A and y: N T (6 C + H T) elements. Without a tape, P is
    not kept.

    References
    ----------
    Vaswani et al., "Attention is all you need", NeurIPS 2017.
    """

    records = True

    def __init__(
        self,
        features: int,
        heads: int,
        *,
        causal: bool = False,
        bias: bool = True,
        init: str | Initializer | None = None,
        rng: RNG = None,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name = type(self).__name__
        self.features = whole_number(name, "features", features)
        self.heads = whole_number(name, "heads", heads)
        self.causal = flag(name, "causal", causal)
        bias = flag(name, "bias", bias)
        if self.features % self.heads:
            raise SettingError(f"{name}: heads must divide features, got {heads} and {features}")
        rng = as_generator(rng, name)

        def dense(outputs: int) -> Dense:
            return Dense(
                self.features, outputs, bias=bias, init=init, rng=rng, dtype=dtype, backend=backend
            )

        self.projection = dense(3 * self.features)
        self.output = dense(self.features)

    def forward(self, x: Array, tape: Tape | None = None, *, mask: Array | None = None) -> Array:
        """Return y.

        Parameters
        ----------
        x : array
            (N, T, C).
        tape : Tape, optional
            For a backward pass.
        mask : array of bool, optional
            True where a key may be seen: (N, T), the same for all queries of a sample, such as
            false for padding; or (N, T, T), by query and key. With `causal`, both must allow it.
        """
        check_sequence(self, x, self.projection.weight.value, self.features)
        if mask is not None:
            self._check_mask(mask, x)
        qkv = self.projection.forward(x, tape)
        context, weights = kernels(x).attention(
            qkv, self.heads, causal=self.causal, mask=mask, keep=tape is not None
        )
        if tape is not None:
            tape.push(self, qkv, weights)
        return self.output.forward(context, tape)

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx; add to the gradients of both products' weights."""
        grad_context = self.output.backward(grad, tape)
        if grad_context is None:
            return None
        qkv, weights = tape.pop(self)
        if not tape.wants_grad:
            return None
        grad_qkv = kernels(grad).attention_backward(grad_context, qkv, weights, causal=self.causal)
        return self.projection.backward(grad_qkv, tape)

    def _check_mask(self, mask: Array, x: Array) -> None:
        place, home = backend_of(mask), backend_of(x)
        if place != home or str(mask.dtype).rpartition(".")[2] != "bool":
            came = type(mask).__name__ if place is None else f"{mask.dtype} on {place}"
            raise DTypeError(f"{self!r}: mask must be an array of bool on {home}, got {came}")
        n, t, _ = x.shape
        if tuple(mask.shape) not in ((n, t), (n, t, t)):
            raise ShapeError(
                f"{self!r}: mask must have shape {(n, t)} or {(n, t, t)}, got {tuple(mask.shape)}"
            )

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        shown = ", causal=True" if self.causal else ""
        return f"{type(self).__name__}({self.features}, {self.heads}{shown})"
