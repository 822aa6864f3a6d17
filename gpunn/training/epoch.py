"""Passes over the training data: a step for each batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from typing import Any

from gpunn._typing import RNG
from gpunn.data.batch import Batch
from gpunn.data.lending import lend
from gpunn.data.loader import Loader
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.program import Program
from gpunn.training.freezing import part_of
from gpunn.training.readings import Readings
from gpunn.training.step import learn


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
        Of earlier epochs of the same training, which may still hold.
    """

    def __init__(self, loader: Loader, rng: RNG = None, program: Program | None = None) -> None:
        self.loader = loader
        self._rng = rng
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
        loader, parts = self.loader, (model, loss, optimizer)
        steps = self.program.prepare(
            *parts, sample_of(loader), loader.batch_size, penalized=decays is not None
        )
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
        first = 0
        for data, rows, stop in pieces_of(loader, order, loader.n_turns):
            n = -(-stop // loader.batch_size)
            settings: Any = {"outputs": bool(readings.metrics), "rng": self._rng}
            for results in steps.run(data, rows, stop, each[first : first + n], **settings):
                readings.add_many(results, data, rows, loader.batch_size)
                tell(len(results.costs))
            first += n
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


def sample_of(loader: Loader) -> Batch | None:
    """Return some of the data as batches have them; None if more is done to each batch."""
    if not loader.is_plain or loader.backend.package != "numpy":
        return None
    return loader.rows() or loader.first_row()


def pieces_of(loader: Loader, order: Any, stop: int) -> Iterator[tuple[Batch, Any, int]]:
    """Yield data, the order of its rows (None: as they stand), and how many of them to take.

    That is all of the data, where they are at hand, and else one group of batches after the other.
    """
    data = loader.rows()
    if data is not None:
        yield data, order, stop
        return
    with closing(loader.groups(order, stop)) as groups:
        for group in groups:
            yield group, None, group.x.shape[0]
