"""Passes over the training data: a step for each batch."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

from gpunn._typing import RNG
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.checks import whole_number
from gpunn.arrays.state import check_names
from gpunn.data.batch import Batch
from gpunn.data.lending import lend
from gpunn.data.loader import Loader
from gpunn.data.order import part_of_order
from gpunn.data.validation import check_order
from gpunn.errors import StateError
from gpunn.kernels import kernels
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.program import Program
from gpunn.training.accumulation import Accumulation
from gpunn.training.freezing import part_of
from gpunn.training.ranks import in_step
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
        Batches per update; with more than 1, steps are not recorded.
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
        #: The number of batches done in the current epoch.
        self.done = 0
        self._began = False
        self._order: Any = None
        self._drawn_from: Any = None

    @property
    def has_begun(self) -> bool:
        """Whether an epoch is under way: its order is drawn, and batches remain."""
        return self._began

    @property
    def can_pause(self) -> bool:
        """Whether an epoch can pause between batches, which must be rows in a known order."""
        return type(self.loader) is Loader

    def run(
        self,
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        readings: Readings,
        *,
        decays: Callable[[], Sequence[float]] | None = None,
        tell: Callable[[int], object] = _ignore,
        pace: Callable[[int], int] | None = None,
    ) -> None:
        """Learn from each batch once; the loader's device must be the current one.

        An epoch that was paused continues where it stopped.

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
            Called from time to time with the number of steps done since the last call.
        pace : function, optional
            Called between parts of an epoch with the number of batches done; returns how many to
            do next, or 0 to stop. At each call, everything drawn or computed so far belongs to the
            batches done.

        Raises
        ------
        DeviceMemoryError
            If the device has too little memory for a batch or a step.
        """
        loader, parts = self.loader, (model, loss, optimizer)
        n_batches, n_turns = len(loader), loader.n_turns
        recordable = n_batches - self._is_last_short(n_turns)
        steps = None
        if self._accumulate > 1:
            self.program.refuse(f"gradients of {self._accumulate} batches are accumulated")
        else:
            rows = min(recordable * loader.step_size, n_turns)
            steps = self.program.prepare(
                *parts,
                feed_of(loader, loader.own_length(rows)),
                penalized=decays is not None and not optimizer.decoupled,
                outputs=bool(readings.metrics),
            )
        with memory_for("a batch", loader.backend, memory_advice(loader)):
            if not self.can_pause:
                batches = lend(loader.__iter__, model, loss, *readings.metrics)
                batches = in_step(optimizer, batches)
                each = None if decays is None else decays()
                self._one_by_one(batches, *parts, readings, each, tell)
                return
            self._begin(keep=pace is not None)
            each = None if decays is None else decays()
            try:
                while self.done < n_batches:
                    stop = n_batches if pace is None else self._next_stop(pace(self.done))
                    if stop == self.done:
                        return
                    one_by_one = steps is None or self.done >= recordable
                    stop = stop if one_by_one else min(stop, recordable)
                    own = self._rows(stop)
                    some = None if each is None else each[self.done : stop]
                    if one_by_one:
                        readers = model, loss, *readings.metrics
                        batches = lend(partial(loader.batches, *own), *readers)
                        batches = loader.padded(batches, stop - self.done)
                        self._one_by_one(batches, *parts, readings, some, tell)
                    else:
                        self._recorded(steps, own, optimizer, readings, some, tell)
                    self.done = stop
            except BaseException:
                self._end()
                raise
            self._end()

    def _begin(self, *, keep: bool) -> None:
        """Draw an epoch's order, unless one has begun; `keep` the generator state it came from."""
        if self._began:
            return
        self._drawn_from = self.loader.state_dict()["rng"] if keep else None
        self._order, self._began = self.loader.draw_order(), True

    def _end(self) -> None:
        """Forget the order: the next `run` begins an epoch."""
        self.done, self._began = 0, False
        self._order = self._drawn_from = None

    def _next_stop(self, wanted: int) -> int:
        """Return the batch number of the next pause, at the end of an update."""
        whole = -(-wanted // self._accumulate) * self._accumulate
        return min(self.done + whole, len(self.loader))

    def _rows(self, stop: int) -> tuple[Any, int]:
        """Return the order of the rows up to batch number `stop`, and their number.

        With several processes, only this one's rows are returned.
        """
        first = self.done * self.loader.step_size
        last = min(stop * self.loader.step_size, self.loader.n_turns)
        return self.loader.own(part_of_order(self._order, first, last), last - first)

    def state_dict(self) -> dict[str, Any]:
        """Return the progress of the epoch, and the state of the loader."""
        drawn = callable(self.loader.shuffle) or not self._began
        return {
            "done": self.done,
            "loader": self.loader.state_dict(),
            "drawn_from": None if drawn else self._drawn_from,
            "order": self._order if self._began and callable(self.loader.shuffle) else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state: the next `run` completes its epoch."""
        check_names("EpochRunner", state, ("done", "loader", "drawn_from", "order"))
        self._end()
        self.loader.load_state_dict(state["loader"])
        if state["drawn_from"] is None and state["order"] is None:
            return  # between two epochs
        if not self.can_pause:
            raise StateError(
                f"Trainer.fit: the state is from the middle of an epoch, and "
                f"{type(self.loader).__name__} makes batches in a way of its own, which cannot "
                "begin there; give fit a gn.Loader, as it was given one for the state"
            )
        done = whole_number("EpochRunner", "done", state["done"], 0)
        if done >= len(self.loader):
            raise StateError(
                f"Trainer.fit: the state is from batch {done} of an epoch, and this loader has "
                f"{len(self.loader)}"
            )
        self._drawn_from = state["drawn_from"]
        if self._drawn_from is None:  # compiled steps do not check the order's rows
            self._order = check_order(state["order"], self.loader.n_samples)
        else:
            self.loader.load_state_dict({**state["loader"], "rng": self._drawn_from})
            self._order = self.loader.draw_order()
            self.loader.load_state_dict(state["loader"])
        self.done, self._began = done, True

    def _recorded(  # noqa: PLR0917 (see `run`)
        self,
        steps: Any,
        rows: tuple[Any, int],
        optimizer: Optimizer,
        readings: Readings,
        decays: Sequence[float] | None,
        tell: Callable[[int], object],
    ) -> None:
        loader, (order, n_rows) = self.loader, rows
        n = -(-n_rows // loader.batch_size)
        each = [optimizer.weight_decay] * n if decays is None else decays
        settings: Any = {"outputs": bool(readings.metrics), "rng": self._rng}
        for results, data, place in steps.run_over(loader, order, n_rows, each, **settings):
            readings.add_many(results, data, place, loader.batch_size)
            tell(len(results.costs))
        if decays is not None:
            optimizer.weight_decay = each[-1]

    def _is_last_short(self, n_turns: int) -> bool:
        """Return whether some process has no rows in the last step, which is then not recorded.

        All processes must run a step the same way, recorded or not, to round weights alike.
        """
        return 0 < n_turns % self.loader.step_size < self.loader.share.size

    def _one_by_one(  # noqa: PLR0917 (see `run`)
        self,
        batches: Generator[Batch, None, None],
        model: Layer,
        loss: Loss,
        optimizer: Optimizer,
        readings: Readings,
        decays: Sequence[float] | None,
        tell: Callable[[int], object],
    ) -> None:
        part = optimizer.part or part_of(model, optimizer)
        values = [p.value for p in (*optimizer.parameters, *part.frozen)]
        threads = kernels(values[0]).threads(self.loader.batch_size, values)
        grouped = self._accumulate > 1 or optimizer.parallel is not None
        group = Accumulation(self._accumulate) if grouped else None
        with closing(batches), threads:  # closing ends the thread that fetches ahead
            each = None if decays is None else iter(decays)
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
    """Return the feed of a pass's batches; None if a batch is more than plain rows."""
    if not loader.is_plain:
        return None
    from gpunn.program.values import Feed  # noqa: PLC0415 (not needed to import gpunn)

    stored = loader.rows()
    sample = loader.plain_row() if stored is None else stored
    return Feed(sample, loader.batch_size, n_samples, stored is not None)


def memory_advice(loader: Loader) -> str:
    """Return advice for when a pass over the loader's batches runs out of memory."""
    return (
        f"take a batch_size below {loader.batch_size}"
        if loader.batch_size > 1
        else "not even one sample fits, so use a smaller model, or free other memory there"
    )
