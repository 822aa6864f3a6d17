"""The interfaces that kernels expect of activations, losses and update rules."""

from __future__ import annotations

from typing import Any, Protocol

from gpunn._typing import Array, Namespace


class ActivationFormula(Protocol):
    """An activation function and its gradient, in functions of the standard.

    Attributes
    ----------
    saves_output : bool
        Whether the gradient is computed from h = f(x), or from x.
    """

    saves_output: bool

    def function(self, xp: Namespace, x: Array) -> Array:
        """Return h = f(x)."""

    def gradient(self, xp: Namespace, grad: Array, saved: Array) -> Array:
        """Return dJ/dx from dJ/dh and `saved`: h or x, see `saves_output`."""


class LossFormula(Protocol):
    """A loss and its gradient, in functions of the standard."""

    def compute(
        self, prediction: Array, target: Array, scale: Any, *, summed: bool
    ) -> tuple[Array, Array]:
        """Return scale * L (N,), or its sum if `summed`; and the gradient of the sum."""


class UpdateRule(Protocol):
    """An optimizer's update of one array, in functions of the standard."""

    def update(
        self, xp: Namespace, value: Array, grad: Array, states: list[Array], step_size: float
    ) -> None:
        """Update a value and its states in place; `grad` may be overwritten."""


def per_row(scale: Any, ndim: int = 2) -> Any:
    """Return a loss's scale shaped to multiply predictions of `ndim` axes.

    (N,) becomes (N, 1) or (N, 1, 1); a number or a 0-d array is returned unchanged.
    """
    return scale[(slice(None), *[None] * (ndim - 1))] if getattr(scale, "ndim", 0) else scale
