"""Passes over the training data, in scikit-learn's order and with its penalty."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.state import check_arrays, generator_state, restore_generator
from gpunn.data.loader import Loader
from gpunn.errors import DeviceMemoryError, StateError
from gpunn.estimators.objective import Objective
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy
from gpunn.losses.squared_error import MeanSquaredError
from gpunn.optim.gradient_sum import GradientSum
from gpunn.program import Program
from gpunn.training.epoch import EpochRunner
from gpunn.training.inference import evaluate, join
from gpunn.training.readings import Readings
from gpunn.training.trainer import Trainer

if TYPE_CHECKING:
    from numpy.typing import NDArray


#: Samples per block when computing the loss of zeros.
_ROWS = 8192


class Order:
    """The order of the samples in each epoch, and the weight sum of each batch.

    Parameters
    ----------
    n_samples, batch_size : int
        As for the loader.
    rng : numpy.random.RandomState or None
        Shuffles the previous epoch's order into the next; None keeps the stored order.
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
        """Return the sample indices of the next epoch.

        They equal those of `sklearn.utils.shuffle`, at a fraction of its overhead.
        """
        if self._rng is not None:
            chosen = np.arange(len(self._indices))
            self._rng.shuffle(chosen)
            self._indices = self._indices[chosen]
        return self._indices

    def weight_sums(self) -> list[float]:
        """Return the weight sum of each batch of the current epoch."""
        if self._weights is None:
            return self._counts
        sums = np.add.reduceat(self._weights[self._indices], self._starts, dtype=np.float64)
        return sums.tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return the order of the last epoch, and the state of the random generator."""
        rng = None if self._rng is None else generator_state(self._rng)
        return {"indices": self._indices, "rng": rng}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        check_arrays("Order", {"indices": state["indices"]}, {"indices": self._indices})
        indices = np.array(state["indices"])
        if not np.array_equal(np.sort(indices), np.arange(len(indices))):
            raise StateError("Order.load_state_dict: the indices are not an order of the samples")
        if self._rng is not None:
            restore_generator("Order", self._rng, state["rng"])
        self._indices = indices


class Epochs:
    """Runs a network over its training data, one epoch per call.

    Parameters
    ----------
    trainer : Trainer
        The model, loss, optimizer and metrics.
    loader : Loader
        The training data.
    order : Order
        The loader's `shuffle`.
    decay : function
        Returns the weight decay lambda of a step from the weight sum of its batch.
    scale : float
        A factor of the reported loss, but not of the gradient.
    rng : numpy.random.Generator or None
        For dropout.
    program : Program
        The program recorded in earlier calls; reused while it is valid.

    Attributes
    ----------
    times : dict of str to float
        The learning rate at the start of the last epoch, its duration in seconds, and its samples
        per second.
    """

    def __init__(
        self,
        trainer: Trainer,
        loader: Loader,
        order: Order,
        *,
        decay: Callable[[float], float],
        scale: float,
        rng: np.random.Generator | None,
        program: Program,
    ) -> None:
        self.trainer = trainer
        self.network, self.loss = trainer.model, trainer.loss
        self.optimizer, self.metrics = trainer.optimizer, trainer.metrics
        self.loader = loader
        self.order = order
        self._decay = decay
        self._scale = scale
        self._runner = EpochRunner(loader, rng, program)
        self._evaluation = Program()
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
        """Return the weight decay of each step of the current epoch."""
        return [self._decay(total) for total in self.order.weight_sums()]

    def record_time(self, elapsed_s: float) -> None:
        """Record the duration of a pass that `run` did not make."""
        self.times = {"elapsed_s": elapsed_s, "samples_per_s": self.loader.n_samples / elapsed_s}

    def objective(self) -> Objective:
        """Return the mean loss over the data as a function of the parameters, without a penalty."""
        optimizer = self.optimizer
        assert isinstance(optimizer, GradientSum)  # noqa: S101 (full-batch solvers use it)
        parts = self.network, self.loss, optimizer, self.loader
        return Objective(*parts, metrics=self.metrics, program=self._runner.program)

    def numbers(self, numbers: dict[str, float], penalty: float) -> dict[str, float]:
        """Return the numbers of a pass as reported, with the penalty in the loss."""
        return {**numbers, "loss": self._scale * numbers["loss"] + penalty}

    @property
    def total_weight(self) -> float:
        """The sum of the samples' weights."""
        return math.fsum(self.order.weight_sums())

    def penalty(self) -> float:
        """Return the penalty of the current weights, with the weight decay of the last batch."""
        penalty = self.optimizer.penalty()
        return 0.0 if penalty is None else float(penalty)

    def loss_of_zeros(self, n_outputs: int) -> float:
        """Return the loss over the training data of a network that always answers 0.

        NaN for a loss other than gpunn's own, for which zeros may not be a neutral answer.
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
        """Return the loss and the metrics over other data, and the outputs.

        The loader's batches are halved until they fit into memory.
        """
        readings = Readings(self.loss, self.metrics, scale=self._scale)
        try:
            outputs = evaluate(self.network, loader, readings, self._evaluation, outputs=True)
        except DeviceMemoryError:
            if loader.batch_size == 1:
                raise
        else:
            with loader.backend.scope():
                return readings.read(), join(outputs)
        loader.batch_size = (loader.batch_size + 1) // 2
        return self.evaluate(loader)
