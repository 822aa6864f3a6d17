"""The loss over a whole data set and its gradient, as a function of one vector of parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from gpunn.arrays.backend import scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.data.loader import Loader
from gpunn.errors import DeviceMemoryError
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.optim.gradient_sum import GradientSum
from gpunn.program import Program
from gpunn.training.epoch import EpochRunner
from gpunn.training.metrics import Metric
from gpunn.training.readings import Readings

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Objective:
    r"""The loss J over all samples, and its gradient, as a function of the parameters.

    .. math:: J(\theta) = \frac{\sum_i w_i L_i(\theta)}{\sum_i w_i}

    (or the sum, for a loss with reduction "sum"). The parameters are one vector of float64 on the
    host, for external optimizers. Each evaluation is one pass over the data, which stay where they
    are: an epoch of training with the update rule `GradientSum`.

    Parameters
    ----------
    model, loss
        Each evaluation writes its parameters to the model.
    gradients : GradientSum
        The sums of the gradients of the model's parameters.
    loader : Loader
        The data, in stored order. If a batch does not fit into memory, the batch size is halved.
    metrics : sequence of Metric, default ()
        Further quantities to measure in each pass.
    program : Program, optional
        The program recorded in earlier passes.

    Attributes
    ----------
    numbers : dict of str to float
        The loss and the metrics of the last pass.
    passes : int
        The number of passes.
    is_random : bool
        Whether the model draws random numbers, as dropout does. J is then not a function of the
        parameters alone.
    """

    def __init__(
        self,
        model: Layer,
        loss: Loss,
        gradients: GradientSum,
        loader: Loader,
        *,
        metrics: Sequence[Metric] = (),
        program: Program | None = None,
    ) -> None:
        self.loss = loss
        self.numbers: dict[str, float] = {}
        self.passes = 0
        self.is_random = False
        self._model, self._loader, self._metrics = model, loader, metrics
        self._gradients = gradients
        self._rng = np.random.default_rng(0)
        self._unused = self._rng.bit_generator.state
        self._runner = EpochRunner(loader, self._rng, program)
        gradients.separate_decaying()
        blocks = gradients.blocks()
        stops = [0, *accumulate(block.size for block in blocks.values)]
        self._parts = [slice(*ends) for ends in pairwise(stops)]
        self._size = stops[-1]
        #: Which entries of the vector decay.
        self.decaying = np.repeat(
            np.array(blocks.decays) != 0.0, [part.stop - part.start for part in self._parts]
        )
        gradients.shares = self._shares()

    @property
    def theta(self) -> NDArray[Any]:
        """The model's parameters as a vector."""
        return self._gather(self._gradients.blocks().values)

    @theta.setter
    def theta(self, theta: NDArray[Any]) -> None:
        place = self._loader.backend
        for block, part in zip(self._gradients.blocks().values, self._parts, strict=True):
            with scope_of(block):
                block[...] = place.asarray(theta[part].reshape(block.shape), block.dtype)

    def __call__(self, theta: NDArray[Any]) -> tuple[float, NDArray[Any]]:
        """Return J and its gradient, after writing theta to the model.

        Raises
        ------
        DeviceMemoryError
            If the device has too little memory for a single sample.
        """
        self.theta = theta
        loader, readings = self._loader, Readings(self.loss, self._metrics)
        self._gradients.begin()
        try:
            with loader.backend.scope():
                self._runner.run(self._model, self.loss, self._gradients, readings)
                self.numbers = readings.read()
        except DeviceMemoryError:
            if loader.batch_size == 1:
                raise
        else:
            self.passes += 1
            self.is_random = self._rng.bit_generator.state != self._unused
            return self.numbers["loss"], self._gather(self._gradients.sums())
        loader.batch_size = (loader.batch_size + 1) // 2
        self._gradients.shares = self._shares()
        return self(theta)

    def _gather(self, blocks: list[Any]) -> NDArray[Any]:
        """Return blocks as one vector on the host."""
        vector = np.empty(self._size)
        for block, part in zip(blocks, self._parts, strict=True):
            vector[part] = to_numpy(block).ravel()
        return vector

    def _shares(self) -> list[float]:
        """Return the weight of each batch's loss in J."""
        if self.loss.reduction == "sum":
            return [1.0]
        sums = list(self._weight_sums())
        total = sum(sums)
        return [weight_sum / total if total else 0.0 for weight_sum in sums]

    def _weight_sums(self) -> Iterator[float]:
        """Yield the weight sum that each batch's mean is divided by."""
        loader, place = self._loader, self._loader.backend
        targets: Any = loader.stored.y
        weights: Any = loader.stored.sample_weight
        like = self._gradients.parameters[0].value
        outputs = self._model.output_shape(tuple(loader.stored.x.shape[1:]))
        with place.scope():
            for start in range(0, loader.n_samples, loader.batch_size):
                rows = slice(start, min(start + loader.batch_size, loader.n_samples))
                y = place.asarray(targets[rows, ...])
                weight = None if weights is None else place.asarray(weights[rows], like.dtype)
                zeros = place.xp.zeros(
                    (y.shape[0], *outputs), dtype=like.dtype, device=place.device
                )
                weight_sum = self.loss.total_weight(zeros, y, weight)
                yield float(rows.stop - rows.start if weight_sum is None else weight_sum)
