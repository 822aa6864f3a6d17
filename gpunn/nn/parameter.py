"""The arrays that a layer holds: trainable parameters, and buffers, which are not trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any, ClassVar

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, scope_of
from gpunn.arrays.checks import flag
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.memory import copy_of
from gpunn.arrays.portable import Portable
from gpunn.errors import DTypeError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare


class Held:
    """A holder of an array, which can be replaced for all owners at once."""

    __slots__ = ("value",)

    records: ClassVar[bool] = False
    _declared: ClassVar[Declaration]

    def __init_subclass__(cls, **settings: Any) -> None:
        """Note the declarations of the class: a subclass may handle gradients differently."""
        super().__init_subclass__(**settings)
        cls._declared = declare(cls)

    def __init__(self, value: Array) -> None:
        if backend_of(value) is None:
            raise DTypeError(
                f"{type(self).__name__}: expected an array, got {type(value).__name__}; "
                "convert it by numpy.asarray(value)"
            )
        self.value = value

    def move(self, backend: Backend, dtype: Any = None) -> None:
        """Move the value to `backend`, bit for bit unless a `dtype` is given."""
        self.value = backend.asarray(self.value, dtype)

    def put(self, array: Any) -> None:
        """Copy an array of any library, with the same shape, into the value."""
        place = backend_of(self.value)
        assert place is not None  # noqa: S101 (a value is an array)
        with scope_of(self.value):
            array = place.asarray(array, self.value.dtype)
            if hasattr(self.value, "__setitem__"):
                self.value[...] = array
            else:  # NumPy turns sums of 0-d arrays into scalars
                self.value = copy_of(array)

    def arrays(self) -> dict[str, Array | None]:
        """Return the arrays that `move` replaces, by attribute."""
        return {"value": self.value}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle, which can be loaded without the device."""
        return {"value": Portable(self.value)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state from a pickle."""
        self.value = state["value"].array

    def __repr__(self) -> str:
        """Return the shape and dtype, not the values, which may be many and on a device."""
        return f"{type(self).__name__}(shape={tuple(self.value.shape)}, dtype={self.value.dtype})"


@contextmanager
def all_or_none(items: Iterable[Held]) -> Iterator[None]:
    """Restore the arrays of all items if the block fails, such as halfway through a move."""
    before = [(item, item.arrays()) for item in items]
    try:
        yield
    except BaseException:
        for item, arrays in before:
            for name, array in arrays.items():
                setattr(item, name, array)
        raise


_serials = count(1)


def next_serial() -> int:
    """Return a number larger than all those returned before."""
    return next(_serials)


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
        The initial value. The parameter owns it from now on, and the optimizer writes to it.
    decay : bool, default True
        Whether weight decay applies to it: by convention, to weights but not to biases. Read when
        an optimizer is built.

    Attributes
    ----------
    grad : array or None
        dJ/d value, with the shape of `value`, summed over all backward passes since the optimizer's
        last step; None before the first. `train_step` adds only to parameters of its optimizer.
    """

    __slots__ = ("_buffered_value", "_grad_buffer", "decay", "grad", "listener", "serial")
    records = True

    def __init__(self, value: Array, *, decay: bool = True) -> None:
        super().__init__(value)
        dtype = dtype_name(value)
        if not dtype.startswith(("float", "bfloat")):
            raise DTypeError(
                f"{type(self).__name__}: expected floating-point numbers, got {dtype}; "
                "pass value.astype('float32')"
            )
        #: The order of creation among parameters and optimizers; 0 if unpickled.
        self.serial = next_serial()
        self.decay = flag(type(self).__name__, "decay", decay)
        self.grad: Array | None = None
        #: Called after each contribution to the gradient.
        self.listener: Callable[[Parameter], None] | None = None
        self._grad_buffer: Array | None = None
        #: The value that the buffer belongs to; another value needs another buffer.
        self._buffered_value: Array | None = None

    @property
    def grad_buffer(self) -> Array | None:
        """A buffer where a layer may write a gradient before passing it to `add_grad`.

        None if there is a gradient already, or no buffer: the layer then allocates an array. An
        optimizer makes the buffers of its parameters contiguous, to read them as one array.
        """
        vacant = self.grad is None and self.value is self._buffered_value
        return self._grad_buffer if vacant else None

    def set_grad_buffer(self, buffer: Array) -> None:
        """Set the buffer, of the same shape and dtype, for gradients of the current value."""
        self._grad_buffer, self._buffered_value = buffer, self.value

    def add_grad(self, grad: Array) -> None:
        """Add to the gradient; the only way for layers to write it.

        `grad` must be `grad_buffer`, or a new array, which the parameter owns from now on.
        """
        if self.grad is None:
            self.grad = grad
        else:
            with scope_of(grad):  # backward may be called directly
                kernels(grad).accumulate(self.grad, grad)
        if self.listener is not None:
            self.listener(self)

    def set_aside(self) -> Any:
        """Remove the gradient and its buffer, and return both for `put_back`."""
        kept = self.grad, self._buffered_value
        self.grad = self._buffered_value = None
        return kept

    def put_back(self, kept: Any) -> None:
        """Restore what `set_aside` returned; drop any gradient added since then."""
        self.grad, self._buffered_value = kept

    def move(self, backend: Backend, dtype: Any = None) -> None:
        """Move the value and the gradient to `backend`."""
        super().move(backend, dtype)
        if self.grad is not None:
            self.grad = backend.asarray(self.grad, dtype)

    def arrays(self) -> dict[str, Array | None]:
        """Return the arrays that `move` replaces, by attribute."""
        return {"value": self.value, "grad": self.grad}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for a pickle: all but the optimizer's buffer."""
        grad = None if self.grad is None else Portable(self.grad)
        return super().__getstate__() | {"grad": grad, "decay": self.decay}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the state from a pickle."""
        super().__setstate__(state)
        self.grad = None if state["grad"] is None else state["grad"].array
        self.decay = state["decay"]
        self._grad_buffer = self._buffered_value = self.listener = None
        self.serial = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Parameter:
        """Return a parameter with a copy of the value, and without a gradient."""
        copied = Parameter(copy_of(self.value), decay=self.decay)
        copied.serial = self.serial
        return copied
