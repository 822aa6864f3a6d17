"""Kernels of normalisation, written down."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn._typing import Array
from gpunn.kernels.norm import RowNorm
from gpunn.program.recorder import Recorder, Traced, is_batch, value_of
from gpunn.program.values import Value, refuse


class RecordingNorms(Recorder):
    """Writes down the kernels of normalisation."""

    def row_norm(self, x: Any, gain: Array, bias: Array | None, norm: RowNorm) -> tuple[Any, Any]:
        """Record y and the statistics of each sample."""
        if not is_batch(x):
            refuse("a norm of what is no batch")
        y = Value(x.shape, x.dtype, by_sample=True)
        statistics = Value(norm.statistics_shape(x.shape), x.dtype, by_sample=True)
        self._append("row_norm", (x, gain, bias), (y, statistics), settings={"norm": norm})
        return Traced(y, self), Traced(statistics, self)

    def row_norm_backward(  # noqa: PLR0917 (as in the reference)
        self,
        grad: Any,
        x: Any,
        statistics: Any,
        gain: Array,
        norm: RowNorm,
        into: Sequence[Array | None],
        *,
        through: bool,
    ) -> tuple[Any, list[Any]]:
        """Record dJ/dx, if it is wanted, and the sums over the batch."""
        result = Value(x.shape, x.dtype, by_sample=True) if through else None
        sums = [self._place(place, x.shape[-1:], x.dtype) for place in into]
        if through or sums:
            inputs, outputs = (grad, x, statistics, gain), (result, *map(value_of, sums))
            self._append("row_norm_backward", inputs, outputs, settings={"norm": norm})
        return None if result is None else Traced(result, self), sums
