"""Kernels that join arrays along the last axis, and take slices of it."""

from __future__ import annotations

from collections.abc import Sequence

from gpunn._typing import Array, Namespace


class ColumnKernels:
    """Joins arrays along the last axis, and slices it."""

    xp: Namespace

    def concatenate(self, arrays: Sequence[Array]) -> Array:
        """Return arrays (N, ..., P_i), which differ in the last axis only, joined along it."""
        return self.xp.concat(list(arrays), axis=-1)

    def columns(self, x: Array, start: int, stop: int) -> Array:
        """Return entries start..stop of the last axis; it may be a view."""
        return x[..., start:stop]
