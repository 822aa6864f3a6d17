"""The check that a model's last activation fits its loss, so that softmax is not applied twice."""

from __future__ import annotations

from gpunn.errors import SettingError
from gpunn.kernels.declared import kernel_of
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy
from gpunn.losses.divergence import KLDivergence
from gpunn.nn.containers import Sequential
from gpunn.nn.layer import Layer
from gpunn.nn.shape import Flatten, Reshape

#: Activations that return probabilities or their logarithms.
_GIVE_PROBABILITIES = ("sigmoid", "softmax", "log_softmax")


def check_head(model: Layer, loss: Loss) -> None:
    """Check that the last activation is applied once, by the model or by the loss.

    Raises
    ------
    SettingError
        If both apply it, or neither does.
    """
    last = _last(model)
    activation = getattr(last, "activation", last)
    if kernel_of(activation) in _GIVE_PROBABILITIES and loss.from_logits:
        raise SettingError(
            f"Trainer: the model ends in {type(activation).__name__} and {type(loss).__name__} "
            "applies it again; remove the last activation (recommended), or use a loss of "
            "probabilities, CrossEntropy(), BinaryCrossEntropy(from_logits=False) or, of their "
            "logarithms, KLDivergence(from_logits=False)"
        )
    if loss.from_logits or activation is last or kernel_of(activation) != "identity":
        return
    if type(loss) is KLDivergence:
        raise SettingError(
            f"Trainer: {loss!r} takes logarithms of probabilities, and the model ends without an "
            "activation; use KLDivergence() (recommended), or end the model in LogSoftmax()"
        )
    if type(loss) in (CrossEntropy, BinaryCrossEntropy):
        raise SettingError(
            f"Trainer: {loss!r} takes probabilities, and the model ends without an activation; "
            "use SoftmaxCrossEntropy() or BinaryCrossEntropy() (recommended), or end the model in "
            "softmax or sigmoid"
        )


def _last(model: Layer) -> Layer:
    """Return the last layer of a model that computes anything."""
    if not isinstance(model, Sequential):
        return model
    computing = [layer for layer in model if not isinstance(layer, (Flatten, Reshape))]
    return _last(computing[-1]) if computing else model
