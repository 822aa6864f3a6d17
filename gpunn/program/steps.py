"""What all recorded steps share: what they were recorded from, and whether that still holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from gpunn.data.batch import Batch
from gpunn.data.loader import Loader
from gpunn.kernels.declared import may_record
from gpunn.kernels.rules import fused_rule
from gpunn.losses.base import Loss
from gpunn.nn.layer import Layer, first_parameter
from gpunn.nn.tree import entrance
from gpunn.optim.base import Optimizer
from gpunn.program.fingerprint import Fingerprint
from gpunn.program.results import StepResults
from gpunn.program.values import (
    Feed,
    NotNowError,
    NotRecordableError,
    UnsteadyError,
    kind_of,
)


class RecordedSteps:
    """Makes the steps of an epoch, or the predictions for a data set.

    A subclass defines `prepare`, `run_over` and `explain`.

    Parameters
    ----------
    model : Layer
    loss : Loss or None
        None for predictions alone.
    optimizer : Optimizer or None
        None where nothing is trained.
    feed : Feed
        Some data; other data of the same kind can be run.
    penalized : bool, default False
        Whether the costs contain the penalty of weight decay.
    outputs : bool, default False
        Whether the model's outputs are wanted.

    Raises
    ------
    NotRecordableError
        If the step cannot be recorded, or the runner does not serve it; the message says why.
    """

    #: Whether they keep memory of a device, which is free once they are gone.
    keeps_device_memory: ClassVar[bool] = False

    def __init__(
        self,
        model: Layer,
        loss: Loss | None,
        optimizer: Optimizer | None,
        feed: Feed,
        *,
        penalized: bool = False,
        outputs: bool = False,
    ) -> None:
        self._model, self._loss, self._optimizer = model, loss, optimizer
        self._batch_size = feed.batch_size
        self._penalized, self._outputs = penalized, outputs
        self._kind = kind_of(feed.batch)
        self._dtype = feed.batch.x.dtype
        if entrance(model).takes_integers:
            first = first_parameter(model)
            self._dtype = None if first is None else first.value.dtype
        if self._dtype not in ("float32", "float64"):
            raise NotRecordableError(f"the features are {self._dtype}, not float32 or float64")
        parts = [part for part in (model, loss) if part is not None]
        fingerprint = Fingerprint(parts)
        reason = fingerprint.why_not()
        if reason is None and optimizer is not None:
            reason = _why_no_update(optimizer)
        if reason is not None:
            raise NotRecordableError(reason)
        if optimizer is not None and penalized:
            optimizer.separate_decaying()
        slots = None if optimizer is None else optimizer.slots()
        if optimizer is not None and slots is None:
            raise NotNowError("a parameter has a gradient already, or another array")
        for _ in range(2):  # the first may fill caches, such as that of class weights as an array
            if not fingerprint.holds():
                fingerprint = Fingerprint(parts)
            self.prepare()
            if fingerprint.holds():
                break
        else:
            raise UnsteadyError("an attribute of a layer or loss changes as it runs")
        self._fingerprint = fingerprint
        self._rule = _rule(optimizer)
        self._values = None if slots is None else slots.values

    def prepare(self) -> None:
        """Record the step; called again if that has changed the model."""
        raise NotImplementedError

    def run_over(
        self,
        loader: Loader,
        order: Any,
        stop: int,
        decays: Sequence[float],
        *,
        outputs: bool,
        rng: Any = None,
    ) -> Iterator[tuple[StepResults, Batch | None, Any]]:
        """Make a step for each batch of the first `stop` rows of a loader.

        Parameters
        ----------
        loader : Loader
        order : array or None
            That of the rows; None is the stored one.
        stop : int
        decays : sequence of float
            The weight decay of each step; empty where nothing is trained.
        outputs : bool
            Whether the model's outputs are wanted.
        rng : None, int or numpy.random.Generator
            For random masks.

        Yields
        ------
        StepResults, Batch or None, array or None
            The results of some steps; the data that their targets are in, unless the results have
            them; and the order of these data.
        """
        raise NotImplementedError

    @staticmethod
    def why_later(optimizer: Optimizer | None, feed: Feed) -> str:  # noqa: ARG004
        """Return why to record only what is asked for a second time; empty to do so at once."""
        return ""

    def _numbers(
        self, decays: Sequence[float]
    ) -> tuple[tuple[Sequence[float], ...] | None, Exception | None]:
        """Return `Optimizer.numbers` of the next steps; None if nothing is trained.

        Where a schedule raises, they are those of the steps before, which are to be made first; and
        the error.
        """
        optimizer = self._optimizer
        if optimizer is None:
            return None, None
        try:
            return optimizer.numbers(decays), None
        except Exception as error:  # noqa: BLE001 (a user's schedule; it is raised in its turn)
            failure = error
        known, failing = 0, len(decays)  # the numbers of so many steps are known, and are not
        while failing - known > 1:
            tried = (known + failing) // 2
            try:
                optimizer.numbers(decays[:tried])
                known = tried
            except Exception:  # noqa: BLE001 (the same)
                failing = tried
        return optimizer.numbers(decays[:known]), failure

    def _before(self, turns: slice, numbers: tuple[Sequence[float], ...] | None) -> slice:
        """Return those of some turns whose steps have numbers."""
        if numbers is None:
            return turns
        rows = len(numbers[0]) * self._batch_size
        return slice(turns.start, min(turns.stop, turns.start + rows))

    def _stream(self) -> int:
        """Return which of several processes this is, for the keys of random masks."""
        parallel = None if self._optimizer is None else self._optimizer.parallel
        return 0 if parallel is None else int(parallel.communicator.rank)

    def _steps_so_far(self) -> int:
        return 0 if self._optimizer is None else self._optimizer.steps

    def _count(self, before: int, made: int) -> None:
        """Count the steps made since there were `before`, unless that has been done."""
        optimizer = self._optimizer
        if optimizer is not None and optimizer.steps == before:
            optimizer.count_updates(made)

    def serves(
        self,
        model: Layer,
        loss: Loss | None,
        optimizer: Optimizer | None,
        feed: Feed,
        *,
        penalized: bool = False,
        **settings: bool,  # noqa: ARG002 (they matter on a GPU)
    ) -> bool:
        """Return whether this still describes these parts, and such data."""
        if model is not self._model or loss is not self._loss or optimizer is not self._optimizer:
            return False
        if (feed.batch_size, penalized) != (self._batch_size, self._penalized):
            return False
        if kind_of(feed.batch) != self._kind or not self._fingerprint.holds():
            return False
        if optimizer is None:
            return True
        slots = optimizer.slots()
        if slots is None or slots.values is not self._values:
            return False
        why_not = _why_no_update(optimizer)
        return why_not is None and _rule(optimizer) == self._rule


def _why_no_update(optimizer: Optimizer) -> str | None:
    if not may_record(optimizer):
        return f"{type(optimizer).__name__} does not say in its own class body that it records"
    average = optimizer.average
    if average is not None and fused_rule(average) is None:
        return f"the average of {type(average).__name__} is not followed by a kernel"
    return None


def _rule(optimizer: Optimizer | None) -> tuple[Any, ...]:
    """Return the settings that a recording has in it."""
    if optimizer is None:
        return ()
    average = optimizer.average
    followed = average is not None and (average, fused_rule(average), average.decay)
    clips = optimizer.clip_norm, optimizer.clip_value
    return fused_rule(optimizer), *clips, optimizer.decoupled, followed, optimizer.parallel
