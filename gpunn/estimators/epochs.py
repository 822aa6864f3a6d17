"""Passes over the training data, in scikit-learn's order and with its penalty."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Array
from gpunn.data.lending import lend
from gpunn.data.loader import Loader
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy
from gpunn.losses.squared_error import MeanSquaredError
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.program import Program
from gpunn.training.epoch import EpochRunner
from gpunn.training.metrics import Metric
from gpunn.training.readings import Readings

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: So many samples at a time, where nothing is learned from them.
_ROWS = 8192


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
    program : Program
        Of earlier calls, which may still hold.

    Attributes
    ----------
    times : dict of str to float
        The learning rate that the last epoch began with, the seconds it took, and samples a second.
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
        program: Program,
    ) -> None:
        self.network = network
        self.loss = loss
        self.optimizer = optimizer
        self.loader = loader
        self.metrics = metrics
        self._order = order
        self._decay = decay
        self._scale = scale
        self._runner = EpochRunner(loader, rng, program)
        self.times: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train for an epoch; return the mean of the batches' costs as `loss`, and the metrics.

        A batch's cost is its loss before its step, plus the penalty at that time.
        """
        rate, start = self.optimizer.learning_rate, time.perf_counter()
        numbers = self._run()
        elapsed = time.perf_counter() - start
        speed = self.loader.n_samples / elapsed
        self.times = {"learning_rate": rate, "elapsed_s": elapsed, "samples_per_s": speed}
        return numbers

    def _run(self) -> dict[str, float]:
        readings = Readings(self.loss, self.metrics, scale=self._scale, weighted=False)
        with self.loader.backend.scope():
            parts = self.network, self.loss, self.optimizer
            self._runner.run(*parts, readings, decays=self._decays)
            return readings.read()

    def _decays(self) -> list[float]:
        """Return the weight decay of each step of the epoch whose order was drawn last."""
        return [self._decay(mass) for mass in self._order.masses()]

    def penalty(self) -> float:
        """Return the penalty of the present weights, as it was in the last batch."""
        penalty = self.optimizer.penalty()
        return 0.0 if penalty is None else float(penalty)

    def loss_of_zeros(self, n_outputs: int) -> float:
        """Return the loss over the training data of a network that always answers 0.

        NaN for a loss that is not gpunn's own: nobody knows what that does with zeros.
        """
        if not isinstance(self.loss, (BinaryCrossEntropy, CrossEntropy, MeanSquaredError)):
            return math.nan
        loader, readings = self.loader, Readings(self.loss, (), scale=self._scale, weighted=False)
        place, dtype = loader.backend, self.optimizer.parameters[0].value.dtype
        targets: Any = loader.stored.y
        weights = loader.stored.sample_weight
        with place.scope():
            for start in range(0, loader.n_samples, _ROWS):
                rows = slice(start, min(start + _ROWS, loader.n_samples))
                y = place.asarray(targets[rows, ...])
                weight = None if weights is None else place.asarray(weights[rows], dtype)
                zeros = place.xp.zeros((y.shape[0], n_outputs), dtype=dtype, device=place.device)
                readings.add(self.loss.forward(zeros, y, None, weight), zeros, y, weight)
            return readings.read()["loss"]

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
