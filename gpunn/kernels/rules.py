"""The update rules that fused kernels know, and their settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gpunn.kernels.declared import kernel_of


class Fused(NamedTuple):
    """An update rule in the form that fused kernels take.

    Attributes
    ----------
    name : str
        The kernel's name.
    settings : tuple of three floats
        p, q and r of the kernel; 0 if the rule has fewer.
    places : tuple of int
        For each state of the rule, its index among the kernel's three states.
    """

    name: str
    settings: tuple[float, float, float]
    places: tuple[int, ...]


_NONE: tuple[int, ...] = ()
_FIRST, _FIRST_TWO = (0,), (0, 1)


def _sgd(rule: Any) -> Fused:
    momentum = float(rule.momentum)
    places = _FIRST if momentum else _NONE
    return Fused("sgd", (momentum, float(rule.nesterov), 0.0), places)


def _adam(rule: Any) -> Fused:
    return Fused("adam", (float(rule.beta_1), float(rule.beta_2), 0.0), _FIRST_TWO)


def _rmsprop(rule: Any) -> Fused:
    places = (0,) + (1,) * rule.centered + (2,) * bool(rule.momentum)
    return Fused("rmsprop", (float(rule.beta), float(rule.momentum), float(rule.centered)), places)


def _adagrad(rule: Any) -> Fused:  # noqa: ARG001 (it has no settings)
    return Fused("adagrad", (0.0, 0.0, 0.0), _FIRST)


def _lion(rule: Any) -> Fused:
    return Fused("lion", (float(rule.beta_1), float(rule.beta_2), 0.0), _FIRST)


def _gradient_sum(rule: Any) -> Fused:  # noqa: ARG001 (it has no settings)
    return Fused("gradient_sum", (0.0, 0.0, 0.0), _FIRST)


def _average(rule: Any) -> Fused:  # noqa: ARG001 (it has no settings)
    return Fused("average", (0.0, 0.0, 0.0), _NONE)


#: The function that converts each rule, by the name of its kernel.
_RULES: dict[str | None, Callable[[Any], Fused]] = {
    "sgd": _sgd,
    "adam": _adam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
    "gradient_sum": _gradient_sum,
    "average": _average,
}
#: The names of the rules.
RULES = tuple(name for name in _RULES if name is not None)


def fused_rule(rule: Any) -> Fused | None:
    """Return a rule in the form that fused kernels take; None if they do not know it."""
    convert = _RULES.get(kernel_of(rule))
    return None if convert is None else convert(rule)
