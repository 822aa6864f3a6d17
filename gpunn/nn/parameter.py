"""The arrays that a layer holds: those that are trained, and those that are not."""

from __future__ import annotations

from typing import Any, ClassVar

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, scope_of
from gpunn.arrays.checks import flag
from gpunn.arrays.memory import copy_of
from gpunn.errors import DTypeError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare


class Held:
    """An array with a place of its own, so that it can move without its owners noticing."""

    __slots__ = ("value",)

    records: ClassVar[bool] = False
    _declared: ClassVar[Declaration]

    def __init_subclass__(cls, **settings: Any) -> None:
        """Note what the class says of itself: a subclass may treat gradients in its own way."""
        super().__init_subclass__(**settings)
        cls._declared = declare(cls)

    def __init__(self, value: Array) -> None:
        if backend_of(value) is None:
            raise DTypeError(
                f"{type(self).__name__}: expected an array, got {type(value).__name__}; "
                "numpy.asarray(value) makes one"
            )
        self.value = value

    def move(self, backend: Backend, dtype: Any = None) -> None:
        """Bring the value to `backend`, bit for bit unless a `dtype` is given."""
        self.value = backend.asarray(self.value, dtype)

    def __repr__(self) -> str:
        """Return the shape and dtype: the values may be many, and on a device."""
        return f"{type(self).__name__}(shape={tuple(self.value.shape)}, dtype={self.value.dtype})"


class Buffer(Held):
    """State that is saved with a model and moves with it, but is not trained."""

    __slots__ = ()
    records = True

    def __deepcopy__(self, memo: dict[int, Any]) -> Buffer:
        """Return a buffer with a copy of the value."""
        return Buffer(copy_of(self.value))


class Parameter(Held):
    """A trainable array, and the gradient of the cost with respect to it.

    Parameters
    ----------
    value : array
        The initial value. The parameter owns it from now on: the optimizer writes to it.
    decay : bool, default True
        Whether weight decay applies to it: to weights, by custom, and not to biases. An optimizer
        reads it when it is built.

    Attributes
    ----------
    grad : array or None
        dJ/d value, of the shape of `value`, summed over all backward passes since the optimizer's
        last step; None before the first. `train_step` adds to those that its optimizer holds only.
    """

    __slots__ = ("_room", "_room_is_for", "decay", "grad")
    records = True

    def __init__(self, value: Array, *, decay: bool = True) -> None:
        super().__init__(value)
        self.decay = flag(type(self).__name__, "decay", decay)
        self.grad: Array | None = None
        self._room: Array | None = None
        self._room_is_for: Array | None = None

    @property
    def room(self) -> Array | None:
        """Where a layer may write the next gradient, before it hands it to `add_grad`.

        None if that place is taken by the gradient so far, or there is none: the layer then makes a
        new array. An optimizer gives each parameter a place, beside that of the next parameter, so
        that it can read them all as one.
        """
        vacant = self.grad is None and self.value is self._room_is_for
        return self._room if vacant else None

    def give_room(self, room: Array) -> None:
        """Set the place for gradients of the present value, of its shape and dtype."""
        self._room, self._room_is_for = room, self.value

    def add_grad(self, grad: Array) -> None:
        """Add to the gradient: the one way in which it is written.

        `grad` must be `room`, or an array that the caller has just made; it is left to the
        parameter.
        """
        if self.grad is None:
            self.grad = grad
        else:
            with scope_of(grad):  # backward is called by hand, too
                kernels(grad).accumulate(self.grad, grad)

    def set_aside(self) -> Any:
        """Take the gradient and its room away; return both, for `put_back`."""
        kept = self.grad, self._room_is_for
        self.grad = self._room_is_for = None
        return kept

    def put_back(self, kept: Any) -> None:
        """Take back what `set_aside` has returned, in place of any gradient that came since."""
        self.grad, self._room_is_for = kept

    def move(self, backend: Backend, dtype: Any = None) -> None:
        """Bring the value and the gradient to `backend`."""
        super().move(backend, dtype)
        if self.grad is not None:
            self.grad = backend.asarray(self.grad, dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Return what is kept in a pickle: all but the place that an optimizer gave."""
        return {"value": self.value, "grad": self.grad, "decay": self.decay}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take what a pickle has kept."""
        self.value, self.grad, self.decay = state["value"], state["grad"], state["decay"]
        self._room = self._room_is_for = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """Return a parameter with a copy of the value, and without a gradient."""
        return Parameter(copy_of(self.value), decay=self.decay)
