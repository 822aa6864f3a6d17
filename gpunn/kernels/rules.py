"""The update rules that fused kernels know, and what they read of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gpunn.kernels.declared import kernel_of


class Fused(NamedTuple):
    """An update rule as fused kernels see it.

    Attributes
    ----------
    name : str
        The kernel's.
    settings : tuple of three floats
        p, q and r of the kernel; 0 where it has fewer.
    places : tuple of int
        Which of the kernel's three states each state of the rule is.
    """

    name: str
    settings: tuple[float, float, float]
    places: tuple[int, ...]


def _sgd(rule: Any) -> tuple[list[float], list[int]]:
    return [rule.momentum, rule.nesterov], [0] if rule.momentum else []


def _adam(rule: Any) -> tuple[list[float], list[int]]:
    return [rule.beta_1, rule.beta_2], [0, 1]


def _rmsprop(rule: Any) -> tuple[list[float], list[int]]:
    places = [0] + [1] * rule.centered + [2] * bool(rule.momentum)
    return [rule.beta, rule.momentum, rule.centered], places


def _adagrad(rule: Any) -> tuple[list[float], list[int]]:  # noqa: ARG001 (it has no settings)
    return [], [0]


def _lion(rule: Any) -> tuple[list[float], list[int]]:
    return [rule.beta_1, rule.beta_2], [0]


def _average(rule: Any) -> tuple[list[float], list[int]]:  # noqa: ARG001 (it has no settings)
    return [], []


#: What reads each rule's settings and the places of its states, by the name of its kernel.
_RULES: dict[str | None, Callable[[Any], tuple[list[float], list[int]]]] = {
    "sgd": _sgd,
    "adam": _adam,
    "rmsprop": _rmsprop,
    "adagrad": _adagrad,
    "lion": _lion,
    "average": _average,
}
#: The names of the rules.
RULES = tuple(name for name in _RULES if name is not None)


def fused_rule(rule: Any) -> Fused | None:
    """Return a rule as fused kernels see it; None if they do not know it."""
    name = kernel_of(rule)
    read = _RULES.get(name)
    if read is None or name is None:
        return None
    settings, places = read(rule)
    p, q, r = (*map(float, settings), 0.0, 0.0, 0.0)[:3]
    return Fused(name, (p, q, r), tuple(places))
