"""Passes over the training data: a step for each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

from gpunn._typing import RNG
from gpunn.data import Loader
from gpunn.freezing import part_of
from gpunn.kernels import kernels
from gpunn.kernels.generic import Steps
from gpunn.layer import Layer
from gpunn.lending import lend
from gpunn.loss import Loss
from gpunn.optim import Optimizer
from gpunn.readings import Readings
from gpunn.step import learn


def _to_nobody(_: int) -> None:
    """Hear of steps, and say nothing."""


class Course:
    """A model's passes over its training data.

    Where the kernels have a way to make many steps at a time, they do.

    Parameters
    ----------
    loader : Loader
        The data.
    rng : None, int or numpy.random.Generator
        For dropout.
    """

    def __init__(self, loader: Loader, rng: RNG = None) -> None:
        self.loader = loader
        self._rng = rng
        self._steps: Steps | None = None

    def run(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        readings: Readings,
        *,
        decays: Callable[[], Sequence[float]] | None = None,
        tell: Callable[[int], object] = _to_nobody,
    ) -> None:
        """Learn from each batch once. The loader's device must be the current one.

        Parameters
        ----------
        model, loss, optimizer
            What is trained, on what, and how.
        readings : Readings
            Takes what each step gives.
        decays : function, optional
            Returns the weight decay of each step, once the epoch's order is drawn. The costs
            contain the penalty then.
        tell : function, optional
            Told now and then how many more steps were made.
        """
        data, size = self.loader.rows(), self.loader.batch_size
        k = kernels(optimizer.parameters[0].value)
        parts = model, loss, optimizer
        self._steps = None if data is None else k.steps(*parts, data, size, self._steps)
        if self._steps is None:
            self._one_by_one(*parts, readings, decays, tell)
        else:
            self._many_at_a_time(self._steps, optimizer, readings, decays, tell)

    def _many_at_a_time(
        self,
        steps: Steps,
        optimizer: Optimizer,
        readings: Readings,
        decays: Callable[[], Sequence[float]] | None,
        tell: Callable[[int], object],
    ) -> None:
        loader = self.loader
        order = loader.draw_order()
        each = [optimizer.weight_decay] * len(loader) if decays is None else decays()
        for stretch in steps.run(order, loader.n_turns, each, outputs=bool(readings.metrics)):
            readings.add_many(stretch, loader, order, penalized=decays is not None)
            tell(len(stretch.costs))
        if decays is not None:
            optimizer.weight_decay = each[-1]

    def _one_by_one(  # noqa: PLR0917 (see `run`)
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        readings: Readings,
        decays: Callable[[], Sequence[float]] | None,
        tell: Callable[[int], object],
    ) -> None:
        part = optimizer.part or part_of(model, optimizer)
        values = [p.value for p in (*optimizer.parameters, *part.frozen)]
        threads = kernels(values[0]).threads(self.loader.batch_size, values)
        readers = model, loss, *readings.metrics
        epoch = lend(self.loader.__iter__, *readers)
        with closing(epoch) as batches, threads:  # ends a thread that fetches ahead
            each = None if decays is None else iter(decays())
            for x, y, weight in batches:
                penalty = None
                if each is not None:
                    optimizer.weight_decay = next(each)
                    penalty = optimizer.penalty()
                cost, prediction = learn(model, loss, optimizer, x, y, weight, self._rng)
                readings.add(cost, prediction, y, weight, penalty)
                tell(1)
