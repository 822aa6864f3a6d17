"""Checks of an optimizer's parameters, and of their gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

from gpunn.arrays.backend import Backend, backend_of, on_one_device
from gpunn.errors import DeviceError, SettingError
from gpunn.nn.parameter import Parameter


def as_list(owner: str, parameters: Any) -> list[Parameter]:
    """Return the parameters as a list, after checking that they are distinct parameters."""
    if isinstance(parameters, Parameter):
        raise SettingError(f"{owner}: got a Parameter; pass a list, [parameter]")
    if hasattr(parameters, "parameters"):
        raise SettingError(f"{owner}: got a model; pass its parameters, model.parameters()")
    if isinstance(parameters, Mapping):
        kind = type(parameters).__name__
        raise SettingError(f"{owner}: got a {kind}; pass its values, or model.parameters()")
    if isinstance(parameters, Set):
        kind = type(parameters).__name__
        raise SettingError(f"{owner}: parameters must be ordered, got {kind}; pass a list")
    try:
        given = iter(parameters)
    except TypeError:
        kind = type(parameters).__name__
        raise SettingError(f"{owner}: expected model.parameters(), got {kind}") from None
    listed = []
    for i, parameter in enumerate(given):  # stop at the first fault: it may be endless
        if not isinstance(parameter, Parameter):
            kind = type(parameter).__name__
            raise SettingError(f"{owner}: expected model.parameters(), got {kind} at position {i}")
        listed.append(parameter)
    if not listed:
        raise SettingError(f"{owner}: there is nothing to train; pass model.parameters()")
    if len({id(parameter) for parameter in listed}) != len(listed):
        raise SettingError(f"{owner}: a parameter was given twice")
    return listed


def check_alike(owner: str, places: Sequence[Backend | None]) -> None:
    """Check that all parameters are on one device: an update is one kernel launch."""
    home = places[0]
    for i, place in enumerate(places):
        if place != home:
            raise DeviceError(
                f"{owner}: parameter 0 is on {home} and parameter {i} on {place}; move the model, "
                f"model.to({str(home)!r}), or build an optimizer for each device"
            )


def check_grads(
    owner: str, parameters: Sequence[Parameter], places: Sequence[Backend | None]
) -> None:
    """Check that the gradients are where the parameters are."""
    grads = [p.grad for p in parameters if p.grad is not None]
    if on_one_device([parameters[0].value, *grads]):
        return
    for i, (parameter, place) in enumerate(zip(parameters, places, strict=True)):
        there = place if parameter.grad is None else backend_of(parameter.grad)
        if there != place:
            raise DeviceError(
                f"{owner}: parameter {i} is on {place} and its gradient on {there}; "
                f"call parameter.add_grad(gn.get_backend({str(place)!r}).asarray(grad))"
            )
