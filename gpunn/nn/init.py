"""Initial weights, drawn on the host so that one seed gives the same weights on every backend.

An initializer is a function ``(rng, fan_in, fan_out) -> array of shape (fan_in, fan_out)`` in
float64; the layer converts and moves the result.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from gpunn._typing import RNG
from gpunn.arrays.backend import backend_of
from gpunn.errors import SettingError

if TYPE_CHECKING:
    from numpy.typing import NDArray

Initializer: TypeAlias = "Callable[[np.random.Generator, int, int], NDArray[np.float64]]"


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
    if not isinstance(rng, bool):
        with suppress(TypeError, ValueError):
            return np.random.default_rng(rng)
    raise SettingError(
        f"{owner}{': ' if owner else ''}rng must be None, a seed (a whole number of at least 0) or "
        f"a numpy.random.Generator, got {rng!r}"
    )


def glorot_uniform(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    r"""Draw uniformly from :math:`\pm\sqrt{6 / (n_{in} + n_{out})}`.

    Keeps the variance of activations and gradients about constant through layers whose activation
    has slope 1 at 0 (tanh, identity).

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", AISTATS 2010.
    """
    limit = math.sqrt(6.0 / max(1, fan_in + fan_out))
    return rng.uniform(-limit, limit, (fan_in, fan_out))


def glorot_normal(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    r"""Draw from a normal distribution of variance :math:`2 / (n_{in} + n_{out})`."""
    return rng.standard_normal((fan_in, fan_out)) * math.sqrt(2.0 / max(1, fan_in + fan_out))


def he_normal(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    r"""Draw from a normal distribution of variance :math:`2 / n_{in}`.

    Makes up for the half of its inputs that a rectifier sets to 0.

    References
    ----------
    He et al., "Delving deep into rectifiers", ICCV 2015.
    """
    return rng.standard_normal((fan_in, fan_out)) * math.sqrt(2.0 / max(1, fan_in))


def he_uniform(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:
    r"""Draw uniformly from :math:`\pm\sqrt{6 / n_{in}}`, of variance :math:`2 / n_{in}`."""
    limit = math.sqrt(6.0 / max(1, fan_in))
    return rng.uniform(-limit, limit, (fan_in, fan_out))


def zeros(rng: np.random.Generator, fan_in: int, fan_out: int) -> NDArray[np.float64]:  # noqa: ARG001
    """Return zeros, which are fit for logistic regression but not for deeper networks."""
    return np.zeros((fan_in, fan_out))


INITIALIZERS: dict[str, Initializer] = {
    function.__name__: function
    for function in (glorot_uniform, glorot_normal, he_normal, he_uniform, zeros)
}


def get_initializer(init: Any, owner: str = "get_initializer") -> Initializer:
    """Return the initializer of that name, or the given function.

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
            f"{owner}: init must be a name or a function, got an array; say init=lambda *_: array"
        )
    if not isinstance(init, str):
        raise SettingError(f"{owner}: init must be a name or a function, got {init!r}")
    if init not in INITIALIZERS:
        known = ", ".join(INITIALIZERS)
        raise SettingError(f"{owner}: unknown initializer {init!r}; known are {known}")
    return INITIALIZERS[init]
