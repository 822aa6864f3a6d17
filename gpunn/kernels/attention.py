"""Attention of several heads: each position's weighted mean of the values of all positions."""

from __future__ import annotations

import math

from gpunn._typing import Array, Namespace


class AttentionKernels:
    """Scaled dot-product attention and its gradient, over the heads of a batch of sequences.

    Queries, keys and values of all heads are side by side in one array `qkv` (N, T, 3 C): Q of head
    0, ..., of head H - 1, then K, then V, each d = C / H wide.
    """

    xp: Namespace

    def attention(
        self,
        qkv: Array,
        heads: int,
        *,
        causal: bool = False,
        mask: Array | None = None,
        keep: bool = True,
    ) -> tuple[Array, Array | None]:
        r"""Return P V of all heads, side by side, and the weights P that its gradient needs.

        For each head, :math:`P = \mathrm{softmax}(Q K^T / \sqrt d)` by rows, over the keys that a
        query may see: `causal` allows those up to its own position, `mask` those where it is true.
        If a query may see no key, its row of P is 0.

        Parameters
        ----------
        qkv : array
            (N, T, 3 C).
        heads : int
            H, a divisor of C.
        causal : bool
        mask : array of bool, optional
            (N, T), by key, or (N, T, T), by query and key.
        keep : bool
            Whether to return P.

        Returns
        -------
        context : array
            (N, T, C).
        weights : array or None
            P (N, H, T, T).
        """
        q, k, v = _split(self.xp, qkv, heads, 3)
        scores = q @ self.xp.matrix_transpose(k)
        scores *= q.shape[-1] ** -0.5
        weights = _softmax(self.xp, scores, _allowed(self.xp, scores, mask, causal=causal))
        return _merge(self.xp, [weights @ v]), (weights if keep else None)

    def attention_backward(
        self,
        grad: Array,
        qkv: Array,
        weights: Array,
        *,
        causal: bool = False,  # noqa: ARG002 (lets other kernels skip zeros)
    ) -> Array:
        r"""Return dJ/d qkv from `grad` = dJ/d context (N, T, C); P is 0 for keys not allowed.

        With :math:`S = Q K^T / \sqrt d` and G the gradient of a head's P V,

        .. math:: \partial J/\partial V = P^T G, \quad \partial J/\partial P = G V^T,

        .. math:: \partial J/\partial S_{ij} = P_{ij} \Bigl(\partial J/\partial P_{ij}
                  - \sum_k P_{ik} \, \partial J/\partial P_{ik}\Bigr),

        .. math:: \sqrt d \, \partial J/\partial Q = \partial J/\partial S \, K, \quad
                  \sqrt d \, \partial J/\partial K = (\partial J/\partial S)^T Q.
        """
        xp = self.xp
        heads = weights.shape[1]
        q, k, v = _split(xp, qkv, heads, 3)
        (grad,) = _split(xp, grad, heads, 1)
        grad_v = xp.matrix_transpose(weights) @ grad
        grad_scores = weights * (grad @ xp.matrix_transpose(v))
        grad_scores -= weights * xp.sum(grad_scores, axis=-1, keepdims=True)
        grad_scores *= q.shape[-1] ** -0.5
        grad_q, grad_k = grad_scores @ k, xp.matrix_transpose(grad_scores) @ q
        return _merge(xp, [grad_q, grad_k, grad_v])


def _split(xp: Namespace, x: Array, heads: int, parts: int) -> list[Array]:
    """Return the parts of x (N, T, parts H d), each as (N, H, T, d)."""
    n, t, width = x.shape
    split = xp.reshape(x, (n, t, parts, heads, width // (parts * heads)))
    split = xp.permute_dims(split, (2, 0, 3, 1, 4))
    return [split[i, ...] for i in range(parts)]


def _merge(xp: Namespace, parts: list[Array]) -> Array:
    """Return parts (N, H, T, d), side by side, as (N, T, parts H d)."""
    n, heads, t, d = parts[0].shape
    together = xp.permute_dims(xp.stack(parts), (1, 3, 0, 2, 4))
    return xp.reshape(together, (n, t, len(parts) * heads * d))


def _allowed(xp: Namespace, scores: Array, mask: Array | None, *, causal: bool) -> Array | None:
    """Return which keys each query may see, broadcastable to the scores; None for all."""
    allowed = None
    if causal:
        places = xp.arange(scores.shape[-1], device=scores.device)
        allowed = places[None, :] <= places[:, None]
    if mask is not None:
        mask = mask[:, None, None, :] if mask.ndim == 2 else mask[:, None, :, :]
        allowed = mask if allowed is None else allowed & mask
    return allowed


def _softmax(xp: Namespace, scores: Array, allowed: Array | None) -> Array:
    """Return the softmax of each row over the allowed entries; 0 if there are none."""
    if allowed is not None:
        scores = xp.where(allowed, scores, -math.inf)
    top = xp.max(scores, axis=-1, keepdims=True)
    top = xp.where(top > -math.inf, top, xp.zeros_like(top))
    weights = xp.exp(scores - top)
    total = xp.sum(weights, axis=-1, keepdims=True)
    return weights / xp.where(total == 0.0, xp.ones_like(total), total)
