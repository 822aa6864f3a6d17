r"""Initial weights, drawn on the host so that one seed gives the same weights on every backend.

An initializer is a function ``(rng, *shape) -> array of that shape`` in float64; the layer converts
and moves the result. The shape is (inputs, outputs) for a matrix, and (window..., inputs, outputs)
for a filter: each output is a sum over its window's inputs, so a filter of shape (k, k, p, q) has

.. math:: n_{in} = k^2 p, \qquad n_{out} = k^2 q.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from gpunn._typing import RNG, Array, Shape
from gpunn.arrays.backend import backend_of, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import is_whole, number, sample_shape, shown
from gpunn.arrays.facts import is_kind
from gpunn.errors import DTypeError, SettingError, ShapeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = [
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "lecun_normal",
    "lecun_uniform",
    "orthogonal",
    "truncated_normal",
    "zeros",
]

Initializer: TypeAlias = "Callable[..., NDArray[np.float64]]"


def as_generator(rng: RNG, owner: str = "") -> np.random.Generator:
    """Return a generator for an `rng` keyword, as in Scientific Python's SPEC 7.

    Parameters
    ----------
    rng : None, int, sequence of int, SeedSequence, BitGenerator or Generator
        None draws fresh entropy; a Generator is returned unchanged.
    owner : str
        The class or function that an error names.

    Raises
    ------
    SettingError
        If it is none of these.
    """
    if isinstance(rng, np.random.Generator):
        return rng
    random = np.random  # what its generators accept, besides numbers
    seeds = random.BitGenerator, random.bit_generator.ISeedSequence, random.RandomState
    if rng is None or isinstance(rng, seeds) or _is_seed(rng):
        with suppress(TypeError, ValueError):  # a subclass that is not usable after all
            return np.random.default_rng(rng)
    raise SettingError(
        f"{owner}{': ' if owner else ''}rng must be None, a seed (a whole number of at least 0) or "
        f"a numpy.random.Generator, got {shown(rng)}"
    )


def _is_seed(rng: Any) -> bool:
    """Return whether this is a whole number of at least 0, or a flat list, tuple or array of them.

    Checked first because NumPy recurses into anything, endlessly if a list contains itself.
    """
    if isinstance(rng, np.ndarray):
        return rng.dtype.kind in "iu" and rng.ndim <= 1
    several = rng if isinstance(rng, (list, tuple)) else (rng,)
    return all(is_whole(n) and n >= 0 for n in several)


def fans(shape: Shape) -> tuple[int, int]:
    """Return the numbers of inputs and of outputs of a weight with this shape, at least 1.

    They are defined in the module's docstring. For a filter in groups, the shape has the inputs of
    one group and the outputs of all groups (as in PyTorch).
    """
    lengths = sample_shape("fans", shape, "shape")
    if len(lengths) < 2:
        raise ShapeError(f"fans: shape must be (..., inputs, outputs), got {shown(shape)}")
    *window, n_in, n_out = lengths
    size = math.prod(window)
    return max(1, size * n_in), max(1, size * n_out)


def glorot_uniform(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    r"""Draw uniformly from :math:`\pm\sqrt{6 / (n_{in} + n_{out})}`.

    Keeps the variance of activations and gradients about constant through layers whose activation
    has slope 1 at 0 (tanh, identity).

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.
    """
    return _uniform(rng, shape, 6.0 / sum(fans(shape)))


def glorot_normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    r"""Draw from a normal distribution of variance :math:`2 / (n_{in} + n_{out})`."""
    return _normal(rng, shape, 2.0 / sum(fans(shape)))


def he_uniform(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    r"""Draw uniformly from :math:`\pm\sqrt{6 / n_{in}}`, of variance :math:`2 / n_{in}`."""
    return _uniform(rng, shape, 6.0 / fans(shape)[0])


def he_normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    r"""Draw from a normal distribution of variance :math:`2 / n_{in}`.

    Compensates for the half of its inputs that a rectifier sets to 0.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    return _normal(rng, shape, 2.0 / fans(shape)[0])


