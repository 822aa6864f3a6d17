"""Passes over the training data: a step for each batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from gpunn._typing import RNG
from gpunn.arrays.capacity import memory_for
from gpunn.data.lending import lend
from gpunn.data.loader import Loader
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.program import Program
from gpunn.training.accumulation import Accumulation
from gpunn.training.freezing import part_of
from gpunn.training.readings import Readings
from gpunn.training.step import learn

if TYPE_CHECKING:
    from gpunn.program.values import Feed


def _ignore(_: int) -> None:
    """Ignore progress reports."""


class EpochRunner:
    """Passes over the training data.

    Steps that can be recorded are run many at a time, others one by one.

    Parameters
    ----------
    loader : Loader
        The data.
    rng : None, int or numpy.random.Generator
        For dropout.
    program : Program, optional
        The program of earlier epochs; it is reused if it still holds.
    accumulate : int, default 1
        How many batches an update takes; more are not recorded.
    """

    def __init__(
        self,
        loader: Loader,
        rng: RNG = None,
        program: Program | None = None,
        *,
        accumulate: int = 1,
    ) -> None:
        self.loader = loader
        self._rng = rng
        self._accumulate = accumulate
        self.program = Program() if program is None else program

    def run(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        readings: Readings,
        *,
        decays: Callable[[], Sequence[float]] | None = None,
        tell: Callable[[int], object] = _ignore,
    ) -> None:
        """Learn from each batch once; the loader's device must be the current one.

        Parameters
        ----------
        model, loss, optimizer
            What to train, and how.
        readings : Readings
            Collects the results of the steps.
        decays : function, optional
            Called once the epoch's order is drawn; returns the weight decay of each step. The costs
            then include the penalty.
        tell : function, optional
            Called now and then with the number of further steps done.

        Raises
        ------
        DeviceMemoryError
            If the device has too little memory for a batch or a step.
        """
        loader, parts = self.loader, (model, loss, optimizer)
        steps = None
        if self._accumulate > 1:
            self.program.refuse(f"gradients of {self._accumulate} batches are accumulated")
        else:
            steps = self.program.prepare(
                *parts,
                feed_of(loader, loader.n_turns),
                penalized=decays is not None and not optimizer.decoupled,
                outputs=bool(readings.metrics),
            )
        with memory_for("a batch", loader.backend, memory_advice(loader)):
            if steps is None:
                self._one_by_one(*parts, readings, decays, tell)
            else:
                self._recorded(steps, optimizer, readings, decays, tell)

    def _recorded(
        self,
        steps: Any,
        optimizer: Optimizer,
        readings: Readings,
        decays: Callable[[], Sequence[float]] | None,
        tell: Callable[[int], object],
    ) -> None:
        loader = self.loader
        order = loader.draw_order()
        each = [optimizer.weight_decay] * len(loader) if decays is None else decays()
        settings: Any = {"outputs": bool(readings.metrics), "rng": self._rng}
        for results, data, rows in steps.run_over(loader, order, loader.n_turns, each, **settings):
            readings.add_many(results, data, rows, loader.batch_size)
            tell(len(results.costs))
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
        group = Accumulation(self._accumulate) if self._accumulate > 1 else None
        epoch = lend(self.loader.__iter__, *readers)
        with closing(epoch) as batches, threads:  # ends a thread that fetches ahead
            each = None if decays is None else iter(decays())
            for x, y, weight in batches:
                penalty = None
                if each is not None:
                    optimizer.weight_decay = next(each)
                    penalty = optimizer.penalty()
                batch = x, y, weight
                cost, prediction = learn(model, loss, optimizer, *batch, self._rng, group=group)
                readings.add(cost, prediction, y, weight, penalty)
                tell(1)
            if group is not None:
                group.finish(optimizer)


def feed_of(loader: Loader, n_samples: int) -> Feed | None:
    """Return what a pass takes its batches from; None if a batch is more than plain rows."""
    if not loader.is_plain:
        return None
    from gpunn.program.values import Feed  # noqa: PLC0415 (not needed to import gpunn)

    stored = loader.rows()
    sample = loader.plain_row() if stored is None else stored
    return Feed(sample, loader.batch_size, n_samples, stored is not None)


def memory_advice(loader: Loader) -> str:
    """Return what to do if a pass over the loader's batches runs out of memory."""
    return (
        f"take a batch_size below {loader.batch_size}"
        if loader.batch_size > 1
        else "not even one sample fits, so take a smaller model, or free what else is there"
    )
