"""Check the inputs of layers with parameters per channel; channels are the last axis."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, device_mismatch
from gpunn.arrays.facts import dtype_name
from gpunn.errors import DTypeError, ShapeError


def check_channels(
    owner: Any, x: Array, parameter: Array, channels: int | None, *, between: str = "..."
) -> None:
    """Check that x has the shape (N, ..., channels), and the dtype and place of a parameter.

    Parameters
    ----------
    owner : Layer
        The layer that an error names.
    x, parameter : array
    channels : int or None
        None stands for any number.
    between : {"...", "T"}
        The axes between the first and the last: any, or one.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        If it does not.
    """
    if type(x) is not type(parameter) and backend_of(x) != backend_of(parameter):
        place, home = backend_of(x), backend_of(parameter)
        if place is None or home is None:
            raise DTypeError(f"{owner!r}: expected an array, got {type(x).__name__}")
        raise device_mismatch(repr(owner), home, place)
    fits = x.ndim >= 2 if between == "..." else x.ndim == 3
    if not fits or (channels is not None and x.shape[-1] != channels):
        raise ShapeError(
            f"{owner!r}: expected x of shape (N, {between}, "
            f"{'C' if channels is None else channels}), got {tuple(x.shape)}; channels are the "
            "last axis"
        )
    if x.dtype != parameter.dtype:
        wanted = dtype_name(parameter)
        raise DTypeError(
            f"{owner!r}: its parameters are {wanted} and x is {x.dtype}; convert x with "
            f'x.astype("{wanted}"), or the model with model.to(dtype=...)'
        )
