"""The kernels of layers for sequences: arguments of several calls of each, and plain twins."""

from __future__ import annotations

from typing import Any

import numpy as np


def sequence_calls(rng: np.random.Generator, n: int, p: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments of several calls of every kernel; n samples, and rows or columns p."""

    def x(*shape: int) -> Any:
        return rng.standard_normal(shape)

    tokens = rng.integers(0, p, (n, 3))
    wrong = np.where(rng.random((n, 3)) < 0.3, rng.choice([-1, p, 10**6], (n, 3)), tokens)
    m = min(n, 40)  # plain attention is slow
    weights = rng.dirichlet(np.ones(3), (m, 2, 3))
    return {
        "embedding": [
            (tokens, x(p, 4)),
            (tokens[:, 0].astype("int32"), x(p, 5)),
            (wrong, x(p, 3)),
        ],
        "embedding_backward": [
            (tokens, x(n, 3, 4), x(p, 4)),
            (tokens[:, 0].astype("int32"), x(n, 5), x(p, 5)),
            (wrong, x(n, 3, 3), x(p, 3)),
        ],
        "add_positions": [(x(n, 3, p), x(length, p)) for length in (3, 5)],
        "positions_backward": [(x(n, 3, p), x(length, p)) for length in (3, 5)],
        "concatenate": [([x(n, p)],), ([x(n, 2), x(n, p)],), ([x(n, 3, 2), x(n, 3, p)] * 2,)],
        "columns": [(x(n, p), 0, 1), (x(n, 2, p), p // 2, p)],
        "attention": [
            (x(m, t, 3 * heads * d), heads, {"causal": causal})
            for t, heads, d in ((3, 2, 2), (1, 1, 3), (5, 3, 1))
            for causal in (False, True)
        ],
        "attention_backward": [(x(m, 3, 4), x(m, 3, 12), weights)],
    }


class PlainSequences:
    """Each kernel, as plain as can be, in float64."""

    def embedding(self, indices: Any, table: Any) -> Any:
        rows = np.full((*indices.shape, table.shape[1]), np.nan)
        for place, index in np.ndenumerate(indices):
            if 0 <= index < len(table):
                rows[place] = table[index]
        return rows

    def embedding_backward(self, indices: Any, grad: Any, table: Any) -> Any:
        sums = np.zeros_like(table)
        for place, index in np.ndenumerate(indices):
            if 0 <= index < len(table):
                sums[index] += grad[place]
        return sums

    def add_positions(self, x: Any, table: Any) -> Any:
        return x + table[: x.shape[1]]

    def positions_backward(self, grad: Any, table: Any) -> Any:
        sums = np.zeros_like(table)
        sums[: grad.shape[1]] = grad.sum(axis=0)
        return sums

    def concatenate(self, arrays: Any) -> Any:
        return np.concatenate(arrays, axis=-1)

    def columns(self, x: Any, start: int, stop: int) -> Any:
        return x[..., start:stop]

    def attention(self, qkv: Any, heads: int, causal: bool) -> Any:
        n, t, width = qkv.shape
        d = width // (3 * heads)
        context, weights = np.zeros((n, t, width // 3)), np.zeros((n, heads, t, t))
        for sample in range(n):
            for head in range(heads):
                q, k, v = self._of_head(qkv[sample], heads, head)
                scores = np.exp(q @ k.T / np.sqrt(d)) * (np.tri(t) if causal else 1.0)
                weights[sample, head] = scores / scores.sum(axis=1, keepdims=True)
                context[sample, :, head * d : (head + 1) * d] = weights[sample, head] @ v
        return context, weights

    def attention_backward(self, grad: Any, qkv: Any, weights: Any) -> Any:
        result = np.zeros_like(qkv)
        n, heads, t, _ = weights.shape
        d = grad.shape[2] // heads
        for sample in range(n):
            for head in range(heads):
                q, k, v = self._of_head(qkv[sample], heads, head)
                own, p = grad[sample, :, head * d : (head + 1) * d], weights[sample, head]
                slopes = np.zeros((t, t))
                for i in range(t):  # by the derivative of each row's softmax, as a matrix
                    slopes[i] = (np.diag(p[i]) - np.outer(p[i], p[i])) @ (v @ own[i])
                slopes /= np.sqrt(d)
                parts = self._of_head(result[sample], heads, head)
                for part, value in zip(parts, (slopes @ k, slopes.T @ q, p.T @ own), strict=True):
                    part[...] = value
        return result

    def _of_head(self, qkv: Any, heads: int, head: int) -> list[Any]:
        d = qkv.shape[1] // (3 * heads)
        return [qkv[:, (part * heads + head) * d :][:, :d] for part in range(3)]
