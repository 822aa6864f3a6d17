"""Kernels that put arrays side by side, and take them apart again."""

from __future__ import annotations

from collections.abc import Sequence

from gpunn._typing import Array, Namespace


class ColumnKernels:
    """Arrays joined along the last axis, and parts of it."""

    xp: Namespace

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Return arrays (N, ..., P_i), alike but for the last axis, joined along it."""
        return self.xp.concat(list(arrays), axis=-1)

    def columns(self, x: Array, start: int, stop: int) -> Array:
        """Return entries start..stop of the last axis; it may be a view."""
        return x[..., start:stop]
