"""Passes over the training data, in scikit-learn's order and with its penalty."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Array
from gpunn.data import Loader
from gpunn.epoch import Course
from gpunn.kernels import kernels
from gpunn.layer import Layer
from gpunn.lending import lend
from gpunn.loss import Loss
from gpunn.metrics import Metric
from gpunn.optim import Optimizer
from gpunn.readings import Readings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Order:
    """The order of the samples, epoch after epoch, and what each batch of it counts for.

    Parameters
    ----------
    n_samples, batch_size : int
        The loader's.
    rng : numpy.random.RandomState or None
        Shuffles the order of the last epoch for the next one; None keeps it.
    weights : ndarray of shape (n_samples,), optional
        The samples' weights; 1 by default.
    """

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        rng: np.random.RandomState | None,
        weights: NDArray[Any] | None = None,
    ) -> None:
        self._rng = rng
        self._weights = weights
        self._indices = np.arange(n_samples)
        self._starts = np.arange(0, n_samples, batch_size)
        self._counts = np.diff(self._starts, append=n_samples).tolist()

    def __call__(self) -> NDArray[Any]:
        """Return the indices of the next epoch.

        They are those of `sklearn.utils.shuffle`, which takes several times as long to begin.
        """
        if self._rng is not None:
            chosen = np.arange(len(self._indices))
            self._rng.shuffle(chosen)
            self._indices = self._indices[chosen]
        return self._indices

    def masses(self) -> list[float]:
        """Return the sum of the weights of each batch of the present epoch."""
        if self._weights is None:
            return self._counts
        sums = np.add.reduceat(self._weights[self._indices], self._starts, dtype=np.float64)
        return sums.tolist()


class Epochs:
    """Runs a network over its training data, an epoch at a call.

    Parameters
    ----------
    network, loss, optimizer : Layer, Loss, Optimizer
        What is trained, on what, and how.
    loader : Loader
        The data.
    order : Order
        The one that the loader asks.
    decay : function
        From the mass of a batch to the weight decay lambda of its step.
    scale : float
        What multiplies the loss that is reported, though not the gradient.
    metrics : sequence of Metric
        What else to measure.
    rng : numpy.random.Generator or None
        For dropout.
    """

    def __init__(
        self,
        network: Layer,
        loss: Loss,
        optimizer: Optimizer,
        loader: Loader,
        order: Order,
        *,
        decay: Callable[[float], float],
        scale: float,
        metrics: Sequence[Metric],
        rng: np.random.Generator | None,
    ) -> None:
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.loader = loader
        self.metrics = metrics
        self._order = order
        self._decay = decay
        self._scale = scale
        self._course = Course(loader, rng)

    def run(self) -> dict[str, float]:
        """Train for an epoch; return the mean of the batches' costs as `loss`, and the metrics.

        A batch's cost is its loss before its step, plus the penalty at that time.
        """
        readings = Readings(self.loss, self.metrics, scale=self._scale, weighted=False)
        with self.loader.backend.scope():
            parts = self.network, self.loss, self.optimizer
            self._course.run(*parts, readings, decays=self._decays)
            return readings.read()

    def _decays(self) -> list[float]:
        """Return the weight decay of each step of the epoch whose order was drawn last."""
        return [self._decay(mass) for mass in self._order.masses()]

    def evaluate(self, loader: Loader) -> tuple[dict[str, float], Array]:
        """Return the loss and the metrics over other data, and the outputs for them."""
        readings = Readings(self.loss, self.metrics, scale=self._scale)
        outputs = []
        with loader.backend.scope():
            readers = self.network, self.loss, *self.metrics
            for x, y, weight in lend(loader.in_order, *readers):
                outputs.append(self.network.forward(x))
                cost = self.loss.forward(outputs[-1], y, None, weight)
                readings.add(cost, outputs[-1], y, weight)
            numbers = readings.read()
            return numbers, kernels(outputs[0]).xp.concat(outputs)
