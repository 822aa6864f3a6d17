"""Layers whose backward pass fails when it is told to."""

from __future__ import annotations

from typing import Any

import gpunn as gn


class Fault(gn.Layer):
    """Return x, and the gradient; raise `error` instead of the gradient, if there is one."""

    error: BaseException | None = None

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        """Return x."""
        if tape is not None:
            tape.push(self)
        return x

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        """Return the gradient, or raise the error."""
        tape.pop(self)
        if self.error is not None:
            raise self.error
        return grad


class RecordedFault(Fault):
    """The same in steps that are recorded, for as long as there is no error."""

    records = True
    forward, backward = Fault.forward, Fault.backward
