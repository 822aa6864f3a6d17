"""The names of the activations, such as ``"relu"``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from gpunn.arrays.checks import listed, shown
from gpunn.errors import SettingError
from gpunn.nn.activation import (
    ELU,
    GELU,
    Activation,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from gpunn.nn.activation_hard import Hardsigmoid, Hardswish, Hardtanh, ReLU6, Softshrink
from gpunn.nn.activation_smooth import CELU, SELU, LogSigmoid, Mish, Softsign
from gpunn.nn.layer import as_instance

#: The class, or function, that creates each activation, by name.
ACTIVATIONS: dict[str, Callable[[], Activation]] = {
    "identity": Identity,
    "sigmoid": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
    "silu": SiLU,
    "gelu": GELU,
    "gelu_tanh": partial(GELU, approximate=True),
    "softplus": Softplus,
    "softmax": Softmax,
    "log_softmax": LogSoftmax,
    "selu": SELU,
    "celu": CELU,
    "mish": Mish,
    "softsign": Softsign,
    "log_sigmoid": LogSigmoid,
    "hardtanh": Hardtanh,
    "relu6": ReLU6,
    "hardsigmoid": Hardsigmoid,
    "hardswish": Hardswish,
    "softshrink": Softshrink,
}


def get_activation(activation: Any, owner: str = "get_activation") -> Activation:
    """Return the activation with a given name, the given activation, or the identity for None.

    Parameters
    ----------
    activation : str, Activation or None
        A name in `ACTIVATIONS`, or an object.
    owner : str
        The class or function that an error names.

    Raises
    ------
    SettingError
        If it is anything else.
    """
    if activation is None:
        return Identity()
    if isinstance(activation, Activation):
        return activation
    if isinstance(activation, type) and issubclass(activation, Activation):
        raise SettingError(f"{owner}: activation is {as_instance(activation)}")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise SettingError(
            f"{owner}: unknown activation {shown(activation)}; known are "
            f"{listed(ACTIVATIONS, activation)}, and any object of the class Activation"
        )
    return ACTIVATIONS[activation]()


def name_of(activation: Activation) -> str:
    """Return an activation's name if it has default settings, else the expression for it."""
    for name, make in ACTIVATIONS.items():
        if repr(make()) == repr(activation) and type(make()) is type(activation):
            return repr(name)
    return repr(activation)
