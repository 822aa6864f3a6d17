"""Kernels of normalisation that record their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn._typing import Array
from gpunn.kernels.norm import RowNorm
from gpunn.program.recorder import Recorder, Traced, is_batch, value_of
from gpunn.program.values import Value, refuse


class RecordingNorms(Recorder):
    """Records calls of the kernels of normalisation."""

    def row_norm(self, x: Any, gain: Array, bias: Array | None, norm: RowNorm) -> tuple[Any, Any]:
        """Record y and the statistics of each sample."""
        y = self._normalised(x)
        statistics = Value(norm.statistics_shape(x.shape), x.dtype, by_sample=True)
        self._append("row_norm", (x, gain, bias), (y.value, statistics), settings={"norm": norm})
        return y, Traced(statistics, self)

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
        """Record dJ/dx, if wanted, and the sums over the batch."""
        inputs = grad, x, statistics, gain
        return self._gradients("row_norm_backward", inputs, into, through=through, norm=norm)

    def batch_norm(self, x: Any, gain: Array, bias: Array, epsilon: float) -> tuple[Any, Any]:
        """Record y and the statistics of the channels."""
        y = self._normalised(x)
        statistics = Value((3, x.shape[-1]), x.dtype, by_sample=False)
        settings = {"epsilon": epsilon}
        self._append("batch_norm", (x, gain, bias), (y.value, statistics), settings=settings)
        return y, Traced(statistics, self)

    def fixed_norm(
        self, x: Any, gain: Array, bias: Array, running: tuple[Array, Array], epsilon: float
    ) -> tuple[Any, Any]:
        """Record y; recorded training steps do not use the statistics."""
        y = self._normalised(x)
        inputs, settings = (x, gain, bias, *running), {"epsilon": epsilon}
        self._append("fixed_norm", inputs, (y.value,), settings=settings)
        return y, None

    def batch_norm_backward(
        self,
        grad: Any,
        x: Any,
        statistics: Any,
        gain: Array,
        into: Sequence[Array | None],
        *,
        fixed: bool,
        through: bool,
    ) -> tuple[Any, list[Any]]:
        """Record dJ/dx, if wanted, and the sums over the batch."""
        if fixed:
            refuse("the gradient of a norm that uses running statistics")
        inputs = grad, x, statistics, gain
        return self._gradients("batch_norm_backward", inputs, into, through=through)

    def channel_moments(self, x: Any) -> Any:  # noqa: ARG002
        """Refuse: the forward pass waits for their sum over processes."""
        refuse("BatchNorm over several processes")

    def track(self, running: tuple[Array, Array], statistics: Any, momentum: float) -> None:
        """Record an update of the running statistics."""
        self._append("track", (statistics,), running, settings={"momentum": momentum})

    def _normalised(self, x: Any) -> Traced:
        """Return a stand-in for y."""
        if not is_batch(x):
            refuse("a norm of anything but a batch")
        return Traced(Value(x.shape, x.dtype, by_sample=True), self)

    def _gradients(
        self,
        kernel: str,
        inputs: tuple[Any, ...],
        into: Sequence[Array | None],
        *,
        through: bool,
        **settings: Any,
    ) -> tuple[Any, list[Any]]:
        x = inputs[1]
        result = self._normalised(x) if through else None
        sums = [self._result(place, x.shape[-1:], x.dtype) for place in into]
        if through or sums:
            outputs = (value_of(result), *map(value_of, sums))
            self._append(kernel, inputs, outputs, settings=settings)
        return result, sums
