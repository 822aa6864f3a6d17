"""Lower the operations of a recorded step to instructions of the CPU's interpreter.

The files `lower_*` lower the operations of each kernel, by subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.declared import kernel_of
from gpunn.program.phases import ALL, OWN, ROWS, Access, Memory, in_parts
from gpunn.program.rewrite import slopes_before_pools
from gpunn.program.values import NotRecordableError, Operation, Recording, Value


class Patch(NamedTuple):
    """An address within the data, which advances from batch to batch.

    Attributes
    ----------
    part : str
        ``"x"``, ``"y"`` or ``"weight"``.
    offset : int
        Bytes from the batch's first row.
    row_size : int
        Bytes per row.
    """

    part: str
    offset: int
    row_size: int


class Lane(NamedTuple):
    """A thread's share of a step.

    Attributes
    ----------
    thread, threads : int
        This thread's index, and the number of threads.
    first, last : int
        Its rows of the batch, `last` excluded.
    address : function
        From a value and a sharing to the value's address for this thread.
    """

    thread: int
    threads: int
    first: int
    last: int
    address: Callable[[Value, Any], int | Patch]

    @property
    def rows(self) -> int:
        """The number of its rows."""
        return self.last - self.first

    def part(self, n: int) -> tuple[int, int]:
        """Return the start and stop of its part of n rows of a weight."""
        return n * self.thread // self.threads, n * (self.thread + 1) // self.threads


@dataclass
class Bias:
    """A bias that an instruction adds to each row it has just written, while it is in the cache.

    Attributes
    ----------
    array : array or None
        None unless a later operation adds a bias.
    then_relu : bool
        Whether the result is max(z, 0).
    """

    array: Array | None = None
    then_relu: bool = False


@dataclass
class Instruction:
    """A row of the interpreter's table, before the addresses of its operands are known.

    Attributes
    ----------
    name : str
        Of a function in `gpunn.program.instructions`.
    reads, writes : list of Access
    words : function
        From a thread's lane to the words of the row, by name. It must not refer to the lowering,
        which holds the instruction: the cycle would keep the step's memory until a collection.
    bias : Bias, optional
        Set if the instruction can add a bias to its result.
    """

    name: str
    reads: list[Access]
    writes: list[Access]
    words: Callable[[Lane], dict[str, Any]]
    bias: Bias | None = None


#: For each kernel, the function that lowers its operations.
LOWERED_BY: dict[str, Callable[[Lowering, Operation], None]] = {}


def lowers(kernel: str) -> Callable[[Any], Any]:
    """Return a decorator that registers a function to lower operations of a kernel."""

    def register(function: Any) -> Any:
        LOWERED_BY[kernel] = function
        return function

    return register


class Lowering:
    """Turns operations into instructions for a number of threads.

    Parameters
    ----------
    recording : Recording
        Of one batch size.
    threads : int
        The number of threads that run the program.

    Attributes
    ----------
    instructions : list of Instruction
        In the order of the operations.
    work : int
        The multiplications in all products.
    largest_product : int
        The multiplications in the largest product.
    y_dtype : dtype
        The dtype to convert targets to: int64 for labels, else the program's dtype.
    """

    def __init__(self, recording: Recording, threads: int) -> None:
        assert recording.x is not None  # noqa: S101
        self.recording = recording
        self.threads = threads
        assert recording.prediction is not None  # noqa: S101
        self.dtype = recording.prediction.dtype
        #: The dtype to convert features to: int64 for integers.
        self.x_dtype = np.dtype(np.int64) if recording.x.dtype.kind in "iu" else self.dtype
        self.n: int = recording.x.shape[0]
        self.instructions: list[Instruction] = []
        self.work = self.largest_product = 0
        #: How threads share each value: by rows of the batch, or in a copy for each thread.
        self.sharing: dict[Value, Any] = {recording.x: ROWS}
        self._aliases: dict[Value, Value] = {}
        self._scratch: Value | None = None
        #: Arrays to keep alive: instructions hold their addresses.
        self.held: list[Array] = []
        y, weight = recording.y, recording.sample_weight
        self.y_dtype = None if y is None else np.dtype(np.int64)
        if weight is not None:
            self.sharing[weight] = OWN
        if y is not None:
            labels = len(y.shape) == 1 and y.dtype.kind in "iu"
            self.sharing[y] = OWN if labels else ROWS
            if y.dtype.kind == "f":
                self.y_dtype = y.dtype
        for operation in slopes_before_pools(recording.operations):
            self._lower(operation)

    def root(self, value: Value) -> Value:
        """Return the value whose memory this one shares."""
        storage = value.storage
        return self._aliases.get(storage, storage)

    def _lower(self, operation: Operation) -> None:
        lower = LOWERED_BY.get(operation.kernel)
        if lower is None:
            raise NotRecordableError(f"there is no instruction for `{operation.kernel}`")
        for output in operation.outputs:
            if isinstance(output, Value) and output.by_sample:
                self.sharing.setdefault(self.root(output), ROWS)
        lower(self, operation)

    def count(self, multiplications: int) -> None:
        """Count the multiplications of a product."""
        self.work += multiplications
        self.largest_product = max(self.largest_product, multiplications)

    def alias(self, value: Value, other: Value) -> None:
        """Place a value in another value's memory."""
        self._aliases[value] = other

    def add(
        self,
        name: str,
        words: Callable[[Lane], dict[str, Any]],
        reads: Sequence[Access] = (),
        writes: Sequence[Access] = (),
    ) -> None:
        """Append an instruction."""
        self.instructions.append(Instruction(name, list(reads), list(writes), words))

    def at(self, value: Value, sharing: Any = ROWS) -> Access:
        """Return the access to a value; a value with a copy per thread is accessed as such."""
        root = self.root(value)
        return Access(root, OWN if self.sharing[root] is OWN else sharing)

    def by_rows(
        self,
        name: str,
        operands: dict[str, Value],
        result: Value,
        *,
        weights: dict[str, Array | None] | None = None,
        columns: int | None = None,
        rows: int | None = None,
        **settings: Any,
    ) -> None:
        """Append an instruction that reads a thread's rows of some values, and writes its rows.

        The number of rows is the length of the result's first axis, unless `rows` is given; each
        sample has equally many.
        """
        fixed = {word: address_of(array) for word, array in (weights or {}).items()}
        width = result.width if columns is None else columns
        per_sample = (result.shape[0] if rows is None else rows) // self.n

        def words(lane: Lane) -> dict[str, Any]:
            places = {word: lane.address(value, ROWS) for word, value in operands.items()}
            sizes = {"m": lane.rows * per_sample, "n": width, "c": lane.address(result, ROWS)}
            varying = {word: f(lane) if callable(f) else f for word, f in settings.items()}
            return sizes | places | fixed | varying

        arrays = [Access(memory_of(a), ALL) for a in (weights or {}).values() if a is not None]
        reads = [self.at(value) for value in operands.values()]
        self.add(name, words, [*reads, *arrays], [self.at(result)])

    def scratch(self, entries: int) -> tuple[Access, Callable[[Lane], int | Patch]]:
        """Return scratch memory per thread, of at least `entries`, for use in an instruction."""
        if self._scratch is None:
            self._scratch = Value((self.threads, 0), self.dtype, by_sample=False)
        value = self._scratch
        value.shape = self.threads, max(value.shape[1], -(-entries // 16) * 16)  # whole lines
        size = self.dtype.itemsize

        def place(lane: Lane) -> int | Patch:
            return moved(lane.address(value, ALL), lane.thread * value.width * size)

        return Access(value, OWN), place

    def fuse_bias(self, z: Value, bias: Array, *, relu: bool) -> bool:
        """Make the last instruction add a bias to its result; return whether it can."""
        last = self.instructions[-1]
        if last.bias is None or last.writes[0].place is not self.root(z):
            return False
        last.bias.array, last.bias.then_relu = bias, relu
        last.reads.append(Access(memory_of(bias), ALL))
        return True

    # Sums over the batch, and gradients

    def parts_of_sum(self, sums: Any, width: int) -> tuple[Access, Callable[[Lane], int]]:
        """Return the access and address of each thread's part of a sum over the batch."""
        if self.threads == 1:
            return self.target(sums, width)
        part = Value((self.threads, width), self.dtype, by_sample=False)
        row = width * self.dtype.itemsize

        def place(lane: Lane) -> int:
            address = lane.address(part, ALL)
            assert isinstance(address, int)  # noqa: S101
            return address + lane.thread * row

        return Access(part, OWN), place

    def add_up(self, parts: Access, sums: Any, width: int) -> None:
        """Append an instruction that adds up the threads' parts."""
        if self.threads == 1:
            return
        target, place = self.target(sums, width)
        size = self.dtype.itemsize

        def words(lane: Lane) -> dict[str, Any]:
            start, stop = lane.part(width)
            skipped = start * size
            sizes = {"m": stop - start, "n": width, "flag": start}
            return sizes | {"a": lane.address(parts.place, ALL), "c": place(lane) + skipped}

        self.add("add_up", words, [Access(parts.place, ALL)], [target])

    def target(self, result: Any, n: int) -> tuple[Access, Callable[[Lane], int]]:
        """Return the access to a gradient of n rows that threads share, and its address."""
        if isinstance(result, Value):

            def place(lane: Lane) -> int:
                address = lane.address(result, ALL)
                assert isinstance(address, int)  # noqa: S101
                return address

            return Access(result, in_parts(n)), place
        self.check(result, self.dtype)
        address = address_of(result)
        return Access(memory_of(result), in_parts(n)), lambda _: address

    def check(self, array: Array, dtype: Any) -> None:
        """Refuse an array that instructions would misread."""
        contiguous = array.flags.c_contiguous or (array.ndim == 2 and array.T.flags.c_contiguous)
        if type(array) is not np.ndarray or array.dtype != dtype or not contiguous:
            raise NotRecordableError(
                "a parameter is not a contiguous NumPy array of the dtype of the batch"
            )
        if not array.flags.aligned:
            raise NotRecordableError("a parameter is not aligned")


def kernel_in(operation: Operation) -> str:
    """Return the name of the kernel in an operation's formula, as the instructions use it."""
    kernel = kernel_of(operation.formula)
    if kernel is None:
        raise NotRecordableError(f"{type(operation.formula).__name__} has no kernel")
    if kernel == "gelu" and operation.formula.approximate:
        return "gelu_tanh"
    return kernel


def address_of(array: Array | None) -> int:
    """Return an array's address; 0 for None."""
    return 0 if array is None else int(array.ctypes.data)


def memory_of(array: Array) -> Memory:
    """Return the range of bytes that an array occupies."""
    start = address_of(array)
    return Memory(start, start + array.nbytes)


def moved(address: int | Patch, offset: int) -> int | Patch:
    """Return an address advanced by `offset` bytes."""
    if isinstance(address, Patch):
        return address._replace(offset=address.offset + offset)
    return address + offset
