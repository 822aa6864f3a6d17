"""Settings of layers that move a window over images or sequences, and their errors."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import MOST, is_whole, shown
from gpunn.errors import SettingError, ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.window import Pair, Window, WindowSettings, window_on

#: The leading axes and name of the inputs, by the number of axes that the window moves along.
LAYOUTS = {1: ("N, T", "sequences"), 2: ("N, H, W", "images")}


def sides(owner: str, name: str, value: Any, axes: int, least: int = 1) -> tuple[int, ...]:
    """Check a setting with one whole number per axis; return one number per axis.

    Parameters
    ----------
    owner, name : str
        The class, and the setting: ``"Conv2d", "stride"``.
    value : int or tuple of int
        One number stands for all axes.
    axes : int
        The number of axes.
    least : int, default 1
        The smallest number allowed.

    Raises
    ------
    SettingError
        If it is anything else.
    """
    given = tuple(value) if isinstance(value, (tuple, list)) else (value,) * axes
    if len(given) == axes and all(is_whole(n) and least <= n <= MOST for n in given):
        return tuple(map(int, given))
    several = "" if axes == 1 else " or a pair of them, (down, across)"
    raise SettingError(
        f"{owner}: {name} must be a whole number of at least {least}{several}, got {shown(value)}"
    )


def padding_of(owner: str, value: Any, axes: int) -> str | tuple[int, ...]:
    """Check a padding: "valid", "same", or numbers of pixels on both sides of each axis."""
    if isinstance(value, str) and value in ("valid", "same"):
        return str(value)
    try:
        return sides(owner, "padding", value, axes, 0)
    except SettingError as error:
        message = str(error).replace("must be", "must be 'valid', 'same', or")
        raise SettingError(message) from None


def settings_of(
    size: tuple[int, ...],
    stride: tuple[int, ...],
    padding: str | tuple[int, ...],
    dilation: tuple[int, ...] = (1, 1),
    *,
    groups: int = 1,
) -> WindowSettings:
    """Return the settings of a window on images, or on sequences as images of height 1."""
    pad = padding if isinstance(padding, str) else _pair(padding, 0)
    return WindowSettings(_pair(size), _pair(stride), _pair(dilation), pad, groups)


def window_over(owner: Any, shape: Shape, settings: WindowSettings) -> Window:
    """Return the window of a layer on images (N, H, W, C), or on sequences (N, T, C).

    Raises
    ------
    ShapeError
        If they are smaller than the window.
    """
    window = window_on(_pair(shape[1:-1]), settings)
    if window is None:
        raise ShapeError(
            f"{owner!r}: the window covers more than the {_pixels(shape[1:-1])} of x, of shape "
            f"{tuple(shape)}; use padding='same', or a smaller kernel_size"
        )
    return window


def layout_advice(shape: Shape, channels: int, axes: int) -> str:
    """Return an error's advice about an array that is not (N, H, W, channels)."""
    if len(shape) == axes + 1 and channels == 1:
        return "; add the channel axis, x[..., None]"
    if len(shape) == axes + 2 and shape[1] == channels:
        return "; channels come last, so pass numpy.moveaxis(x, 1, -1)"
    if len(shape) == 2 and shape[1] % channels == 0:
        sizes = "length" if axes == 1 else "height, width"
        return f"; reshape it first, x.reshape(-1, {sizes}, {channels})"
    return ""


def as_images(x: Array, window: Window) -> Array:
    """Return sequences as images of height 1, and images unchanged."""
    if x.ndim == 4:
        return x
    return kernels(x).reshape(x, (x.shape[0], *window.image, x.shape[-1]))


def as_given(images: Array, axes: int) -> Array:
    """Return images unchanged, or as sequences if the window moves along one axis."""
    if axes == 2:
        return images
    n, _, length, channels = images.shape
    return kernels(images).reshape(images, (n, length, channels))


def short(sizes: tuple[int, ...] | str) -> str:
    """Return a setting as written by the user: one number if all are equal."""
    return repr(sizes[0] if isinstance(sizes, tuple) and len(set(sizes)) == 1 else sizes)


def _pair(sizes: tuple[int, ...], missing: int = 1) -> Pair:
    """Return one or two numbers as two; for a sequence the first one is `missing`."""
    *down, across = sizes
    return (down[0] if down else missing), across


def _pixels(image: Shape) -> str:
    return f"{' x '.join(map(str, image))} {'pixels' if len(image) > 1 else 'steps'}"
