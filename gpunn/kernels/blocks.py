"""Blocks of memory that hold many arrays, so that one call of a kernel serves all of them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from gpunn._typing import Array


def copy_to_one_block(
    arrays: list[Array], zeros: Callable[..., Array], alignment: int
) -> tuple[list[Array], list[Array]]:
    """Copy arrays of one dtype into one block; return the block, in a list, and a view per array.

    For libraries whose slices are views. Each copy begins at a multiple of `alignment` bytes; the
    gaps between them are zero.
    """
    step = alignment // arrays[0].itemsize
    starts = [0, *accumulate(-(-x.size // step) * step for x in arrays)]
    block = zeros(starts.pop(), arrays[0].dtype)
    places = zip(starts, arrays, strict=True)
    views = [block[start : start + x.size].reshape(x.shape) for start, x in places]
    for view, x in zip(views, arrays, strict=True):
        view[...] = x
    return [block], views
