"""The cross-entropy of sequences, with one label per position."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.checks import integer, number
from gpunn.arrays.facts import is_integer
from gpunn.arrays.settings import checked
from gpunn.errors import ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.losses.base import Loss, Reduction
from gpunn.losses.targets import check_labels, not_integers
from gpunn.nn.activation import Softmax


class SequenceCrossEntropy(Loss):
    r"""Softmax and cross-entropy at each position of a sequence.

    .. math:: L = -\sum_t m_t \sum_k y_{tk} \log \mathrm{softmax}(z_t)_k, \qquad
        \frac{\partial L}{\partial z_t} = m_t (\mathrm{softmax}(z_t) - y_t)

    where :math:`m_t` is 0 at positions to ignore, such as padding, else 1, and :math:`y_t` is
    the label at t, one-hot and smoothed. The mean is over the positions that count, not over
    samples: :math:`J = \sum_i w_i L_i / \sum_i w_i \sum_t m_{it}`. So exp(J) is the perplexity.

    Parameters
    ----------
    ignore_label : int, default -100
        The label of positions to ignore: a negative whole number, or one of the classes.
    label_smoothing : float, default 0.0
        e in [0, 1]: y becomes (1 - e) y + e / K.
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`; "none" gives N values, one per sequence.

    Notes
    -----
    *Shapes*: prediction (N, T, K), logits; target (N, T), integers in [0, K) or `ignore_label`;
    sample weights (N,).

    The same as PyTorch's ``CrossEntropyLoss``, which takes (N, K, T) and calls the label
    ``ignore_index``; its mean over no positions is NaN, and here it is 0. Keras averages over all
    positions, including ignored ones.

    The metrics ``"accuracy"`` and ``"perplexity"`` ignore the same positions.
    """

    kernel = "sequence_cross_entropy"
    from_logits = True
    sample_ndim = 2
    defaults: ClassVar = {"ignore_label": -100, "label_smoothing": 0.0}

    ignore_label: int = checked(integer)
    label_smoothing: float = checked(number, "[0, 1]")

    def __init__(
        self,
        *,
        ignore_label: int = -100,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction=reduction)
        self.ignore_label = ignore_label
        self.label_smoothing = label_smoothing

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * L, and scale * m (softmax(z) - y)."""
        k = kernels(prediction)
        xp = k.xp
        labels = xp.astype(target, xp.int64, copy=False)
        counts = labels != self.ignore_label
        rows = xp.reshape(prediction, (-1, prediction.shape[2]))
        y = k.one_hot(xp.reshape(xp.where(counts, labels, 0), (-1,)), rows)
        if self.label_smoothing:
            y = y * (1.0 - self.label_smoothing) + self.label_smoothing / y.shape[1]
        y = xp.reshape(y, prediction.shape)
        shifted = prediction - xp.max(prediction, axis=2, keepdims=True)
        exponentials = xp.exp(shifted)
        total = xp.sum(exponentials, axis=2)
        losses = xp.where(counts, xp.log(total) - _dot(xp, y, shifted), 0.0)
        grad = xp.where(counts[:, :, None], exponentials / total[:, :, None] - y, 0.0)
        return scale * xp.sum(losses, axis=1), per_row(scale, 3) * grad

    def match(self, prediction: Array, target: Array) -> Array:
        """Return integer labels (N, T) unchanged."""
        if target.shape != prediction.shape[:2]:
            raise ShapeError(
                f"{self!r}: expected labels of shape {tuple(prediction.shape[:2])}, "
                f"got {tuple(target.shape)}"
            )
        if not is_integer(kernels(prediction).xp, target.dtype):
            raise not_integers(repr(self), target)
        return target

    def mass(self, target: Array, like: Array) -> Array | None:
        """Return the number of positions of each sequence that are not ignored."""
        return kernels(like).count_labels(target, self.ignore_label, like)

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check that there is one label per position: in [0, K), or `ignore_label`."""
        self._check_outputs(output_shape)
        positions, classes = output_shape
        if tuple(target.shape[1:]) != (positions,):
            raise ShapeError(
                f"{self!r}: expected labels of shape (N, {positions}), one for each position, "
                f"got {tuple(target.shape)}"
            )
        check_labels(repr(self), target, classes, ignored=self.ignore_label)

    def probabilities(self, prediction: Array) -> Array:
        """Return softmax(z), at each position."""
        return Softmax()(prediction)


def _dot(xp: Any, x: Array, y: Array) -> Array:
    """Return the sum of x * y over the last axis, with 0 times infinity equal to 0."""
    return xp.sum(x * xp.where(x == 0, 0.0, y), axis=-1)
