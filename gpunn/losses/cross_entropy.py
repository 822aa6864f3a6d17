"""Cross-entropy, of probabilities and of logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import backend_of
from gpunn.arrays.checks import number
from gpunn.arrays.facts import is_integer
from gpunn.arrays.settings import checked
from gpunn.arrays.streams import keep
from gpunn.errors import ShapeError
from gpunn.kernels import kernels
from gpunn.kernels.formulas import per_row
from gpunn.kernels.host import lies_within
from gpunn.losses.base import Loss, Reduction
from gpunn.losses.class_weight import ClassWeight, as_class_weight, table_of
from gpunn.losses.targets import check_interval, check_labels, not_integers
from gpunn.nn.activation import Softmax


class CrossEntropy(Loss):
    r"""Cross-entropy of probabilities, :math:`L = -\sum_k y_k \log \hat y_k`.

    For a network that ends in softmax; `SoftmaxCrossEntropy` takes logits, and is stable and
    faster. :math:`\partial L/\partial\hat y_k = -y_k / \hat y_k`, where probabilities are first
    clipped to [eps, 1] with eps the dtype's resolution (1.2e-7 in float32): a probability of
    exactly 0 for the true class costs -log eps, 15.94 in float32 and 36.04 in float64.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.
    class_weight : sequence of K floats or dict of int to float, optional
        c_k, which multiplies the term of class k: for all classes in order (a list, a tuple or an
        array of one axis), or for some by class; a class that a dict does not name has 1. In the
        mean a sample counts for :math:`w_i \sum_k y_{ik} c_k` (as in PyTorch for labels; for soft
        targets PyTorch divides by N), so that J stays an average.
    label_smoothing : float, default 0.0
        e in [0, 1]: y becomes (1 - e) y + e / K.

    Notes
    -----
    *Shapes*: prediction (N, K); target (N,), integers in [0, K), or (N, K), one-hot or soft: not
    negative, and a row need not sum to 1.

    References
    ----------
    Label smoothing: Szegedy et al., "Rethinking the inception architecture for computer vision",
    CVPR 2016.
    """

    kernel: ClassVar[str | None] = "cross_entropy"
    defaults: ClassVar = {"class_weight": None, "label_smoothing": 0.0}

    class_weight: ClassWeight | None = checked(as_class_weight)
    label_smoothing: float = checked(number, "[0, 1]")

    def __init__(
        self,
        *,
        reduction: Reduction = "mean",
        class_weight: Sequence[float] | Mapping[int, float] | Array | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction=reduction)
        self.label_smoothing = label_smoothing
        self.class_weight = as_class_weight(type(self).__name__, "class_weight", class_weight)
        self._weights_there: dict[Any, tuple[ClassWeight | None, Array]] = {}

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return -scale * sum_k y_k log p_k, and -scale * y / p."""
        k = kernels(prediction)
        xp = k.xp
        target = self.soft(prediction, target)
        p = k.clip(prediction, float(xp.finfo(prediction.dtype).eps), 1.0)
        losses = xp.sum(target * xp.log(p), axis=1)
        return -scale * losses, -per_row(scale) * (target / p)

    def match(self, prediction: Array, target: Array) -> Array:
        """Return integer labels (N,) unchanged, soft targets (N, K) in the prediction's dtype."""
        xp = kernels(prediction).xp
        if target.ndim == 1 and target.shape[0] == prediction.shape[0]:
            if not is_integer(xp, target.dtype):
                raise not_integers(repr(self), target)
            return target
        if target.shape != prediction.shape:
            raise ShapeError(
                f"{self!r}: expected labels of shape ({prediction.shape[0]},) or soft targets of "
                f"shape {tuple(prediction.shape)}, got {tuple(target.shape)}"
            )
        return kernels(prediction).convert(target, prediction.dtype)

    def mass(self, target: Array, like: Array) -> Array | None:
        """Return sum_k y_k c_k, the weight of each sample's class."""
        if self.class_weight is None:
            return None
        return kernels(like).class_mass(target, self._class_weight_array(like))

    def check_target(self, target: Any, output_shape: Shape) -> None:
        """Check that labels are integers in [0, K), or that soft targets are not negative."""
        self._check_outputs(output_shape)
        classes = output_shape[0]
        if self.class_weight is not None:
            table_of(self, self.class_weight, classes)
        if target.ndim == 1:
            check_labels(repr(self), target, classes)
            return
        if tuple(target.shape[1:]) != output_shape:
            hint = "; pass a column of labels as y.ravel()" if target.shape[1:] == (1,) else ""
            raise ShapeError(
                f"{self!r}: expected labels of shape (N,) or soft targets of shape "
                f"(N, {classes}), got {tuple(target.shape)}{hint}"
            )
        check_interval(repr(self), target, 0.0, math.inf)

    def suspects(self, target: Array, cost: Array) -> bool:
        """Return whether a label is out of range (the cost is NaN), or a soft target negative."""
        if target.ndim == 1:
            return super().suspects(target, cost)
        return not lies_within(target, 0.0, math.inf)

    def takes(self, target: Array) -> bool:
        """Return whether the loss uses plain labels, without smoothing and class weights."""
        return target.ndim == 1 and not self.label_smoothing and self.class_weight is None

    def soft(self, prediction: Array, target: Array) -> Array:
        """Return the targets as (N, K), smoothed and weighted by class."""
        if target.ndim == 1:
            target = kernels(prediction).one_hot(target, prediction)
        if self.label_smoothing:
            uniform = self.label_smoothing / prediction.shape[1]
            target = target * (1.0 - self.label_smoothing) + uniform
        if self.class_weight is None:
            return target
        return target * self._class_weight_array(prediction)

    def _class_weight_array(self, like: Array) -> Array:
        """Return c (K,), in the dtype and on the device of `like`; it is cached there."""
        place, dtype, classes = key = backend_of(like), like.dtype, like.shape[1]
        given = self.class_weight
        kept = self._weights_there.get(key)  # read once: another thread may replace it
        if kept is None or kept[0] != given:
            assert place is not None  # noqa: S101 (the caller has kernels for it)
            table = table_of(self, given, classes)
            there = keep(place, lambda: place.asarray(table, dtype))
            given = dict(given) if isinstance(given, dict) else given  # a dict may change later
            self._weights_there[key] = kept = given, there
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a copy or a pickle, without the cached class weights."""
        return vars(self) | {"_weights_there": {}}


class SoftmaxCrossEntropy(CrossEntropy):
    r"""Softmax and cross-entropy in one, :math:`L = -\sum_k y_k \log \mathrm{softmax}(z)_k`.

    For a network whose last layer has no activation (it outputs logits z). With
    :math:`m = \max z` and :math:`s = \sum_k y_k`, which is 1 for labels, it is computed as
    :math:`s \log \sum_j e^{z_j - m} - \sum_k y_k (z_k - m)`, stable for every finite z; the
    gradient is :math:`\partial L/\partial z = s\,\mathrm{softmax}(z) - y`.

    Parameters
    ----------
    reduction : {"mean", "sum", "none"}, default "mean"
        See `Loss`.
    class_weight : sequence of K floats or dict of int to float, optional
        c_k, as in `CrossEntropy`; a class that a dict does not name has 1.
    label_smoothing : float, default 0.0
        e in [0, 1], as in `CrossEntropy`.

    Notes
    -----
    *Shapes*: prediction (N, K); target (N,), integers in [0, K), or (N, K), one-hot or soft: not
    negative, and a row need not sum to 1.
    """

    kernel = "softmax_cross_entropy"
    from_logits = True

    def per_sample(self, prediction: Array, target: Array, scale: Any) -> tuple[Array, Array]:
        """Return scale * L, and scale * (softmax(z) sum_k y_k - y); y need not sum to 1."""
        xp = kernels(prediction).xp
        target = self.soft(prediction, target)
        shifted = prediction - xp.max(prediction, axis=1, keepdims=True)
        exponentials = xp.exp(shifted)
        total = xp.sum(exponentials, axis=1, keepdims=True)
        mass = xp.sum(target, axis=1, keepdims=True)
        losses = mass[:, 0] * xp.log(total[:, 0]) - xp.sum(target * shifted, axis=1)
        grad = exponentials * (mass / total)
        grad -= target
        return scale * losses, per_row(scale) * grad

    def probabilities(self, prediction: Array) -> Array:
        """Return softmax(z)."""
        return Softmax()(prediction)
