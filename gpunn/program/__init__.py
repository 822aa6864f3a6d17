"""Recorded steps: a training step as a list of operations, and what runs it many times."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from gpunn.arrays.backend import backend_of
from gpunn.kernels import kernels

__all__ = ["Program", "release", "why_not_captured", "why_not_compiled"]


_NOTHING_YET = "nothing has run yet"
_PAUSE = 8  # epochs, before what has failed is tried again


class Program:
    """A step that is recorded when it is first needed, and again when it has changed.

    Attributes
    ----------
    why_not : str
        Why the step is not recorded; empty if it is.
    """

    def __init__(self) -> None:
        self.why_not = _NOTHING_YET
        self._steps: Any = None
        self._refused: tuple[Any, Any] | None = None
        self._last_asked: Any = None  # what for, in the last epoch that was too short to record
        self._pause: tuple[Any, int, int] | None = None  # of what, for how long yet, and at first
        self._unsteady: tuple[Any, ...] | None = None  # the model and loss that recording changes

    def __reduce__(self) -> tuple[type[Program], tuple[()]]:
        """Return a program that has nothing recorded: what is compiled is of this process."""
        return Program, ()

    @property
    def is_recorded(self) -> bool:
        """Whether there is a recording, though it may no longer hold."""
        return self._steps is not None

    def release(self) -> bool:
        """Drop the recording if it keeps memory of a device; return whether it did.

        If it has to be asked for twice, it has to be so again.
        """
        steps = self._steps
        if steps is None or not steps.keeps_device_memory:
            return False
        self._steps = self._last_asked = None
        return True

    def explain(self) -> str:
        """Return which way the steps run, and why."""
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
        """Return what makes the steps of an epoch (`RecordedSteps`), or None.

        Parameters
        ----------
        model : Layer
            What is trained.
        loss : Loss or None
            None for predictions alone.
        optimizer : Optimizer or None
            None where nothing is trained.
        feed : Feed or None
            The data; others of the same kind can be run. None if a batch is more than rows of data.
        penalized : bool, default False
            Whether costs contain the penalty of weight decay.
        outputs : bool, default False
            Whether the model's outputs are wanted.
        """
        if feed is None:
            return self.refuse("the loader makes each batch in a way of its own")
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
        """Record the step, unless that has been tried with the very same parts."""
        # Not needed to import gpunn, and slow to import.
        from gpunn.program.fingerprint import Fingerprint  # noqa: PLC0415
        from gpunn.program.values import (  # noqa: PLC0415
            FailedError,
            NotNowError,
            NotRecordableError,
            UnsteadyError,
            are_of,
            kind_of,
            marks_of,
        )

        *models, feed = parts
        asked = (*map(id, models), kind_of(feed.batch), *feed[1:], *settings.values())
        if self._refused is not None and self._refused[0] == asked and self._refused[1].holds():
            return None
        if self._unsteady == asked[:2] or self._pauses(asked):
            return None
        why_later = runner.why_later(models[2], feed)
        if why_later:
            last, self._last_asked = self._last_asked, (asked, marks_of(feed.batch))
            again = last is not None and last[0] == asked
            if not again or (feed.stored and not are_of(last[1], feed.batch)):
                return self.refuse(why_later)
        try:
            steps = runner(*parts, **settings)
        except FailedError as error:
            what = "a pass" if models[2] is None else "training"
            self._take_a_break(asked, f"{what} runs step by step: {error}")
            return self.refuse(str(error))
        except NotRecordableError as error:
            if not isinstance(error, NotNowError):
                looked_into = [part for part in models[:2] if part is not None]
                self._refused = asked, Fingerprint(looked_into)
            if isinstance(error, UnsteadyError):
                self._unsteady = asked[:2]
            return self.refuse(str(error))
        self._steps, self.why_not = steps, ""
        self._refused = self._pause = None
        return steps

    def _pauses(self, asked: Any) -> bool:
        """Return whether a failure is too recent to try again; count an epoch."""
        if self._pause is None or self._pause[0] != asked or not self._pause[1]:
            return False
        self._pause = asked, self._pause[1] - 1, self._pause[2]
        return True

    def _take_a_break(self, asked: Any, message: str) -> None:
        """Try again after some epochs, and after twice as many the next time; say so once."""
        again = self._pause is not None and self._pause[0] == asked
        epochs = 2 * self._pause[2] if self._pause is not None and again else _PAUSE
        self._pause = asked, epochs, epochs
        if not again:
            import logging  # noqa: PLC0415 (slow to import)

            logging.getLogger("gpunn").warning(message)

    def refuse(self, reason: str) -> None:
        """Keep no recording, and say why."""
        self._steps, self.why_not = None, reason


def release(*programs: Program) -> bool:
    """Give back the memory of a device that recordings keep; return whether there was any."""
    return any([program.release() for program in programs])  # noqa: C419 (of all of them)


def why_not_compiled(x: Any) -> str:
    """Return why steps on arrays like this one cannot be compiled; empty if they can."""
    runner = _steps_for(x)
    return runner if isinstance(runner, str) else ""


def _steps_for(x: Any) -> Any:
    """Return the class that makes steps on arrays like this one, or why there is none."""
    if kernels(x).compiled:
        return _cpu_steps()
    place = backend_of(x)
    if place is not None and place.package == "cupy":
        return _cuda_steps()
    if place is None or place.package != "numpy":
        return "steps are recorded for NumPy and CuPy only"
    if os.environ.get("GPUNN_COMPILED") == "0":
        return "the environment variable GPUNN_COMPILED is 0"
    return "steps are compiled by numba, which is missing or fails: pip install gpunn[compiled]"


@cache
def _cpu_steps() -> Any:
    """Return the class that makes steps on the CPU, or why there is none."""
    try:
        from gpunn.program.cpu import CpuSteps, why_not_here  # noqa: PLC0415 (imports numba)
    except ImportError as error:  # such as that there is no SciPy
        return f"steps cannot be compiled: {error}"
    return why_not_here() or CpuSteps


def why_not_captured() -> str:
    """Return why steps on CuPy's arrays cannot be captured; empty if they can."""
    runner = _cuda_steps()
    return runner if isinstance(runner, str) else ""


def _cuda_steps() -> Any:
    """Return the class that makes steps on a GPU, or why there is none."""
    from gpunn.program.cuda import CudaSteps, why_not_here  # noqa: PLC0415 (imports CuPy)

    return why_not_here() or CudaSteps
