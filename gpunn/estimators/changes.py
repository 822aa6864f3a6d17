"""Checks that settings of an existing network have not changed."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpunn.arrays.backend import Backend, backend_of
from gpunn.arrays.exchange import to_numpy
from gpunn.estimators.settings import place_of
from gpunn.losses.base import Loss
from gpunn.nn.activation import Activation


def check_unchanged(owner: str, before: dict[str, Any], now: Iterable[tuple[str, Any]]) -> None:
    """Check that the network's settings have not changed since it was created.

    Raises
    ------
    ValueError
        Names the first setting that has changed.
    """
    for name, value in now:
        if not alike(value, before[name]):
            raise ValueError(
                f"{owner}: {name} was {before[name]!r} when the network was made, and is {value!r} "
                f"now. A network that continues learning keeps its {name}: set it back, or start "
                "over by fit with warm_start=False"
            )


def check_place(
    owner: str, before: dict[str, Any], backend: Any, device: Any, home: Backend
) -> None:
    """Check that the settings name no device other than the network's.

    Raises
    ------
    ValueError
        If they do.
    """
    for name, value in (("backend", backend), ("device", device)):
        if alike(value, before[name]):
            continue
        place = place_of(owner, backend, device, home)
        if place != home:
            raise ValueError(
                f"{owner}: {name} was {before[name]!r} when the network was made, and is {value!r} "
                f"now, which is {place}; the network is on {home}. Set it back, or start over "
                "by fit with warm_start=False"
            )


def alike(one: Any, other: Any) -> bool:
    """Return whether two settings are equal; objects are compared by their attributes."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if backend_of(one) is not None:
        return np.array_equal(to_numpy(one), to_numpy(other))
    parts = _parts(one)
    if parts is None:
        return bool(one == other)
    others = _parts(other)
    return (
        others is not None
        and parts.keys() == others.keys()
        and all(alike(part, others[name]) for name, part in parts.items())
    )


def _parts(one: Any) -> dict[Any, Any] | None:
    """Return the parts of a setting by name; None for a setting that is compared as a whole."""
    if isinstance(one, functools.partial):
        return {"func": one.func, "args": one.args, "keywords": one.keywords}
    if isinstance(one, dict):
        return one
    if isinstance(one, (list, tuple)):
        return dict(enumerate(one))
    if isinstance(one, (Activation, Loss)):  # the state that `copy` transfers
        return {"state": one.__reduce_ex__(2)[2]}
    return None
