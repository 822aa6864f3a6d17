"""The base class of layers: a forward pass, its backward pass, and named arrays."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import Backend, backend_of, device_mismatch, get_backend, scope_of
from gpunn.arrays.capacity import memory_for, shortage
from gpunn.arrays.checks import float_dtype, sample_shape
from gpunn.arrays.exchange import check_ordinary
from gpunn.arrays.facts import is_floating, is_integer, is_out_of_memory
from gpunn.arrays.state import check_arrays
from gpunn.errors import DeviceError, DeviceMemoryError, DTypeError, SettingError, ShapeError
from gpunn.kernels.declared import Declaration, declare
from gpunn.nn.parameter import Buffer, Held, Parameter, all_or_none
from gpunn.nn.tape import Tape
from gpunn.nn.tree import Node, children, entrance

if TYPE_CHECKING:
    from gpunn.nn.memory import HasState, MemoryReport
    from gpunn.nn.summary import Summary

_Kind = TypeVar("_Kind", bound=Held)
_Self = TypeVar("_Self", bound="Layer")


class Layer(Node):
    """A differentiable function with parameters; the base of every layer and network.

    A subclass defines `forward` and `backward` and keeps its `Parameter`, `Buffer` and `Layer`
    objects as plain attributes, alone or in lists, tuples and dicts; they are found by walking
    ``vars(layer)``. Three rules apply:

    - with a tape, `forward` pushes exactly one entry, which `backward` pops;
    - a layer never writes to an array that it was given;
    - the first axis is the batch, of any length.

    A layer that takes integers, such as tokens, sets ``takes_integers = True`` in its class body,
    and its backward pass returns None. Further inputs, such as a mask, are keywords of `forward`.

    If only a part of a model is trained, a layer can skip gradients that are not needed: it asks
    ``tape.wants(self.factor)`` before computing a parameter's gradient, and `Tape.wants_grad`
    before computing that of its input. Training is correct even if it does not ask.

    Examples
    --------
    >>> import gpunn as gn
    >>> class Scale(gn.Layer):
    ...     def __init__(self, factor):
    ...         self.factor = gn.Parameter(factor)
    ...
    ...     def forward(self, x, tape=None):
    ...         if tape is not None:
    ...             tape.push(self, x)
    ...         return x * self.factor.value
    ...
    ...     def backward(self, grad, tape):
    ...         (x,) = tape.pop(self)
    ...         self.factor.add_grad((grad * x).sum(axis=0))
    ...         return grad * self.factor.value
    """

    #: Whether the layer has parameters of its own. False saves gradients that only it would need.
    has_parameters: ClassVar[bool] = True

    #: Whether steps with this layer can be recorded: it does all its work in kernels
    #: (``kernels(x).product(x, y)``), and none of its attributes changes from call to call.
    #: Attributes must be numbers, strings, arrays, layers, or lists or dicts of these. An object of
    #: another kind could change unnoticed: a layer with such an attribute is not recorded.
    records: ClassVar[bool] = False

    _declared: ClassVar[Declaration]

    def __init_subclass__(cls, **settings: Any) -> None:
        """Note the declarations of the class itself; those of its base may not hold for it."""
        super().__init_subclass__(**settings)
        if "has_parameters" not in vars(cls):
            cls.has_parameters = True
        cls._declared = declare(cls)

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return the layer's output for a batch `x`; save on the tape what `backward` needs.

        It checks only what is cheap to check; calling the layer checks more.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward(x, tape)")

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx from `grad` = dJ/dy; add to the gradients of the layer's parameters.

        None stands for a gradient that no layer below needs; see `Tape.wants_grad`. In a loop of
        your own, clear the gradients if this fails, ``optimizer.clear()``: some may be incomplete.
        """
        raise NotImplementedError(f"{type(self).__name__} must define backward(grad, tape)")

    def __call__(self, x: Array, tape: Tape | None = None, **inputs: Any) -> Array:
        """Check `x`, then run `forward` on the device of `x`.

        Parameters
        ----------
        x : array
            The batch.
        tape : Tape, optional
            For a backward pass.
        **inputs : array
            Further inputs that the layer's `forward` takes, such as a mask.

        Raises
        ------
        DTypeError
            If `x` is not an array of floating-point numbers; or of integers, for a layer that takes
            those.
        ShapeError
            If `x` has no first axis.
        DeviceError
            If `x` and the layer's parameters are on different devices.
        DeviceMemoryError
            If the device has too little memory.
        """
        place = backend_of(x)
        if place is None:
            raise DTypeError(
                f"{self!r}: expected an array, got {type(x).__name__}; "
                "convert it by numpy.asarray(x)"
            )
        check_ordinary(repr(self), "x", x)
        if not x.ndim:
            raise ShapeError(
                f"{self!r}: expected a batch, x of shape (N, ...), got a single number"
            )
        if entrance(self).takes_integers:
            if not is_integer(place.xp, x.dtype):
                raise wants_integers(self, x)
        elif not is_floating(place.xp, x.dtype):
            raise DTypeError(
                f"{self!r}: expected floating-point x, got {x.dtype}; "
                'convert it, e.g. x.astype("float32")'
            )
        if place.package != "numpy":  # a GPU would read invalid memory; NumPy raises by itself
            self._check_place(place)
        try:
            with scope_of(x):
                y = self.forward(x, tape, **inputs)
        except TypeError:
            self._check_place(place)
            _check_signatures(self, set())
            raise
        except Exception as error:
            if isinstance(error, DeviceMemoryError) or not is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # the traceback holds the pass's arrays
        else:
            if y is None:
                raise SettingError(f"{self!r}: forward returned None; return the output")
            return y
        raise shortage(
            f"{self!r}, in a pass over {x.shape[0]} samples",
            place,
            failure,
            "pass fewer samples at a time, in smaller batches",
        ) from failure

    def _check_place(self, place: Backend) -> None:
        home = self.backend
        if home is not None and home != place:
            raise device_mismatch(repr(self), home, place)

    def named_parameters(self) -> dict[str, Parameter]:
        """Return the trainable arrays by dotted name (``layers.0.weight``), each once."""
        return dict(_walk(self, Parameter))

    def named_buffers(self) -> dict[str, Buffer]:
        """Return the arrays that are saved but not trained, by dotted name, each once."""
        return dict(_walk(self, Buffer))

    def parameters(self) -> list[Parameter]:
        """Return the trainable arrays, each once; an optimizer takes this list."""
        return list(self.named_parameters().values())

    def buffers(self) -> list[Buffer]:
        """Return the arrays that are saved but not trained, each once."""
        return list(self.named_buffers().values())

    def state_dict(self) -> dict[str, Array]:
        """Return the values of the parameters and buffers by dotted name.

        They are the layer's own arrays: copy or write them before they change.
        """
        held = {**self.named_parameters(), **self.named_buffers()}
        return {name: item.value for name, item in held.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy values from a state, in place; `gn.load` reads them from a file.

        Raises
        ------
        StateError
            With all names, shapes and dtypes that differ; nothing has changed then.
        """
        check_arrays(type(self).__name__, state, self.state_dict())
        for name, item in {**self.named_parameters(), **self.named_buffers()}.items():
            item.put(state[name])

    def holds_any(self, parameters: Collection[Parameter]) -> bool:
        """Return whether the layer holds any of these parameters."""
        return any(parameter in parameters for parameter in self.parameters())

    @property
    def backend(self) -> Backend | None:
        """The backend of the parameters; None for a layer without any.

        Raises
        ------
        DeviceError
            If they are on different devices.
        """
        places: dict[Backend | None, str] = {}
        for name, item in _walk(self, Held):
            places.setdefault(backend_of(item.value), name)
        if len(places) > 1:
            where = ", ".join(f"{name} on {place}" for place, name in places.items())
            raise DeviceError(f"{self!r}: its parameters are on different devices: {where}")
        return next(iter(places), None)

    def to(self: _Self, backend: str | Backend | None = None, *, dtype: str | None = None) -> _Self:
        """Move the parameters and buffers, in place; return the layer itself.

        Parameters
        ----------
        backend : str, Backend or None
            The target, as for `get_backend`. Values are moved bit for bit. None moves nothing.
        dtype : {"float32", "float64"}, optional
            The dtype to convert floating-point values to.

        An optimizer has arrays on the same device: build it after the move.

        Raises
        ------
        DeviceMemoryError
            If the target has too little memory; the layer is then unchanged.
        """
        dtype = None if dtype is None else float_dtype(repr(self), dtype)
        target = None if backend is None else get_backend(backend)
        items: list[Held] = [*self.parameters(), *self.buffers()]
        with all_or_none(items):
            for item in items:
                home = backend_of(item.value)
                assert home is not None  # noqa: S101 (parameters hold arrays)
                floating = home.xp.isdtype(item.value.dtype, "real floating")
                place = target or home
                with memory_for(f"{self!r}.to", place, "free other memory on the device"):
                    item.move(place, dtype if floating else None)
        return self

    def output_shape(self, input_shape: Shape | int) -> Shape:
        """Return the shape of one sample's output, given that of its input."""
        input_shape = sample_shape("output_shape", input_shape)
        from gpunn.nn.trial import trial_batch  # noqa: PLC0415 (few programs need it)

        x = trial_batch(self, input_shape, 1)
        with scope_of(x):
            return tuple(self.forward(x).shape[1:])

    def summary(self, input_shape: Shape | int | None = None) -> Summary:
        """Return a table of the layers: their outputs, parameters, operations and saved bytes.

        Parameters
        ----------
        input_shape : int or tuple of int, optional
            The shape of one sample. By default it is taken from the first layer with
            `in_features`.

        Returns
        -------
        Summary
            A string, which notebooks show as a table. Its columns are the layer, the shape of its
            output, its parameters, its floating-point operations, the bytes that it saves on the
            tape, and the shapes of its parameters. A layer's numbers exclude those of the layers
            within it.

        Notes
        -----
        Operations are those of the matrix products in a forward pass over one sample, 2 per
        multiply-add. They are counted by running copies of the layers on arrays that count. A
        question mark stands for a layer that does not work with such arrays, for example because it
        converts them to NumPy.

        Bytes per sample are the difference between passes over two samples and over three.
        """
        from gpunn.nn.summary import summarize  # noqa: PLC0415 (few programs need it)

        return summarize(self, input_shape)

    def memory(
        self,
        batch_size: int,
        *,
        input_shape: Shape | int | None = None,
        optimizer: HasState | None = None,
    ) -> MemoryReport:
        """Return the bytes that a training step holds, by purpose.

        Parameters
        ----------
        batch_size : int
            Number of samples.
        input_shape : int or tuple of int, optional
            The shape of one sample. By default it is taken from the first layer with
            `in_features`.
        optimizer : Optimizer, optional
            The optimizer whose states to count.

        Returns
        -------
        MemoryReport
            Parameters, gradients, the optimizer's state, and the tape by layer, measured on
            batches of two and three samples. `str` returns it as a table.
        """
        from gpunn.nn.memory import account  # noqa: PLC0415 (few programs need it)

        return account(self, batch_size, input_shape, optimizer)

    def workspace_bytes(self, saved: tuple[Any, ...], batch_size: int) -> int:  # noqa: ARG002
        """Return the bytes that kernels need while they run, for a given batch size.

        `saved` is the tape's entry from a forward pass over a few samples.
        """
        return 0

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"{type(self).__name__}()"


def wants_integers(layer: Layer, x: Any) -> DTypeError:
    """Return the error for an input that does not hold the integers that a layer takes."""
    came = f"x of {x.dtype}" if hasattr(x, "dtype") else type(x).__name__
    return DTypeError(
        f"{layer!r}: expected an array of integers, got {came}; "
        'a Loader keeps them with keep_integers=True; or convert x by x.astype("int64")'
    )


def first_parameter(layer: Layer) -> Parameter | None:
    """Return a layer's first parameter, or None, without looking for the others."""
    return next((parameter for _, parameter in _walk(layer, Parameter)), None)


def _check_signatures(value: Any, seen: set[int]) -> None:
    """Check that `forward` of a layer, and of all layers in it, takes a batch and a tape."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Layer):
        try:
            inspect.signature(value.forward).bind(None, None)
        except TypeError as error:
            raise SettingError(
                f"{value!r}: forward must take a batch and a tape, "
                f"def forward(self, x, tape=None); {error}"
            ) from None
    for _, item in children(value):
        _check_signatures(item, seen)


def as_instance(kind: type) -> str:
    """Return the end of an error message about a class given instead of an instance."""
    settings = inspect.signature(kind).parameters.values()
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    bare = all(s.default is not s.empty or s.kind in optional for s in settings)
    call = f"{kind.__name__}({'' if bare else '...'})"
    library = "gn." if kind.__module__.startswith("gpunn.") else ""
    return f"the class {kind.__name__}; pass {library}{call}"


def _walk(
    value: Any, kind: type[_Kind], prefix: str = "", seen: set[int] | None = None
) -> Iterator[tuple[str, _Kind]]:
    """Yield all objects of a kind below `value`, by dotted name, in the order of attributes."""
    seen = set() if seen is None else seen
    for name, item in children(value):
        if id(item) in seen:
            continue
        if isinstance(item, kind):
            seen.add(id(item))
            yield prefix + name, item
        elif isinstance(item, (Layer, list, tuple, dict)):
            seen.add(id(item))
            yield from _walk(item, kind, f"{prefix}{name}.", seen)
