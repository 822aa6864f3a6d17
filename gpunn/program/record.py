"""A training step as a list of operations: found by running it once on stand-ins for arrays.

The readable step does all its work in kernels. Run on stand-ins, which have a shape, a dtype and a
place and nothing else, it leaves the list of its kernel calls. Whatever else a layer or a loss
does with a stand-in raises, and training stays with the readable loop: what is not known is slow,
never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NoReturn

from gpunn._typing import Array, Shape
from gpunn.backend import Backend
from gpunn.kernels.declared import kernel_of
from gpunn.kernels.generic import Formula, Kernels
from gpunn.layer import Layer
from gpunn.loss import Loss
from gpunn.parameter import Parameter
from gpunn.tape import Tape


class NotRecordableError(Exception):
    """A step does something that is no kernel call; the message says what."""


class NotNowError(NotRecordableError):
    """A step cannot be recorded in the present state of its parts, which may pass."""


class Value:
    """An array of the step, of which only what it is like is known.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of the arrays' library.
    by_sample : bool
        Whether the first axis is the batch. Lengths do not tell: a batch may have as many samples
        as a sample has features.
    storage : Value
        The value whose memory this one shares: itself, unless an operation works in place.
    """

    __slots__ = ("by_sample", "dtype", "shape", "storage")

    def __init__(
        self, shape: Shape, dtype: Any, *, by_sample: bool, storage: Value | None = None
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.by_sample = by_sample
        self.storage: Value = self if storage is None else storage.storage

    @property
    def width(self) -> int:
        """The number of entries of a sample, or of a row."""
        return math.prod(self.shape[1:])

    def __repr__(self) -> str:
        """Return the shape and dtype."""
        return f"Value({self.shape}, {self.dtype})"


class Key:
    """Stands for the key of a random mask: the `index`-th that a step draws."""

    def __init__(self, index: int) -> None:
        self.index = index


@dataclass(frozen=True)
class Operation:
    """A kernel call.

    Attributes
    ----------
    kernel : str
        The name of the method of `Kernels`.
    inputs : tuple of Value, array, number, Key or None
        Arrays are those that outlive the step: parameters, and what the optimizer keeps.
    outputs : tuple of Value or array
        Arrays are written to in place.
    formula : object, optional
        The activation or loss whose formula it is; it names the kernel that serves it.
    settings : dict
        Numbers that stay the same from step to step.
    """

    kernel: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    formula: Any = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recording:
    """The operations of a step on one batch size, and what goes in and comes out.

    Attributes
    ----------
    operations : list of Operation
    x, y, sample_weight : Value or None
        The batch.
    prediction, cost : Value or None
        The model's output, and J; the cost of a step that has a loss.
    n_keys : int
        How many random masks a step draws.
    grads : dict of int to array
        Where the gradient of each parameter ends up, by the parameter's position.
    """

    operations: list[Operation] = field(default_factory=list)
    x: Value | None = None
    y: Value | None = None
    sample_weight: Value | None = None
    prediction: Value | None = None
    cost: Value | None = None
    n_keys: int = 0
    grads: dict[int, Array] = field(default_factory=dict)


class Traced:
    """A stand-in for an array while a step is recorded.

    It answers what layers ask before they compute (shape, dtype, place, transpose) and refuses
    everything else.
    """

    __slots__ = ("__gpunn_backend__", "__gpunn_kernels__", "transposed", "value")
    __array_ufunc__ = None  # NumPy's arrays shall not compute with it, either

    def __init__(
        self, value: Value, recorder: RecordingKernels, *, transposed: bool = False
    ) -> None:
        self.value = value
        self.transposed = transposed
        self.__gpunn_kernels__ = recorder
        self.__gpunn_backend__ = recorder.backend

    @property
    def shape(self) -> Shape:
        """The lengths of the axes."""
        return self.value.shape[::-1] if self.transposed else self.value.shape

    @property
    def dtype(self) -> Any:
        """The dtype of the array that it stands for."""
        return self.value.dtype

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.value.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.value.shape)

    @property
    def T(self) -> Traced:  # noqa: N802 (as in the standard)
        """The transpose, of two axes."""
        if self.ndim != 2:
            _refuse(f"the transpose of {self.ndim} axes")
        return Traced(self.value, self.__gpunn_kernels__, transposed=not self.transposed)

    def __getattr__(self, name: str) -> NoReturn:
        """Refuse what a stand-in does not have."""
        _refuse(f"asking an array for `{name}`")

    def __bool__(self) -> NoReturn:
        """Refuse to be a condition."""
        _refuse("a branch on the values of an array")

    def __len__(self) -> NoReturn:
        """Refuse, as for a number that the batch decides."""
        _refuse("len(array)")

    def __iter__(self) -> NoReturn:
        """Refuse to be taken apart."""
        _refuse("a loop over an array")

    def __repr__(self) -> str:
        """Return what it stands for."""
        return f"Traced({self.shape}, {self.dtype})"


def _refuse(what: str) -> NoReturn:
    raise NotRecordableError(f"{what} is no kernel call")


class _Facts:
    """What a namespace says of dtypes; it computes nothing."""

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def __getattr__(self, name: str) -> Any:
        """Return a dtype, or what tells dtypes apart."""
        if name in ("isdtype", "finfo", "float32", "float64", "int64", "bool"):
            return getattr(self._xp, name)
        return _refuse(f"`xp.{name}`")


@cache
def _facts_of(xp: Any) -> _Facts:
    return _Facts(xp)


class RecordingKernels(Kernels):
    """Kernels that write down what they are asked to do.

    Parameters
    ----------
    backend : Backend
        Where the arrays would be.
    """

    def __init__(self, backend: Backend) -> None:
        super().__init__(_facts_of(backend.xp))
        self.backend = backend
        self.operations: list[Operation] = []

    def _input(self, shape: Shape, dtype: Any) -> Traced:
        """Return a stand-in for an array of the batch."""
        return Traced(Value(shape, dtype, by_sample=True), self)

    # Layers

    def product(self, x: Any, y: Any, into: Array | None = None) -> Any:
        """Record x @ y: of a batch and a weight, or over the batch, as for a weight's gradient."""
        if _is_batch(x) and not isinstance(y, Traced):
            return self._add("product", (x, y), (x.shape[0], y.shape[1]), x.dtype, into=into)
        if isinstance(x, Traced) and x.transposed and _is_batch(y):
            shape = x.shape[0], y.shape[1]
            return self._add(
                "product_over_batch", (x.T, y), shape, y.dtype, into=into, by_sample=False
            )
        return _refuse("a product that is neither batch @ weight nor batch.T @ batch")

    def activation(self, x: Any, formula: Formula) -> Any:
        """Record h = f(x)."""
        if _named(formula) == "identity":
            return x
        return self._add("activation", (x,), x.shape, x.dtype, formula=formula)

    def bias_activation(self, z: Any, bias: Array | None, formula: Formula) -> tuple[Any, Any]:
        """Record h = f(z + bias), in the place of z where f's gradient needs h alone."""
        kernel = _named(formula)
        if bias is None and kernel == "identity":
            return z, z
        result = Value(z.shape, z.dtype, by_sample=True, storage=z.value)
        if formula.saves_output:
            self._append("bias_activation", (z, bias), (result,), formula)
            return (Traced(result, self),) * 2
        h = Value(z.shape, z.dtype, by_sample=True)
        self._append("bias_activation", (z, bias), (h, result), formula)
        return Traced(h, self), Traced(result, self)

    def activation_backward(self, grad: Any, saved: Any, formula: Formula) -> Any:
        """Record dJ/dx of h = f(x)."""
        if _named(formula) == "identity":
            return grad
        return self._add(
            "activation_backward", (grad, saved), grad.shape, grad.dtype, formula=formula
        )

    def bias_activation_backward(
        self, grad: Any, saved: Any, formula: Formula, into: Array | None = None
    ) -> tuple[Any, Any]:
        """Record dJ/dz, and its column sums, the gradient of the bias."""
        if _named(formula) == "identity":
            return grad, self.column_sums(grad, into)
        dz = Value(grad.shape, grad.dtype, by_sample=True)
        sums = self._place(into, grad.shape[1:], grad.dtype)
        self._append("bias_activation_backward", (grad, saved), (dz, _value(sums)), formula)
        return Traced(dz, self), sums

    def column_sums(self, x: Any, into: Array | None = None) -> Any:
        """Record the sums over the batch."""
        return self._add("column_sums", (x,), x.shape[1:], x.dtype, into=into, by_sample=False)

    def convert(self, x: Any, dtype: Any) -> Any:
        """Record a change of dtype."""
        return x if x.dtype == dtype else self._add("convert", (x,), x.shape, dtype)

    def dropout(self, x: Any, key: Any, rate: float) -> tuple[Any, Any]:
        """Record x times a mask, and the mask."""
        if not isinstance(key, Key):
            _refuse("a random mask whose key is not the tape's")
        y, mask = (Value(x.shape, x.dtype, by_sample=True) for _ in range(2))
        self._append("dropout", (x, key), (y, mask), settings={"rate": rate})
        return Traced(y, self), Traced(mask, self)

    def add(self, x: Any, y: Any) -> Any:
        """Record x + y, of one shape."""
        return self._of_alike("add", x, y)

    def multiply(self, x: Any, y: Any) -> Any:
        """Record x * y, of one shape."""
        return self._of_alike("multiply", x, y)

    def accumulate(self, total: Any, x: Any) -> None:
        """Record total += x, of a gradient and one more part of it."""
        if not isinstance(x, Traced) or x.transposed or x.value.by_sample:
            _refuse("adding to a gradient what is none")
        self._append("accumulate", (x,), (_value(total),))

    def reshape(self, x: Any, shape: Shape) -> Any:
        """Return the same memory in another shape."""
        if not _is_batch(x) or shape[0] != x.shape[0]:
            _refuse("a change of shape that touches the batch")
        return Traced(Value(tuple(shape), x.dtype, by_sample=True, storage=x.value), self)

    # Losses

    def loss(
        self, formula: Any, prediction: Any, target: Any, scale: Any, *, summed: bool
    ) -> tuple[Any, Any]:
        """Record the cost, or the scaled loss of each sample, and the gradient."""
        if kernel_of(formula) is None:
            _refuse(f"the formula of {type(formula).__name__}")
        cost = Value(() if summed else prediction.shape[:1], prediction.dtype, by_sample=not summed)
        grad = Value(prediction.shape, prediction.dtype, by_sample=True)
        inputs = (prediction, target, scale)
        self._append("loss", inputs, (cost, grad), formula, {"summed": summed})
        return Traced(cost, self), Traced(grad, self)

    def class_mass(self, target: Any, class_weight: Array) -> Any:
        """Record the weight of each sample's class."""
        shape = target.shape[:1]
        return self._add("class_mass", (target, class_weight), shape, class_weight.dtype)

    def mean_scale(self, weight: Any, mass: Any) -> Any:
        """Record what multiplies each loss in a weighted mean."""
        like = mass if weight is None else weight
        return self._add("mean_scale", (weight, mass), like.shape, like.dtype)

    # How it is written down

    def _of_alike(self, kernel: str, x: Any, y: Any) -> Any:
        if not (_is_batch(x) and _is_batch(y) and x.shape == y.shape and x.dtype == y.dtype):
            _refuse(f"`{kernel}` of arrays that are not alike")
        return self._add(kernel, (x, y), x.shape, x.dtype)

    def _add(
        self,
        kernel: str,
        inputs: tuple[Any, ...],
        shape: Sequence[int],
        dtype: Any,
        *,
        into: Array | None = None,
        formula: Any = None,
        by_sample: bool = True,
    ) -> Any:
        """Record an operation with one result; return a stand-in for it, or where it went."""
        result = self._place(into, tuple(shape), dtype, by_sample=by_sample)
        self._append(kernel, inputs, (_value(result),), formula)
        return result

    def _place(
        self, into: Array | None, shape: Shape, dtype: Any, *, by_sample: bool = False
    ) -> Any:
        return Traced(Value(shape, dtype, by_sample=by_sample), self) if into is None else into

    def _append(
        self,
        kernel: str,
        inputs: tuple[Any, ...],
        outputs: tuple[Any, ...],
        formula: Any = None,
        settings: dict[str, Any] | None = None,
    ) -> None:
        taken = tuple(map(_value, inputs))
        self.operations.append(Operation(kernel, taken, outputs, formula, settings or {}))


