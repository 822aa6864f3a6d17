"""The parts of a recording: values, which have only a shape and a dtype, and operations on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn
from weakref import ref

from gpunn._typing import Array, Shape


class NotRecordableError(Exception):
    """A step does something other than call a kernel; the message says what."""


class UnsteadyError(NotRecordableError):
    """Running the step changes the model, so recording must not be tried again."""


class NotNowError(NotRecordableError):
    """A step cannot be recorded in the current state of its parts, which may pass."""


class FailedError(NotRecordableError):
    """Recording failed for a reason that may pass, such as a lack of memory."""


class Value:
    """An array of the step, known only by its shape, dtype and memory.

    Attributes
    ----------
    shape : tuple of int
    dtype : dtype
        Of the arrays' library.
    by_sample : bool
        Whether it holds the samples of the batch one after another: its first axis is the batch, or
        the rows of all samples, equally many of each. The shape does not tell: a batch may have as
        many samples as a sample has features.
    storage : Value
        The value whose memory it shares: itself, unless it is the result of an operation in place
        or of a change of shape.
    """

    __slots__ = ("_storage", "by_sample", "dtype", "shape")

    def __init__(
        self, shape: Shape, dtype: Any, *, by_sample: bool, storage: Value | None = None
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.by_sample = by_sample
        self._storage = None if storage is None else storage.storage

    @property
    def storage(self) -> Value:
        """The value whose memory this one shares; itself if it shares none."""
        return self if self._storage is None else self._storage

    @property
    def width(self) -> int:
        """The number of entries in a sample, or in a row."""
        return math.prod(self.shape[1:])

    def __repr__(self) -> str:
        """Return the shape and dtype."""
        return f"Value({self.shape}, {self.dtype})"


class Key:
    """A stand-in for the key of a random mask, the `index`-th that a step draws."""

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
        Arrays outlive the step: parameters and the optimizer's state.
    outputs : tuple of Value or array
        Arrays are written in place.
    formula : object, optional
        The activation or loss that it computes, which names its kernel.
    settings : dict
        Settings that stay the same from step to step.
    """

    kernel: str
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]
    formula: Any = None
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recording:
    """The operations of a step on one batch size, with its inputs and outputs.

    Attributes
    ----------
    operations : list of Operation
    x, y, sample_weight : Value or None
        The batch.
    prediction, cost : Value or None
        The model's output, and J if there is a loss.
    n_keys : int
        The number of random masks that a step draws.
    grads : dict of int to array
        The array that receives each parameter's gradient, by the parameter's position.
    """

    operations: list[Operation] = field(default_factory=list)
    x: Value | None = None
    y: Value | None = None
    sample_weight: Value | None = None
    prediction: Value | None = None
    cost: Value | None = None
    n_keys: int = 0
    grads: dict[int, Array] = field(default_factory=dict)


class Feed(NamedTuple):
    """The data of a pass.

    Attributes
    ----------
    batch : Batch
        The whole data set, or a sample of it.
    batch_size : int
    n_samples : int
        In the whole pass.
    stored : bool
        Whether `batch` is the whole data set, at a fixed address.
    """

    batch: Any
    batch_size: int
    n_samples: int
    stored: bool


def kind_of(batch: Sequence[Any]) -> tuple[Any, ...]:
    """Return the shape of a sample and the dtype of each part of a batch."""
    return tuple(None if part is None else (part.shape[1:], part.dtype) for part in batch)


def weak_references(batch: Sequence[Any]) -> list[Any]:
    """Return weak references that identify the arrays of a batch."""
    return [None if part is None else ref(part) for part in batch]


def refer_to(references: Sequence[Any] | None, batch: Sequence[Any]) -> bool:
    """Return whether weak references refer to these very arrays."""
    if references is None:
        return False
    return all(
        reference is part if part is None or reference is None else reference() is part
        for reference, part in zip(references, batch, strict=True)
    )


@dataclass(frozen=True)
class BatchLike:
    """The shapes and dtypes of a batch.

    Attributes
    ----------
    x, y, sample_weight : (shape, dtype) or None
        The first axis is the batch.
    """

    x: tuple[Shape, Any]
    y: tuple[Shape, Any] | None = None
    sample_weight: tuple[Shape, Any] | None = None

    @classmethod
    def of(cls, n: int, kind: Sequence[Any]) -> BatchLike:
        """Return a batch of n samples of a kind that `kind_of` returned."""
        x, y, weight = (None if part is None else ((n, *part[0]), part[1]) for part in kind)
        assert x is not None  # noqa: S101 (there are always features)
        return cls(x, y, weight)


def refuse(what: str) -> NoReturn:
    """Raise `NotRecordableError` for something that is not a kernel call."""
    raise NotRecordableError(f"{what} is not a kernel call")
