"""Kernels of attention, embeddings, positions and columns that record their calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gpunn._typing import Array
from gpunn.program.recorder import Recorder, Traced, is_batch, value_of
from gpunn.program.values import Value, refuse


class RecordingSequences(Recorder):
    """Records calls of the kernels of layers for sequences."""

    def embedding(self, indices: Any, table: Array) -> Any:
        """Record the rows of a table."""
        _check(table, indices)
        return self._add(
            "embedding", (indices, table), (*indices.shape, table.shape[1]), table.dtype
        )

    def embedding_backward(
        self, indices: Any, grad: Any, table: Array, into: Array | None = None
    ) -> Any:
        """Record the gradient of a table: a sum over the batch."""
        _check(table, indices, grad)
        inputs = indices, grad
        return self._add(
            "embedding_backward", inputs, table.shape, grad.dtype, into=into, by_sample=False
        )

    def add_positions(self, x: Any, table: Array) -> Any:
        """Record x plus the rows of a table."""
        _check(table, x)
        return self._add("add_positions", (x, table), x.shape, x.dtype)

    def positions_backward(self, grad: Any, table: Array, into: Array | None = None) -> Any:
        """Record the gradient of a table: a sum over the batch."""
        _check(table, grad)
        return self._add(
            "positions_backward", (grad,), table.shape, grad.dtype, into=into, by_sample=False
        )

    def concatenate(self, arrays: Sequence[Any]) -> Any:
        """Record arrays side by side."""
        _check(None, *arrays)
        first = arrays[0]
        shape = (*first.shape[:-1], sum(x.shape[-1] for x in arrays))
        return self._add("concatenate", tuple(arrays), shape, first.dtype)

    def columns(self, x: Any, start: int, stop: int) -> Any:
        """Record a slice of the last axis."""
        _check(None, x)
        shape = (*x.shape[:-1], stop - start)
        return self._add("columns", (x,), shape, x.dtype, settings={"start": start})

    def attention(
        self,
        qkv: Any,
        heads: int,
        *,
        causal: bool = False,
        mask: Any = None,
        keep: bool = True,
    ) -> tuple[Any, Any]:
        """Record the weighted means, and the weights if `keep`."""
        if not is_batch(qkv) or mask is not None:
            refuse("attention with a mask, or of anything but a batch")
        n, t, width = qkv.shape
        context = Value((n, t, width // 3), qkv.dtype, by_sample=True)
        weights = Value((n, heads, t, t), qkv.dtype, by_sample=True) if keep else None
        settings = {"heads": heads, "causal": causal}
        self._append("attention", (qkv,), (context, weights), settings=settings)
        return Traced(context, self), None if weights is None else Traced(weights, self)

    def attention_backward(self, grad: Any, qkv: Any, weights: Any, *, causal: bool = False) -> Any:
        """Record dJ/d qkv."""
        _check(None, grad, qkv, weights)
        result = Value(qkv.shape, qkv.dtype, by_sample=True)
        inputs = value_of(grad), value_of(qkv), value_of(weights)
        settings = {"heads": weights.shape[1], "causal": causal}
        self._append("attention_backward", inputs, (result,), settings=settings)
        return Traced(result, self)


def _check(table: Any, *batches: Any) -> None:
    """Refuse anything but batches and a table that outlives the step."""
    if isinstance(table, Traced) or not all(map(is_batch, batches)):
        refuse("a kernel of sequences with anything but batches and a parameter")