def _value(x: Any) -> Any:
    """Return the value that a stand-in stands for, or anything else as it is."""
    if not isinstance(x, Traced):
        return x
    if x.transposed:
        _refuse("a transposed batch outside of a product")
    return x.value


def _is_batch(x: Any) -> bool:
    return isinstance(x, Traced) and x.value.by_sample and not x.transposed


def _named(formula: Any) -> str:
    """Return the kernel that a formula names; one without is not recordable."""
    kernel = kernel_of(formula)
    return _refuse(f"the formula of {type(formula).__name__}") if kernel is None else kernel


class _RecordingTape(Tape):
    """A tape that hands out stand-ins for keys."""

    __slots__ = ("n_keys",)

    def __init__(self, **settings: Any) -> None:
        super().__init__(input_grad=False, **settings)
        self.n_keys = 0

    def draw_key(self) -> Any:
        """Return a stand-in for one more key."""
        self.n_keys += 1
        return Key(self.n_keys - 1)


def kind_of(batch: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shape of a sample and the dtype of each part of a batch."""
    return tuple(None if part is None else (part.shape[1:], part.dtype) for part in batch)


@dataclass(frozen=True)
class BatchLike:
    """Shapes and dtypes of a batch.

    Attributes
    ----------
    x, y, sample_weight : (shape, dtype) or None
        Shapes with the batch as first axis.
    """

    x: tuple[Shape, Any]
    y: tuple[Shape, Any] | None = None
    sample_weight: tuple[Shape, Any] | None = None

    @classmethod
    def of(cls, n: int, kind: Sequence[Any]) -> BatchLike:
        """Return a batch of n samples of the kind that `kind_of` has returned."""
        x, y, weight = (None if part is None else ((n, *part[0]), part[1]) for part in kind)
        assert x is not None  # noqa: S101 (there are always features)
        return cls(x, y, weight)


def record_step(
    model: Layer,
    loss: Loss,
    parameters: Sequence[Parameter],
    batch: BatchLike,
    place: Backend,
) -> Recording:
    """Return the operations of a step: forward, the loss, backward; not the update.

    Parameters
    ----------
    model, loss
        What is trained, and on what cost.
    parameters : sequence of Parameter
        What the optimizer updates; each without a gradient, and with a place for one.
    batch : BatchLike
        The batch.
    place : Backend
        Where it would be.

    Raises
    ------
    NotRecordableError
        If the step does anything but call kernels.
    """
    recorder, tape = RecordingKernels(place), _RecordingTape(parameters=frozenset(parameters))
    with _restored(model):
        x, y, weight = _inputs(recorder, batch)
        prediction = model.forward(x, tape)
        cost = loss.forward(prediction, y, tape, weight)
        model.backward(loss.backward(tape), tape)
        grads = {i: p.grad for i, p in enumerate(parameters) if p.grad is not None}
    recording = _recording_of(recorder, x, y, weight, prediction, cost)
    recording.n_keys, recording.grads = tape.n_keys, grads
    return recording


def record_forward(model: Layer, loss: Loss | None, batch: BatchLike, place: Backend) -> Recording:
    """Return the operations of a prediction, and of its cost if there is a loss."""
    recorder = RecordingKernels(place)
    with _restored(model):
        x, y, weight = _inputs(recorder, batch)
        prediction = model.forward(x)
        cost = None if loss is None else loss.forward(prediction, y, None, weight)
    return _recording_of(recorder, x, y, weight, prediction, cost)


def _recording_of(recorder: RecordingKernels, *parts: Any) -> Recording:
    """Return what was recorded, of x, y, weights, prediction and cost."""
    *batch, cost = parts
    x, y, weight, prediction = map(_batch_value, batch)
    return Recording(recorder.operations, x, y, weight, prediction, _value(cost))


def _inputs(recorder: RecordingKernels, batch: BatchLike) -> list[Traced | None]:
    parts = (batch.x, batch.y, batch.sample_weight)
    return [None if part is None else recorder._input(*part) for part in parts]


def _batch_value(x: Any) -> Value | None:
    """Return the value of an array of the batch, if there is one."""
    if x is None:
        return None
    if not _is_batch(x):
        _refuse("a model whose output is no batch")
    value: Value = x.value
    return value


@contextmanager
def _restored(model: Layer) -> Iterator[None]:
    """Put the gradients back as they were; say of any failure that this cannot be recorded.

    The failure may be a mistake of the user's: the readable loop comes next, and meets it, too.
    """
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        yield
    except NotRecordableError:
        raise
    except Exception as error:
        raise NotRecordableError(f"{type(error).__name__}: {error}") from error
    finally:
        for parameter, grad in before:
            parameter.grad = grad
