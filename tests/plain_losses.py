"""Losses in plain NumPy, in double precision: each sample's loss, and its gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.special

import gpunn as gn


def one_hot(labels: Any, like: Any) -> Any:
    rows = np.full(like.shape, np.nan)
    for row, label in zip(rows, labels.tolist(), strict=True):
        if 0 <= label < len(row):
            row[:] = np.arange(len(row)) == label
    return rows


def _softmax_cross_entropy(loss: Any, z: Any, y: Any) -> Any:
    if y.ndim == 1:
        y = one_hot(y, z)
    e, c = loss.label_smoothing, loss.class_weight
    y = ((1 - e) * y + e / y.shape[1]) * np.float64(1 if c is None else c)
    losses = -(y * scipy.special.log_softmax(z, axis=1)).sum(axis=1)
    return losses, scipy.special.softmax(z, axis=1) * y.sum(axis=1, keepdims=True) - y


def _sequence_cross_entropy(loss: Any, z: Any, y: Any) -> Any:
    rows, labels, e = z.reshape(-1, z.shape[2]), y.reshape(-1), loss.label_smoothing
    target = (1 - e) * one_hot(labels, rows) + e / z.shape[2]
    counts = labels != loss.ignore_label
    losses = np.where(counts, -(target * scipy.special.log_softmax(rows, axis=1)).sum(axis=1), 0.0)
    grad = np.where(counts[:, None], scipy.special.softmax(rows, axis=1) - target, 0.0)
    return losses.reshape(y.shape).sum(axis=1), grad.reshape(z.shape)


def _binary_cross_entropy(_: Any, z: Any, y: Any) -> Any:
    losses = y * np.logaddexp(0, -z) + (1 - y) * np.logaddexp(0, z)
    return losses.sum(axis=1), scipy.special.expit(z) - y


def _squared_error(_: Any, x: Any, y: Any) -> Any:
    return ((x - y) ** 2).sum(axis=1) / 2, x - y


def _absolute_error(_: Any, x: Any, y: Any) -> Any:
    return np.where(x > y, x - y, y - x).sum(axis=1), 1.0 * (x > y) - (x < y)


def _huber(loss: Any, x: Any, y: Any) -> Any:
    inside = abs(x - y) <= loss.delta
    grad = np.where(inside, x - y, np.copysign(loss.delta, x - y))
    return scipy.special.huber(loss.delta, x - y).sum(axis=1), grad


def _poisson(loss: Any, z: Any, y: Any) -> Any:
    rest = scipy.special.xlogy(y, y) - y if loss.deviance else 0.0
    return (np.exp(z) - y * z + rest).sum(axis=1), np.exp(z) - y


def _hinge(loss: Any, z: Any, y: Any) -> Any:
    signs = np.where(y == 1, 1.0, -1.0)
    short = np.clip(1 - signs * z, 0, None)
    if loss.squared:
        return (short**2).sum(axis=1), -2 * signs * short
    return short.sum(axis=1), -signs * (short > 0)


def _cosine_distance(loss: Any, x: Any, y: Any) -> Any:
    norms = [np.linalg.norm(a, axis=1, keepdims=True) for a in (x, y)]
    (u, m), (v, _) = (
        (a / np.clip(norm, loss.epsilon, None), norm) for a, norm in zip((x, y), norms, strict=True)
    )
    cosine = (u * v).sum(axis=1, keepdims=True)
    flat = np.where(m > loss.epsilon, cosine * u, 0.0)
    return 1 - cosine[:, 0], (flat - v) / np.clip(m, loss.epsilon, None)


def _divergence(loss: Any, x: Any, y: Any) -> Any:
    log_p = scipy.special.log_softmax(x, axis=1) if loss.from_logits else x
    losses = (scipy.special.xlogy(y, y) - y * log_p).sum(axis=1)
    return losses, np.exp(log_p) * y.sum(axis=1, keepdims=True) - y if loss.from_logits else -y


_BY_CLASS: dict[type[gn.Loss], Callable[[Any, Any, Any], Any]] = {
    gn.SoftmaxCrossEntropy: _softmax_cross_entropy,
    gn.SequenceCrossEntropy: _sequence_cross_entropy,
    gn.BinaryCrossEntropy: _binary_cross_entropy,
    gn.MeanSquaredError: _squared_error,
    gn.MeanAbsoluteError: _absolute_error,
    gn.Huber: _huber,
    gn.Poisson: _poisson,
    gn.Hinge: _hinge,
    gn.CosineDistance: _cosine_distance,
    gn.KLDivergence: _divergence,
}


def plain_loss(loss: Any, prediction: Any, target: Any, scale: Any, summed: bool) -> Any:
    """Return the scaled losses, or their sum, and the gradient of the sum."""
    losses, grad = _BY_CLASS[type(loss)](loss, prediction, target)
    losses = scale * losses
    column = np.reshape(scale, (-1, *[1] * (grad.ndim - 1)))
    return losses.sum() if summed else losses, column * grad
