"""The order of the rows in an epoch, drawn on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np

from gpunn.data.validation import check_order


def draw_order(
    rng: np.random.Generator,
    n_samples: int,
    *,
    shuffle: bool | Literal["blocks"] | Callable[[], Any],
    block_size: int,
    window: int,
) -> Any:
    """Return the order of one more epoch; None for the order of the data.

    Parameters
    ----------
    rng : numpy.random.Generator
        Draws the order, unless `shuffle` is a function.
    n_samples : int
        The number of samples.
    shuffle, block_size, window
        As in `gpunn.Loader`.

    Returns
    -------
    ndarray of shape (n_samples,) or None
        The indices of the samples.
    """
    if callable(shuffle):
        return check_order(shuffle(), n_samples)
    if shuffle == "blocks":
        return blocked_permutation(rng, n_samples, block_size, window)
    return rng.permutation(n_samples) if shuffle else None


def blocked_permutation(rng: Any, n: int, block_size: int, window: int) -> Any:
    """Return a permutation of n rows: blocks shuffled, and rows within windows of blocks.

    Reading in this order touches `window` blocks at a time, wherever they are in a file.
    """
    blocks = rng.permutation(-(-n // block_size))
    order = np.concatenate([np.arange(b, min(b + block_size, n)) for b in blocks * block_size])
    for start in range(0, n, window * block_size):
        rng.shuffle(order[start : start + window * block_size])
    return order


def part_of_order(order: Any, first: int, last: int) -> Any:
    """Return the part of an epoch's order from a row on; None is the stored order from 0 on."""
    if order is not None:
        return order[first:last]
    return np.arange(first, last) if first else None
