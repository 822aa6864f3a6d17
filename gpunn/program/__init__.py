"""Recorded steps: training steps recorded once as a list of operations, then run many times."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from gpunn.arrays.backend import backend_of
from gpunn.kernels import kernels

__all__ = ["Program", "release", "why_not_captured", "why_not_compiled"]


_NOTHING_YET = "nothing has run yet"
_BACKOFF = 8  # epochs to wait before recording is tried again after a failure


class Program:
    """A step that is recorded when first needed, and recorded again after it has changed.

    Attributes
    ----------
    why_not : str
        Why the step is not recorded; empty if it is.
    """

    def __init__(self) -> None:
        self.why_not = _NOTHING_YET
        self._steps: Any = None
        self._refused: tuple[Any, Any] | None = None
        self._postponed: Any = None  # the last request that was too short to record
        #: The request that failed, the epochs left to wait, and the epochs to wait in all.
        self._backoff: tuple[Any, int, int] | None = None
        self._unsteady: tuple[Any, ...] | None = None  # the model and loss that recording changes

    def __reduce__(self) -> tuple[type[Program], tuple[()]]:
        """Return an empty program: compiled steps belong to this process."""
        return Program, ()

    @property
    def is_recorded(self) -> bool:
        """Whether there is a recording, which may be out of date."""
        return self._steps is not None

    def release(self) -> bool:
        """Drop the recording if it holds device memory; return whether it did.

        A step that is recorded only at its second request has to be requested twice again.
        """
        steps = self._steps
        if steps is None or not steps.keeps_device_memory:
            return False
        self._steps = self._postponed = None
        return True

    def explain(self) -> str:
        """Return how the steps run, and why."""
        steps, why_not = self._steps, self.why_not
        if steps is not None:
            return f"recorded steps: {steps.explain()}"
        return why_not if why_not == _NOTHING_YET else f"step by step: {why_not}"

    def prepare(
        self,
        model: Any,
        loss: Any,
        optimizer: Any,
        feed: Any,
        *,
        penalized: bool = False,
        outputs: bool = False,
    ) -> Any:
        """Return the `RecordedSteps` that run an epoch, or None if the step is not recorded.

        Parameters
        ----------
        model : Layer
            The model to run.
        loss : Loss or None
            None to predict only.
        optimizer : Optimizer or None
            None if nothing is trained.
        feed : Feed or None
            The data; the recording also serves other data of the same kind. None if the loader
            does not simply take rows of the data.
        penalized : bool, default False
            Whether costs include the weight decay penalty.
        outputs : bool, default False
            Whether to return the model's outputs.
        """
        if feed is None:
            return self.refuse("the loader builds its batches in its own way")
        parts = (model, loss, optimizer, feed)
        settings = {"penalized": penalized, "outputs": outputs}
        steps = self._steps  # another thread may store other steps at any time
        if steps is not None and steps.serves(*parts, **settings):
            return steps
        self._steps = None
        runner = _steps_for(feed.batch.x)
        if isinstance(runner, str):
            return self.refuse(runner)
        return self._record(runner, parts, settings)

    def _record(self, runner: Any, parts: tuple[Any, ...], settings: dict[str, bool]) -> Any:
        """Record the step, unless recording these very parts has already failed."""
        # Not needed to import gpunn, and slow to import.
        from gpunn.program.fingerprint import Fingerprint  # noqa: PLC0415
        from gpunn.program.values import (  # noqa: PLC0415
            FailedError,
            NotNowError,
            NotRecordableError,
            UnsteadyError,
            kind_of,
            refer_to,
            weak_references,
        )

        *models, feed = parts
        request = (*map(id, models), kind_of(feed.batch), *feed[1:], *settings.values())
        if self._refused is not None and self._refused[0] == request and self._refused[1].holds():
            return None
        if self._unsteady == request[:2] or self._is_backing_off(request):
            return None
        why_later = runner.why_later(models[2], feed)
        if why_later:
            last, self._postponed = self._postponed, (request, weak_references(feed.batch))
            again = last is not None and last[0] == request
            if not again or (feed.stored and not refer_to(last[1], feed.batch)):
                return self.refuse(why_later)
        try:
            steps = runner(*parts, **settings)
        except FailedError as error:
            what = "a pass" if models[2] is None else "training"
            self._back_off(request, f"{what} runs step by step: {error}")
            return self.refuse(str(error))
        except NotRecordableError as error:
            if not isinstance(error, NotNowError):
                inspected = [part for part in models[:2] if part is not None]
                self._refused = request, Fingerprint(inspected)
            if isinstance(error, UnsteadyError):
                self._unsteady = request[:2]
            return self.refuse(str(error))
        self._steps, self.why_not = steps, ""
        self._refused = self._backoff = None
        return steps

    def _is_backing_off(self, request: Any) -> bool:
        """Return whether a failure is too recent to try again; count an epoch."""
        if self._backoff is None or self._backoff[0] != request or not self._backoff[1]:
            return False
        self._backoff = request, self._backoff[1] - 1, self._backoff[2]
        return True

    def _back_off(self, request: Any, message: str) -> None:
        """Wait some epochs before trying again, twice as many each time; warn once."""
        again = self._backoff is not None and self._backoff[0] == request
        epochs = 2 * self._backoff[2] if self._backoff is not None and again else _BACKOFF
        self._backoff = request, epochs, epochs
        if not again:
            import logging  # noqa: PLC0415 (slow to import)

            logging.getLogger("gpunn").warning(message)

    def refuse(self, reason: str) -> None:
        """Drop the recording and note the reason."""
        self._steps, self.why_not = None, reason


def release(*programs: Program) -> bool:
    """Free the device memory that recordings hold; return whether there was any."""
    return any([program.release() for program in programs])  # noqa: C419 (release every one)


def why_not_compiled(x: Any) -> str:
    """Return why steps on arrays like this one cannot be compiled; empty if they can."""
    runner = _steps_for(x)
    return runner if isinstance(runner, str) else ""


def _steps_for(x: Any) -> Any:
    """Return the class that runs steps on arrays like this one, or why there is none."""
    if kernels(x).compiled:
        return _cpu_steps()
    place = backend_of(x)
    if place is not None and place.package == "cupy":
        return _cuda_steps()
    if place is None or place.package != "numpy":
        return "steps are recorded for NumPy and CuPy only"
    if os.environ.get("GPUNN_COMPILED") == "0":
        return "the environment variable GPUNN_COMPILED is 0"
    return "steps are compiled by numba, which is missing or fails: pip install numba scipy"


@cache
def _cpu_steps() -> Any:
    """Return the class that runs steps on the CPU, or why there is none."""
    try:
        from gpunn.program.cpu import CpuSteps, why_not_here  # noqa: PLC0415 (imports numba)
    except ImportError as error:  # SciPy is missing, for example
        return f"steps cannot be compiled: {error}"
    return why_not_here() or CpuSteps


def why_not_captured() -> str:
    """Return why steps on CuPy's arrays cannot be captured; empty if they can."""
    runner = _cuda_steps()
    return runner if isinstance(runner, str) else ""


def _cuda_steps() -> Any:
    """Return the class that runs steps on a GPU, or why there is none."""
    from gpunn.program.cuda import CudaSteps, why_not_here  # noqa: PLC0415 (imports CuPy)

    return why_not_here() or CudaSteps
