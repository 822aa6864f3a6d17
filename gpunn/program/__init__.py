"""Recorded steps: a training step as a list of operations, and what runs it many times."""

from __future__ import annotations

from functools import cache
from typing import Any

from gpunn.data import Batch
from gpunn.kernels import kernels
from gpunn.layer import Layer
from gpunn.loss import Loss
from gpunn.optim import Optimizer
from gpunn.program.fingerprint import Fingerprint
from gpunn.program.record import NotNowError, NotRecordableError, kind_of

__all__ = ["NotRecordableError", "Program"]


class Program:
    """A step that is recorded when it is first needed, and again when it has changed.

    Attributes
    ----------
    why_not : str
        Why the step is not recorded; empty if it is.
    """

    def __init__(self) -> None:
        self.why_not = "nothing has been run yet"
        self._steps: Any = None
        self._refused: tuple[tuple[Any, ...], Fingerprint] | None = None

    def __reduce__(self) -> tuple[type[Program], tuple[()]]:
        """Return a program that has nothing recorded: what is compiled is of this process."""
        return Program, ()

    def prepare(
        self,
        model: Layer,
        loss: Loss | None,
        optimizer: Optimizer | None,
        batch: Batch | None,
        batch_size: int,
        *,
        penalized: bool = False,
    ) -> Any:
        """Return what makes the steps of an epoch (a `CpuSteps`), or None.

        Parameters
        ----------
        model, loss, optimizer
            What is trained. Without an optimizer it is evaluated; without a loss it predicts.
        batch : Batch or None
            Some of the data; other data of the same kind can be run. None if a batch is not rows
            of the data alone.
        batch_size : int
        penalized : bool, default False
            Whether costs contain the penalty of weight decay.
        """
        parts: Any = (model, loss, optimizer, batch, batch_size)
        if batch is None:
            return self._refuse("the loader makes each batch in a way of its own")
        if self._steps is not None and self._steps.serves(*parts, penalized=penalized):
            return self._steps
        self._steps = None
        runner = _runner_for(batch)
        if isinstance(runner, str):
            return self._refuse(runner)
        asked = (*map(id, parts[:3]), kind_of(batch), batch_size, penalized)
        if self._refused is not None and self._refused[0] == asked and self._refused[1].holds():
            return None
        try:
            self._steps = runner(*parts, penalized=penalized)
        except NotRecordableError as error:
            if not isinstance(error, NotNowError):
                self._refused = asked, Fingerprint(parts[:2])
            return self._refuse(str(error))
        self.why_not, self._refused = "", None
        return self._steps

    def _refuse(self, reason: str) -> None:
        self._steps, self.why_not = None, reason


def _runner_for(batch: Batch) -> Any:
    """Return the class that runs programs where these arrays are, or why there is none."""
    if not kernels(batch.x).compiled:
        return "the steps of this backend are not compiled; pip install gpunn[compiled] for NumPy's"
    return _cpu_steps()


@cache
def _cpu_steps() -> Any:
    try:
        from gpunn.program.cpu import CpuSteps, why_not_here  # noqa: PLC0415 (imports numba)
    except ImportError as error:  # such as that there is no SciPy
        return f"steps cannot be compiled: {error}"
    return why_not_here() or CpuSteps
