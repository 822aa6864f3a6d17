"""The check that a step's arrays are on one device."""

from __future__ import annotations

from collections.abc import Iterable

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, on_one_device
from gpunn.errors import DeviceError
from gpunn.kernels.host import is_on_host
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Held


def check_places(
    model: Layer, held: Iterable[Held], x: Array, y: Array, sample_weight: Array | None
) -> None:
    """Check that a batch and the arrays of a model are on one device.

    A kernel that reads another device's memory ends all work on its own device, or reads data not
    yet written. For NumPy, which has one device, nothing is checked: mixing arrays of two libraries
    raises an error by itself.

    Parameters
    ----------
    model : Layer
    held : iterable of Held
        The parameters and buffers of the model.
    x, y : array
    sample_weight : array or None

    Raises
    ------
    DeviceError
        If they are on different devices.
    """
    if is_on_host(x):
        return
    arrays = [item.value for item in held]
    arrays += (x, y) if sample_weight is None else (x, y, sample_weight)
    if not on_one_device(arrays):
        _refuse(model, x=x, y=y, sample_weight=sample_weight)


def _refuse(model: Layer, **batch: Array | None) -> None:
    """Raise an error that names the array on another device; ignore anything but arrays.

    For a model on two devices, `model.backend` raises the error.
    """
    home = model.backend or backend_of(batch["x"])
    for name, x in batch.items():
        place = backend_of(x)
        if place is not None and place != home:
            raise DeviceError(
                f"train_step: the model is on {home} and {name} on {place}; move one of them: "
                f"gn.get_backend({str(home)!r}).asarray({name}), or model.to({str(place)!r}) "
                "before building the optimizer"
            )
