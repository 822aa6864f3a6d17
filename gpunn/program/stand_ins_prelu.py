"""Kernels of PReLU that record their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn._typing import Array
from gpunn.program.recorder import Recorder, Traced, is_batch, value_of
from gpunn.program.values import Value, refuse


class RecordingPReLU(Recorder):
    """Records calls of the kernels of PReLU."""

    def prelu(self, x: Any, slope: Array) -> Any:
        """Record h."""
        if not is_batch(x):
            refuse("PReLU of anything but a batch")
        return self._add("prelu", (x, slope), x.shape, x.dtype)

    def prelu_backward(
        self, grad: Any, x: Any, slope: Array, into: Sequence[Array | None], *, through: bool
    ) -> tuple[Any, list[Any]]:
        """Record dJ/dx and the gradient of the slope, each if wanted."""
        result = Traced(Value(x.shape, x.dtype, by_sample=True), self) if through else None
        sums = [self._result(place, slope.shape, x.dtype) for place in into]
        if through or sums:
            outputs = (value_of(result), *map(value_of, sums))
            self._append("prelu_backward", (grad, x, slope), outputs)
        return result, sums
