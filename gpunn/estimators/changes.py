"""Settings that a network was made with, and cannot change."""

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


def check_unchanged(owner: str, made: dict[str, Any], now: Iterable[tuple[str, Any]]) -> None:
    """Check that settings are those that the network was made with.

    Raises
    ------
    ValueError
        Naming the first that is not.
    """
    for name, value in now:
        if not alike(value, made[name]):
            raise ValueError(
                f"{owner}: {name} was {made[name]!r} when the network was made, and is {value!r} "
                f"now. A network that goes on learning keeps its {name}: set it back, or begin "
                "anew, by fit with warm_start=False"
            )


def check_place(owner: str, made: dict[str, Any], backend: Any, device: Any, home: Backend) -> None:
    """Check that settings do not ask for another place than the network's.

    Raises
    ------
    ValueError
        If they have changed, and do.
    """
    for name, value in (("backend", backend), ("device", device)):
        if alike(value, made[name]):
            continue
        place = place_of(owner, backend, device, home)
        if place != home:
            raise ValueError(
                f"{owner}: {name} was {made[name]!r} when the network was made, and is {value!r} "
                f"now, which is {place}; the network is on {home}. Set it back, or begin anew, by "
                "fit with warm_start=False"
            )


def alike(one: Any, other: Any) -> bool:
    """Return whether two settings say the same: objects do if all their attributes do."""
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
    """Return what a setting consists of, by name; None for a whole that compares by itself."""
    if isinstance(one, functools.partial):
        return {"func": one.func, "args": one.args, "keywords": one.keywords}
    if isinstance(one, dict):
        return one
    if isinstance(one, (list, tuple)):
        return dict(enumerate(one))
    if isinstance(one, (Activation, Loss)):  # what a copy would keep of it
        return {"state": one.__reduce_ex__(2)[2]}
    return None
