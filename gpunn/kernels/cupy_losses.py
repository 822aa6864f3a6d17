"""Losses for CuPy: the loss, its sum over the batch and its gradient in one launch."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpunn._typing import Array, Namespace
from gpunn.kernels.cuda import LOSSES
from gpunn.kernels.cupy_device import as_arrays, on_device_of_second, served
from gpunn.kernels.cupy_launch import launch_loss
from gpunn.kernels.reference import Kernels


class CupyLossKernels(Kernels):
    """The losses with a CUDA source; arguments that they do not serve go to the formulas."""

    def __init__(self, xp: Namespace) -> None:
        super().__init__(xp)
        self._fused |= dict.fromkeys(LOSSES, self._launch_loss)

    @on_device_of_second
    def fused_softmax_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch."""
        if not served(logits, *as_arrays(scale)):
            return NotImplemented
        if formula.takes(target):
            labels = target if target.dtype == np.int64 else target.astype(np.int64)
            return launch_loss("softmax_cross_entropy", logits, labels, scale, summed, LABELS="1")
        soft = formula.soft(logits, target)
        if not served(logits, soft):
            return NotImplemented
        return launch_loss("softmax_cross_entropy", logits, soft, scale, summed)

    @on_device_of_second
    def fused_binary_cross_entropy(
        self, formula: Any, logits: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch."""
        if not (formula.from_logits and served(logits, target, *as_arrays(scale))):
            return NotImplemented
        return launch_loss("sigmoid_binary_cross_entropy", logits, target, scale, summed)

    @on_device_of_second
    def fused_kl_divergence(
        self, formula: Any, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch."""
        if not served(prediction, target, *as_arrays(scale)):
            return NotImplemented
        arguments = prediction, target, scale, summed
        if formula.from_logits:
            return launch_loss("softmax_cross_entropy", *arguments, DIVERGENCE="1")
        return launch_loss("divergence_of_logarithms", *arguments)

    @on_device_of_second
    def fused_sequence_cross_entropy(
        self, formula: Any, logits: Array, labels: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch, or in two if not `summed`."""
        if not served(logits, *as_arrays(scale)):
            return NotImplemented
        n, positions, classes = logits.shape
        rows, labels = logits.reshape(-1, classes), labels.astype(np.int64, copy=False)
        settings = positions, formula.ignore_label, formula.label_smoothing
        arguments = rows, labels, scale, summed, *settings
        losses, grad = launch_loss("sequence_cross_entropy", *arguments)
        if not summed:
            losses = losses.reshape(n, positions).sum(axis=1)
        return losses, grad.reshape(logits.shape)

    @on_device_of_second
    def _launch_loss(
        self, formula: Any, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> Any:
        """Return the losses and their gradient in one launch."""
        if not served(prediction, target, *as_arrays(scale)):
            return NotImplemented
        settings = [float(getattr(formula, name)) for name in LOSSES[formula.kernel]]
        return launch_loss(formula.kernel, prediction, target, scale, summed, *settings)