def lecun_uniform(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    r"""Draw uniformly from :math:`\pm\sqrt{3 / n_{in}}`, of variance :math:`1 / n_{in}`."""
    return _uniform(rng, shape, 3.0 / fans(shape)[0])


def lecun_normal(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:
    r"""Draw from a normal distribution of variance :math:`1 / n_{in}`.

    Keeps the variance of independent inputs, as self-normalizing networks (SELU) assume. (Keras's
    is truncated at two standard deviations.)

    References
    ----------
    LeCun et al., "Efficient BackProp", in "Neural networks: tricks of the trade", 1998. Klambauer
    et al., "Self-normalizing neural networks", NeurIPS 2017.
    """
    return _normal(rng, shape, 1.0 / fans(shape)[0])


def orthogonal(rng: np.random.Generator, *shape: int, gain: float = 1.0) -> NDArray[np.float64]:
    r"""Draw a matrix with orthonormal columns, or rows if it is wide, times `gain`.

    A filter counts as a matrix of its window's inputs by its outputs. The distribution is uniform
    over all such matrices: the matrix is the factor Q of a normal matrix, with the signs that make
    R's diagonal positive. For another gain:
    ``init=functools.partial(gn.init.orthogonal, gain=2**0.5)``.

    References
    ----------
    Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear neural
    networks", ICLR 2014. Mezzadri, "How to generate random matrices from the classical compact
    groups", Notices of the AMS 54, 2007.
    """
    gain = number("orthogonal", "gain", gain, "(0, inf)")
    rows, columns = math.prod(shape[:-1]), shape[-1]
    drawn = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(drawn)
    q *= gain * np.copysign(1.0, np.diagonal(r))
    return np.ascontiguousarray(q if rows >= columns else q.T).reshape(shape)


def truncated_normal(
    rng: np.random.Generator, *shape: int, deviation: float = 0.02
) -> NDArray[np.float64]:
    """Draw from a normal distribution without the 4.6 % of it beyond two standard deviations.

    `deviation` is the standard deviation of the whole distribution; that of the truncated one is
    0.880 times as large (as in PyTorch and Keras). The default is usual for transformers. For
    another: ``init=functools.partial(gn.init.truncated_normal, deviation=0.05)``.

    References
    ----------
    Devlin et al., "BERT: pre-training of deep bidirectional transformers for language
    understanding", NAACL 2019 (the default).
    """
    deviation = number("truncated_normal", "deviation", deviation, "(0, inf)")
    drawn = rng.standard_normal(shape)
    while (outside := np.abs(drawn) > 2.0).any():
        drawn[outside] = rng.standard_normal(np.count_nonzero(outside))
    drawn *= deviation
    return drawn


def zeros(rng: np.random.Generator, *shape: int) -> NDArray[np.float64]:  # noqa: ARG001
    """Return zeros, which are suitable for logistic regression but not for deeper networks."""
    return np.zeros(shape)


def _uniform(rng: np.random.Generator, shape: Shape, squared_limit: float) -> NDArray[np.float64]:
    limit = math.sqrt(squared_limit)
    return rng.uniform(-limit, limit, shape)


def _normal(rng: np.random.Generator, shape: Shape, variance: float) -> NDArray[np.float64]:
    return rng.standard_normal(shape) * math.sqrt(variance)


INITIALIZERS: dict[str, Initializer] = {
    function.__name__: function
    for function in (
        *(glorot_uniform, glorot_normal, he_normal, he_uniform, lecun_normal, lecun_uniform),
        *(orthogonal, truncated_normal, zeros),
    )
}


def get_initializer(init: Any, owner: str = "get_initializer") -> Initializer:
    """Return the initializer with a given name, or the given function.

    Parameters
    ----------
    init : str or function
        A name in `INITIALIZERS`, or a function.
    owner : str
        The class or function that an error names.
    """
    if callable(init):
        return cast("Initializer", init)
    if backend_of(init) is not None:
        raise SettingError(
            f"{owner}: init must be a name or a function, got an array; pass init=lambda *_: array"
        )
    if not isinstance(init, str):
        raise SettingError(f"{owner}: init must be a name or a function, got {shown(init)}")
    if init not in INITIALIZERS:
        known = ", ".join(INITIALIZERS)
        raise SettingError(f"{owner}: unknown initializer {shown(init)}; known are {known}")
    return INITIALIZERS[init]


def draw(owner: str, init: Any, rng: np.random.Generator, shape: Shape) -> Array:
    """Return initial weights of this shape, after checking what the initializer returns.

    Parameters
    ----------
    owner : str
        The layer that an error names.
    init : function
        The initializer, from `get_initializer`.
    rng : numpy.random.Generator
    shape : tuple of int
        (inputs, outputs), or (window..., inputs, outputs) for a filter.

    Raises
    ------
    SettingError, DTypeError, ShapeError
        If the function does not take a shape of this length, or returns something other than an
        array of real numbers of this shape.
    DeviceMemoryError
        If the host has too little memory for the weights.
    """
    _check_signature(owner, init, rng, shape)
    with room_for(owner, get_backend("numpy"), shape):
        drawn = init(rng, *shape)
    place = backend_of(drawn)
    if place is None:
        raise DTypeError(f"{owner}: init must return an array, got {type(drawn).__name__}")
    if not is_kind(place.xp, drawn.dtype, ("integral", "real floating")):
        raise DTypeError(f"{owner}: init must return real numbers, got {drawn.dtype}")
    if tuple(drawn.shape) != shape:
        raise ShapeError(f"{owner}: init must return shape {shape}, got {tuple(drawn.shape)}")
    return drawn


def _check_signature(owner: str, init: Any, rng: np.random.Generator, shape: Shape) -> None:
    """Check that a function takes a generator and the numbers of a shape."""
    try:
        parameters = signature(init)
    except ValueError:  # some C functions have no signature
        return
    try:
        parameters.bind(rng, *shape)
    except TypeError:
        raise SettingError(
            f"{owner}: init is called as init(rng, {', '.join(map(str, shape))}), which "
            f"{shown(init)} does not take; define it as init(rng, *shape)"
        ) from None
