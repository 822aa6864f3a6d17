"""Recorded steps: a training step as a list of operations, and what runs it many times."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from gpunn.arrays.backend import backend_of
from gpunn.kernels import kernels

__all__ = ["Program", "why_not_compiled"]


_NOTHING_YET = "nothing has run yet"


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
        self._unsteady: tuple[Any, ...] | None = None  # the model and loss that recording changes

    def __reduce__(self) -> tuple[type[Program], tuple[()]]:
        """Return a program that has nothing recorded: what is compiled is of this process."""
        return Program, ()

    @property
    def is_recorded(self) -> bool:
        """Whether there is a recording, though it may no longer hold."""
        return self._steps is not None

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
        batch: Any,
        batch_size: int,
        *,
        penalized: bool = False,
    ) -> Any:
        """Return what makes the steps of an epoch (a `CpuSteps`), or None.

        Parameters
        ----------
        model : Layer
            What is trained.
        loss : Loss or None
            None for predictions alone.
        optimizer : Optimizer or None
            None where nothing is trained.
        batch : Batch or None
            Some of the data; other data of the same kind can be run. None if a batch is more than
            rows of the data.
        batch_size : int
        penalized : bool, default False
            Whether costs contain the penalty of weight decay.
        """
        if batch is None:
            return self._refuse("the loader makes each batch in a way of its own")
        parts = (model, loss, optimizer, batch, batch_size)
        steps = self._steps  # another thread may store other steps at any time
        if steps is not None and steps.serves(*parts, penalized=penalized):
            return steps
        self._steps = None
        runner = _steps_for(batch.x)
        if isinstance(runner, str):
            return self._refuse(runner)
        return self._record(runner, parts, penalized=penalized)

    def _record(self, runner: Any, parts: tuple[Any, ...], *, penalized: bool) -> Any:
        """Record the step, unless that has been tried with the very same parts."""
        # Not needed to import gpunn, and slow to import.
        from gpunn.program.fingerprint import Fingerprint  # noqa: PLC0415
        from gpunn.program.values import (  # noqa: PLC0415
            NotNowError,
            NotRecordableError,
            UnsteadyError,
            kind_of,
        )

        *models, batch, batch_size = parts
        asked = (*map(id, models), kind_of(batch), batch_size, penalized)
        if self._refused is not None and self._refused[0] == asked and self._refused[1].holds():
            return None
        if self._unsteady == asked[:2]:
            return None
        try:
            steps = runner(*parts, penalized=penalized)
        except NotRecordableError as error:
            if not isinstance(error, NotNowError):
                looked_into = [part for part in models[:2] if part is not None]
                self._refused = asked, Fingerprint(looked_into)
            if isinstance(error, UnsteadyError):
                self._unsteady = asked[:2]
            return self._refuse(str(error))
        self._steps, self.why_not, self._refused = steps, "", None
        return steps

    def _refuse(self, reason: str) -> None:
        self._steps, self.why_not = None, reason


def why_not_compiled(x: Any) -> str:
    """Return why steps on arrays like this one cannot be compiled; empty if they can."""
    runner = _steps_for(x)
    return runner if isinstance(runner, str) else ""


def _steps_for(x: Any) -> Any:
    """Return the class that makes steps on arrays like this one, or why there is none."""
    if kernels(x).compiled:
        return _cpu_steps()
    place = backend_of(x)
    if place is None or place.package != "numpy":
        return "steps are compiled for NumPy only"
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
