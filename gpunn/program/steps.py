"""The base of recorded steps: their parts, and whether the recording still fits them."""

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
    """Runs the steps of an epoch, or predicts a data set.

    A subclass defines `prepare`, `run_over` and `explain`.

    Parameters
    ----------
    model : Layer
    loss : Loss or None
        None to predict only.
    optimizer : Optimizer or None
        None if nothing is trained.
    feed : Feed
        Some data; the recording also serves other data of the same kind.
    penalized : bool, default False
        Whether the costs include the weight decay penalty.
    outputs : bool, default False
        Whether to return the model's outputs.

    Raises
    ------
    NotRecordableError
        If the step cannot be recorded or is not supported here; the message says why.
    """

    #: Whether they hold device memory, which is freed with them.
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
            raise NotNowError("a parameter already has a gradient, or its array has been replaced")
        for _ in range(2):  # the first may fill caches, such as class weights as an array
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
        """Record the step; called again if recording has changed the model."""
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
        """Run a step for each batch of the first `stop` rows of a loader.

        Parameters
        ----------
        loader : Loader
        order : array or None
            The order of the rows; None is the stored order.
        stop : int
        decays : sequence of float
            The weight decay of each step; empty if nothing is trained.
        outputs : bool
            Whether to return the model's outputs.
        rng : None, int or numpy.random.Generator
            For random masks.

        Yields
        ------
        StepResults, Batch or None, array or None
            The results of some steps; the data with their targets, unless the results contain
            them; and the order of these data.
        """
        raise NotImplementedError

    @staticmethod
    def why_later(optimizer: Optimizer | None, feed: Feed) -> str:  # noqa: ARG004
        """Return why to record only at the second request; empty to record at once."""
        return ""

    def _numbers(
        self, decays: Sequence[float]
    ) -> tuple[tuple[Sequence[float], ...] | None, Exception | None]:
        """Return `Optimizer.numbers` of the next steps, or None if nothing is trained.

        If a schedule raises at some step, return the numbers of the steps before it, which have to
        run first, and the error.
        """
        optimizer = self._optimizer
        if optimizer is None:
            return None, None
        try:
            return optimizer.numbers(decays), None
        except Exception as error:  # noqa: BLE001 (a user's schedule; raised after those steps)
            failure = error
        good, bad = 0, len(decays)  # the schedule serves `good` steps, but not `bad` steps
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                optimizer.numbers(decays[:middle])
                good = middle
            except Exception:  # noqa: BLE001 (the same)
                bad = middle
        return optimizer.numbers(decays[:good]), failure

    def _cut_turns(self, turns: slice, numbers: tuple[Sequence[float], ...] | None) -> slice:
        """Return the turns cut down to the steps that have numbers."""
        if numbers is None:
            return turns
        rows = len(numbers[0]) * self._batch_size
        return slice(turns.start, min(turns.stop, turns.start + rows))

    def _stream(self) -> int:
        """Return the rank of this process, for the keys of random masks."""
        parallel = None if self._optimizer is None else self._optimizer.parallel
        return 0 if parallel is None else int(parallel.communicator.rank)

    def _steps_so_far(self) -> int:
        return 0 if self._optimizer is None else self._optimizer.steps

    def _count_steps(self, before: int, steps: int) -> None:
        """Add `steps` to the optimizer's count, unless it is no longer `before`."""
        optimizer = self._optimizer
        if optimizer is not None and optimizer.steps == before:
            optimizer.count_updates(steps)

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
        """Return whether the recording still fits these parts, and data of this kind."""
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
        return f"there is no kernel for the average of {type(average).__name__}"
    return None


def _rule(optimizer: Optimizer | None) -> tuple[Any, ...]:
    """Return the optimizer's settings that a recording contains."""
    if optimizer is None:
        return ()
    average = optimizer.average
    averaging = average is not None and (average, fused_rule(average), average.decay)
    clips = optimizer.clip_norm, optimizer.clip_value
    return fused_rule(optimizer), *clips, optimizer.decoupled, averaging, optimizer.parallel
