"""Images that are shifted and mirrored at random, on the device where they are."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from gpunn._typing import RNG, Array
from gpunn.arrays.backend import backend_of
from gpunn.arrays.checks import flag, whole_number
from gpunn.arrays.state import check_kind, check_names, generator_state, restore_generator
from gpunn.errors import SettingError, ShapeError
from gpunn.kernels.random import splitmix64
from gpunn.nn.init import as_generator
from gpunn.nn.tape import BETWEEN_STREAMS


class Augment:
    """A `Loader`'s transform that moves each image by a few pixels, and mirrors it, at random.

    Each image of a batch is shifted by whole numbers of pixels up to `shift`, up or down and
    sideways, each equally probable; what comes into view is 0. With `flip`, every other image on
    average is mirrored from left to right. One key for each batch is drawn on the host, and the
    rest computed from it on the device, so one seed gives the same images on every backend, and
    nothing waits for a GPU. Of several processes, each moves its images in ways of its own.

    Parameters
    ----------
    shift : int, default 0
        The most pixels, at least 0.
    flip : bool, default False
        Whether images are mirrored. Digits should not be.
    rng : None, int or numpy.random.Generator, default None
        The seed.

    Examples
    --------
    >>> import gpunn as gn
    >>> x, y = gn.datasets.load_digits()
    >>> loader = gn.Loader(x, y, transform=gn.Augment(shift=1, rng=0), rng=1)
    """

    #: A loader's steps can be recorded: neither shape nor dtype changes.
    keeps_shape: ClassVar[bool] = True

    def __init__(self, shift: int = 0, *, flip: bool = False, rng: RNG = None) -> None:
        self.shift = whole_number("Augment", "shift", shift, 0)
        self.flip = flag("Augment", "flip", flip)
        if not (self.shift or self.flip):
            raise SettingError("Augment: shift=0 and flip=False change nothing; give one of them")
        self._rng = as_generator(rng, "Augment")
        #: The number of the process. All draw the same keys, and each moves images in other ways.
        self.stream = 0

    def __call__(self, x: Array) -> Array:
        """Return the images of a batch (N, H, W, C), moved, as a new array.

        Raises
        ------
        ShapeError
            If `x` does not hold images.
        """
        place = backend_of(x)
        if place is None or x.ndim != 4:
            came = type(x).__name__ if place is None else f"shape {tuple(x.shape)}"
            raise ShapeError(f"Augment: expected images, an array (N, H, W, C), got {came}")
        key = int(self._rng.integers(2**64, dtype="uint64"))
        key = (key + self.stream * BETWEEN_STREAMS) % 2**64
        bits = splitmix64(place.xp, key, x.shape[0], x.device)
        return _moved(place.xp, x, self.shift, *_draws(place.xp, bits, self.shift, flip=self.flip))

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator."""
        return {"kind": type(self).__name__, "rng": generator_state(self._rng)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state: the next batches are moved as they would have been."""
        check_kind("Augment", self, state)
        check_names("Augment", state, ("kind", "rng"))
        restore_generator("Augment", self._rng, state["rng"])

    def __repr__(self) -> str:
        """Return the expression that makes this transform."""
        return f"Augment({self.shift}, flip={self.flip})"


def _draws(xp: Any, bits: Array, shift: int, *, flip: bool) -> tuple[Array, Array, Array]:
    """Return how far each image goes down and right, from 0 to 2 shift, and if it is mirrored."""
    side = 2 * shift + 1
    down = xp.astype((bits >> 40) % side, xp.int64)
    right = xp.astype(((bits >> 16) & 0xFFFFFF) % side, xp.int64)
    mirrored = xp.astype(bits & 1, xp.int64) if flip else 0 * down
    return down, right, mirrored


def _moved(  # noqa: PLR0917 (three draws for each image)
    xp: Any, x: Array, shift: int, down: Array, right: Array, mirrored: Array
) -> Array:
    """Return each image as seen through a window that starts there in a frame of zeros."""
    n, height, width, channels = x.shape
    framed = (n, height + 2 * shift, width + 2 * shift, channels)
    frame = xp.zeros(framed, dtype=x.dtype, device=x.device)
    frame[:, shift : shift + height, shift : shift + width, :] = x
    row, column, image = (
        xp.arange(size, dtype=xp.int64, device=x.device) for size in (height, width, n)
    )
    rows = row[None, :] + down[:, None] + image[:, None] * framed[1]
    columns = column[None, :] + mirrored[:, None] * (width - 1 - 2 * column)[None, :]
    pixels = rows[:, :, None] * framed[2] + (columns + right[:, None])[:, None, :]
    seen = xp.take(
        xp.reshape(frame, (math.prod(framed[:3]), channels)), xp.reshape(pixels, (-1,)), axis=0
    )
    return xp.reshape(seen, x.shape)
