"""Logistic regression, a network with one layer."""

from __future__ import annotations

from gpunn._typing import RNG
from gpunn.arrays.backend import Backend
from gpunn.arrays.checks import whole_number
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import SoftmaxCrossEntropy
from gpunn.nn.dense import Dense


def logistic_regression(
    n_features: int,
    n_classes: int = 2,
    *,
    rng: RNG = None,
    dtype: str = "float32",
    backend: str | Backend | None = None,
) -> tuple[Dense, Loss]:
    r"""Return the model and the loss of logistic regression.

    For two classes :math:`h = \sigma(\theta^T x)` is the probability of class 1, and
    J is the mean of :math:`-y \log h - (1 - y) \log(1 - h)`; for more classes,
    :math:`h = \mathrm{softmax}(\Theta^T x)` with cross-entropy. In both cases the model outputs the
    logits :math:`\theta^T x`, and the loss applies the sigmoid or softmax in its stable form;
    ``loss.probabilities(model(x))`` and `Trainer.predict_proba` return h. :math:`\theta` comprises
    weights and bias, as if x contained the constant 1.

    Parameters
    ----------
    n_features : int
        Number of inputs.
    n_classes : int, default 2
        At least 2.
    rng : None, int or numpy.random.Generator, default None
        The seed of the initial weights.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters.
    backend : str, Backend or None, default None
        The library and device of the parameters, as for `get_backend`.

    Returns
    -------
    model : Dense
        One layer without activation: one output for two classes, else `n_classes`.
    loss : BinaryCrossEntropy or SoftmaxCrossEntropy
        Labels are 0 and 1, or 0 to n_classes - 1.

    Examples
    --------
    >>> import gpunn as gn
    >>> model, loss = gn.logistic_regression(30, rng=0)
    >>> model, loss
    (Dense(30, 1), BinaryCrossEntropy())
    """
    n_features = whole_number("logistic_regression", "n_features", n_features)
    n_classes = whole_number("logistic_regression", "n_classes", n_classes, 2)
    binary = n_classes == 2
    model = Dense(n_features, 1 if binary else n_classes, rng=rng, dtype=dtype, backend=backend)
    return model, BinaryCrossEntropy() if binary else SoftmaxCrossEntropy()
