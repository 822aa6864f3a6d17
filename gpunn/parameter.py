"""The arrays that a layer holds: those that are trained, and those that are not."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array
from gpunn.backend import Backend, copy_of, scope_of


class _Held:
    """An array with a place of its own, so that it can move without its owners noticing."""

    __slots__ = ("value",)

    def __init__(self, value: Array) -> None:
        self.value = value

    def move(self, backend: Backend, dtype: Any = None) -> None:
        """Bring the value to `backend`, bit for bit unless a `dtype` is given."""
        self.value = backend.asarray(self.value, dtype)

    def __repr__(self) -> str:
        """Return the shape and dtype: the values may be many, and on a device."""
        return f"{type(self).__name__}(shape={tuple(self.value.shape)}, dtype={self.value.dtype})"


class Buffer(_Held):
    """State that is saved with a model and moves with it, but is not trained."""

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Buffer:
        """Return a buffer with a copy of the value."""
        return Buffer(copy_of(self.value))


class Parameter(_Held):
    """A trainable array, and the gradient of the cost with respect to it.

    Parameters
    ----------
    value : array
        The initial value. The parameter owns it from now on: the optimizer writes to it.
    decay : bool, default True
        Whether weight decay applies to it: to weights, by custom, and not to biases.

    Attributes
    ----------
    grad : array or None
        dJ/d value, of the shape of `value`, summed over all backward passes since the optimizer's
        last step; None before the first.
    """

    __slots__ = ("decay", "grad")

    def __init__(self, value: Array, *, decay: bool = True) -> None:
        super().__init__(value)
        self.decay = decay
        self.grad: Array | None = None

    def add_grad(self, grad: Array) -> None:
        """Add to the gradient: the one way in which it is written.

        `grad` must be an array that the caller has just made and leaves to the parameter.
        """
        if self.grad is None:
            self.grad = grad
        else:
            with scope_of(grad):  # backward is called by hand, too
                self.grad += grad

    def move(self, backend: Backend, dtype: Any = None) -> None:
        """Bring the value and the gradient to `backend`."""
        super().move(backend, dtype)
        if self.grad is not None:
            self.grad = backend.asarray(self.grad, dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """Return a parameter with a copy of the value, and without a gradient."""
        return Parameter(copy_of(self.value), decay=self.decay)
