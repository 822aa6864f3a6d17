"""An array in two layouts: that of the model, and that of a file of another library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpunn._typing import Shape


class Rearranged(NamedTuple):
    """How to get from one layout to the other: split axes, permute them, and join them again.

    Attributes
    ----------
    ours, theirs : tuple of int
        The shapes in the model and in the file.
    split : tuple of int
        The shape in the model with some of its axes split.
    axes : tuple of int
        Axis i of the file's array, before axes are joined, is axis ``axes[i]`` of the split one.
    """

    ours: Shape
    theirs: Shape
    split: Shape
    axes: tuple[int, ...]

    def to_theirs(self, x: Any) -> Any:
        """Return a NumPy array of the model as it is in the file."""
        return x.reshape(self.split).transpose(self.axes).reshape(self.theirs)

    def to_ours(self, x: Any) -> Any:
        """Return a NumPy array of the file as it is in the model."""
        permuted = x.reshape([self.split[axis] for axis in self.axes])
        back = [self.axes.index(axis) for axis in range(len(self.axes))]
        return permuted.transpose(back).reshape(self.ours)


def permuted(ours: Shape, axes: Sequence[int], split: Shape | None = None) -> Rearranged:
    """Return a permutation of axes, after splitting some; none of them are joined again."""
    split = ours if split is None else split
    return Rearranged(ours, tuple(split[axis] for axis in axes), split, tuple(axes))


def unchanged(shape: Shape) -> Rearranged:
    """Return the layout of an array that is the same in both."""
    return permuted(shape, range(len(shape)))


def matrix(shape: Shape, rows: int = 1, columns: int = 1) -> Rearranged:
    """Return the layout of a dense layer's weights: (inputs, outputs), and (outputs, inputs).

    Parameters
    ----------
    shape : tuple of int
        Inputs and outputs.
    rows, columns : int
        The channels of the images that the inputs, or the outputs, are: flattened from
        (H, W, channels) in the model and from (channels, H, W) in the file. 1 for other features.
    """
    inputs, outputs = shape
    split = (inputs // rows, rows, outputs // columns, columns)
    return Rearranged(shape, (outputs, inputs), split, (3, 2, 1, 0))


def vector(shape: Shape, channels: int = 1) -> Rearranged:
    """Return the layout of an array with a number for each feature; `channels` as for `matrix`."""
    return Rearranged(shape, shape, (math.prod(shape) // channels, channels), (1, 0))


def filters(shape: Shape, axes: int) -> Rearranged:
    """Return the layout of a convolution's weights: (k, l, C, K), and (K, C, k, l) or (K, C, l).

    Those of a transposed convolution are (k, l, K, C), and (C, K, k, l).
    """
    if axes == 2:
        return permuted(shape, (3, 2, 0, 1))
    return permuted(shape, (2, 1, 0), shape[1:])
