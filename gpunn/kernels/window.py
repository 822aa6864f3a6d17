"""The positions of a convolution's filter, or a pooling layer's window, on an image."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple, TypeAlias

Pair: TypeAlias = "tuple[int, int]"

#: Rows and columns of images (N, H, W, C), with all channels of all images.
Slices: TypeAlias = "tuple[slice, slice, slice, slice]"


class Window(NamedTuple):
    """A window that moves over images of one size; all pairs are (down, across).

    Output pixel (y, x) is computed from the input pixels
    (s_0 y + d_0 i - top, s_1 x + d_1 j - left) for the entries (i, j) of the window. Pixels outside
    the image belong to the padding.

    Attributes
    ----------
    image : tuple of int
        Height and width of the input.
    size, stride, dilation : tuple of int
        The size of the window, the distance between windows, and between a window's entries.
    before, after : tuple of int
        The padding: rows above and columns to the left, rows below and columns to the right.
    groups : int
        The number of groups of channels that are convolved separately.
    """

    image: Pair
    size: Pair
    stride: Pair = (1, 1)
    dilation: Pair = (1, 1)
    before: Pair = (0, 0)
    after: Pair = (0, 0)
    groups: int = 1

    @property
    def padded(self) -> Pair:
        """Height and width of the image with its padding."""
        (h, w), (top, left), (bottom, right) = self.image, self.before, self.after
        return h + top + bottom, w + left + right

    @property
    def output(self) -> Pair:
        """Height and width of the output."""
        (h, w), (i, j) = self.padded, self.reach
        return (h - i) // self.stride[0] + 1, (w - j) // self.stride[1] + 1

    @property
    def reach(self) -> Pair:
        """Height and width of the area that the window spans, with the gaps of a dilation."""
        return (
            (self.size[0] - 1) * self.dilation[0] + 1,
            (self.size[1] - 1) * self.dilation[1] + 1,
        )

    @property
    def is_pixel(self) -> bool:
        """Whether each output pixel depends only on the input pixel at the same position."""
        return self.size == self.stride == (1, 1) and self.padded == self.image

    def inner(self) -> Slices:
        """Return the slices of the image within its padding."""
        (h, w), (top, left) = self.image, self.before
        return slice(None), slice(top, top + h), slice(left, left + w), slice(None)

    def entries(self) -> Iterator[tuple[int, int, Slices]]:
        """Yield each entry (i, j), and the slices of the padded image that it covers."""
        for i in range(self.size[0]):
            for j in range(self.size[1]):
                yield i, j, (slice(None), self._met(0, i), self._met(1, j), slice(None))

    def counts(self) -> tuple[list[int], list[int]]:
        """Return the number of image rows under each output row, and of columns likewise."""
        down, across = ([self._seen(axis, y) for y in range(self.output[axis])] for axis in (0, 1))
        return down, across

    def _seen(self, axis: int, y: int) -> int:
        first, step = y * self.stride[axis] - self.before[axis], self.dilation[axis]
        places = range(first, first + self.reach[axis], step)
        return sum(0 <= place < self.image[axis] for place in places)

    def _met(self, axis: int, i: int) -> slice:
        start, stride = i * self.dilation[axis], self.stride[axis]
        return slice(start, start + (self.output[axis] - 1) * stride + 1, stride)


class WindowSettings(NamedTuple):
    """The settings of a window for images of any size; see `Window`.

    Attributes
    ----------
    padding : "valid", "same", or pair of int
        "same" pads as evenly as possible, so that the output has ceil(image / stride) pixels each
        way; an odd pixel goes below or to the right. Numbers apply to both sides.
    """

    size: Pair
    stride: Pair
    dilation: Pair = (1, 1)
    padding: str | Pair = "valid"
    groups: int = 1


@lru_cache(maxsize=1024)  # called in every pass, for a few image sizes
def window_on(image: Pair, settings: WindowSettings) -> Window | None:
    """Return the window for a size of images; None if they are too small for it."""
    size, stride, dilation, padding, groups = settings
    window = Window(image, size, stride, dilation, groups=groups)
    if padding == "same":
        down, across = map(_same, image, window.reach, stride)
        before, after = zip(down, across, strict=True)
        window = window._replace(before=before, after=after)
    elif not isinstance(padding, str):
        window = window._replace(before=padding, after=padding)
    fits = all(reach <= side for reach, side in zip(window.reach, window.padded, strict=True))
    return window if fits and min(image) > 0 else None


def _same(side: int, reach: int, stride: int) -> Pair:
    """Return the padding before and after one axis."""
    total = max(0, (-(-side // stride) - 1) * stride + reach - side)
    return total // 2, total - total // 2
