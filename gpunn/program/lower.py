"""From the operations of a recorded step to the instructions of the CPU's interpreter."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gpunn._typing import Array
from gpunn.class_weight import table_of
from gpunn.kernels.declared import kernel_of
from gpunn.program.phases import ALL, OWN, ROWS, Access, Memory, in_parts
from gpunn.program.record import NotRecordableError, Operation, Recording, Value

#: Activations whose gradient and column sums are one instruction, by number.
_IN_ONE_PASS = {"relu": 0, "tanh": 1, "sigmoid": 2}
#: The parameter of an activation, by the kernel that its formula names.
_PARAMETERS = {"leaky_relu": "negative_slope", "elu": "alpha"}
#: Activations that see a whole row.
_BY_ROW = ("softmax", "log_softmax")


class Patch(NamedTuple):
    """An address within the data, which moves on with the batches.

    Attributes
    ----------
    part : str
        ``"x"``, ``"y"`` or ``"weight"``.
    offset : int
        Bytes from the batch's first row.
    row_size : int
        Bytes a row.
    """

    part: str
    offset: int
    row_size: int


class Lane(NamedTuple):
    """What a thread has of a step.

    Attributes
    ----------
    thread, threads : int
        Which of how many.
    first, last : int
        Its rows of the batch.
    address : function
        From a value and a sharing to where the thread finds it.
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
        """Return its part of n rows of a weight."""
        return n * self.thread // self.threads, n * (self.thread + 1) // self.threads


@dataclass
class Instruction:
    """A row of the interpreter's table, before anybody knows where its operands lie.

    Attributes
    ----------
    name : str
        Of a function in `gpunn.program.instructions`.
    reads, writes : list of Access
    words : function
        From a thread's lane to the words of the row, by name.
    """

    name: str
    reads: list[Access]
    writes: list[Access]
    words: Callable[[Lane], dict[str, Any]]


@dataclass
class Piece:
    """Something that is updated at once: a parameter, or a block of several.

    Attributes
    ----------
    value, grad : array
    states : list of array
        What the optimizer keeps beside it.
    decays : bool
        Whether weight decay applies.
    """

    value: Array
    grad: Array
    states: list[Array]
    decays: bool

    @property
    def n_parts(self) -> int:
        """The rows that threads share."""
        return int(self.value.shape[0])


class Lowering:
    """Makes instructions of operations, for a number of threads.

    Parameters
    ----------
    recording : Recording
        Of one batch size.
    threads : int
        How many run the program side by side.

    Attributes
    ----------
    instructions : list of Instruction
        In the order of the operations.
    work : int
        The multiplications in products.
    y_dtype : dtype
        What targets must be brought to: labels to int64, numbers to the dtype of the program.
    """

    def __init__(self, recording: Recording, threads: int) -> None:
        assert recording.x is not None  # noqa: S101
        self.recording = recording
        self.threads = threads
        self.dtype = recording.x.dtype
        self.n: int = recording.x.shape[0]
        self.instructions: list[Instruction] = []
        self.work = 0
        #: How each value lies: by rows of the batch, or in a copy for each thread.
        self.sharing: dict[Value, Any] = {recording.x: ROWS}
        self._aliases: dict[Value, Value] = {}
        #: Arrays of its own that instructions have the addresses of.
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
        for operation in recording.operations:
            self._lower(operation)

    def root(self, value: Value) -> Value:
        """Return the value whose memory this one shares."""
        storage = value.storage
        return self._aliases.get(storage, storage)

    def how(self, value: Value) -> Any:
        """Return how a value lies."""
        return self.sharing[self.root(value)]

    def _lower(self, operation: Operation) -> None:
        lower = getattr(self, f"_{operation.kernel}", None)
        if lower is None:
            raise NotRecordableError(f"there is no instruction for `{operation.kernel}`")
        for output in operation.outputs:
            if isinstance(output, Value) and output.by_sample:
                self.sharing.setdefault(self.root(output), ROWS)
        lower(operation)

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
        """Return the access to a value; what is each thread's own stays so."""
        return Access(self.root(value), OWN if self.how(value) is OWN else sharing)

    def by_rows(
        self,
        name: str,
        operands: dict[str, Value],
        result: Value,
        *,
        weights: dict[str, Array | None] | None = None,
        columns: int | None = None,
        **settings: Any,
    ) -> None:
        """Append an instruction that takes a thread's rows of some values, and writes its rows."""
        fixed = {word: _address(array) for word, array in (weights or {}).items()}
        width = result.width if columns is None else columns

        def words(lane: Lane) -> dict[str, Any]:
            places = {word: lane.address(value, ROWS) for word, value in operands.items()}
            sizes = {"m": lane.rows, "n": width, "c": lane.address(result, ROWS)}
            varying = {word: f(lane) if callable(f) else f for word, f in settings.items()}
            return sizes | places | fixed | varying

        arrays = [Access(_memory(a), ALL) for a in (weights or {}).values() if a is not None]
        reads = [self.at(value) for value in operands.values()]
        self.add(name, words, [*reads, *arrays], [self.at(result)])

    # Layers

    def _product(self, operation: Operation) -> None:
        x, weight = operation.inputs
        (z,) = operation.outputs
        self._check(weight, x.dtype)
        self.work += self.n * weight.size
        turned = not weight.flags.c_contiguous
        name = "product_transposed" if turned else "product"
        self.by_rows(name, {"a": x}, z, weights={"b": weight.T if turned else weight}, k=x.width)

    def _product_over_batch(self, operation: Operation) -> None:
        x, grad = operation.inputs
        (result,) = operation.outputs
        inputs, outputs, size = x.width, grad.width, self.dtype.itemsize
        self.work += self.n * inputs * outputs
        target, place = self._target(result, inputs)

        def words(lane: Lane) -> dict[str, Any]:
            start, stop = lane.part(inputs)
            return {
                "m": stop - start,
                "n": outputs,
                "k": self.n,
                "pitch": inputs,
                "a": _moved(lane.address(x, ALL), start * size),
                "b": lane.address(grad, ALL),
                "c": place(lane) + start * outputs * size,
            }

        self.add("product_over_batch", words, [self.at(x, ALL), self.at(grad, ALL)], [target])

    def _bias_activation(self, operation: Operation) -> None:
        z, bias = operation.inputs
        h = operation.outputs[0]
        kernel = _kernel(operation)
        done = kernel == "identity"
        if bias is not None:
            self._check(bias, self.dtype)
            done = done or (kernel == "relu" and len(operation.outputs) == 1)
            relu = int(done and kernel == "relu")
            self.by_rows("add_bias", {"a": z}, z, weights={"b": bias}, flag=relu)
        if not done:
            self._activate(kernel, operation.formula, z, h)

    def _activation(self, operation: Operation) -> None:
        (x,), (h,) = operation.inputs, operation.outputs
        self._activate(_kernel(operation), operation.formula, x, h)

    def _activate(self, kernel: str, formula: Any, x: Value, h: Value) -> None:
        name = kernel if kernel in _BY_ROW else f"activation_{kernel}"
        columns = h.shape[-1] if kernel in _BY_ROW else None
        if columns is not None and len(h.shape) != 2:
            raise NotRecordableError(f"there is no instruction for {kernel} of {len(h.shape)} axes")
        self.by_rows(name, {"a": x}, h, columns=columns, p=_parameter(kernel, formula))

    def _activation_backward(self, operation: Operation) -> None:
        (grad, saved), (result,) = operation.inputs, operation.outputs
        kernel = _kernel(operation)
        name = f"{kernel}_slope" if kernel in _BY_ROW else f"slope_{kernel}"
        p = _parameter(kernel, operation.formula)
        self.by_rows(name, {"a": grad, "b": saved}, result, p=p)

    def _bias_activation_backward(self, operation: Operation) -> None:
        (grad, saved), (dz, sums) = operation.inputs, operation.outputs
        kernel = _kernel(operation)
        if kernel not in _IN_ONE_PASS:
            self._activation_backward(
                Operation("activation_backward", (grad, saved), (dz,), operation.formula)
            )
            self._column_sums(Operation("column_sums", (dz,), (sums,)))
            return
        parts, place = self._parts(sums, dz.width)

        def words(lane: Lane) -> dict[str, Any]:
            return {
                "m": lane.rows,
                "n": dz.width,
                "a": lane.address(grad, ROWS),
                "b": lane.address(saved, ROWS),
                "c": lane.address(dz, ROWS),
                "d": place(lane),
                "flag": _IN_ONE_PASS[kernel],
            }

        self.add("slope_and_sums", words, [self.at(grad), self.at(saved)], [self.at(dz), parts])
        self._add_up(parts, sums, dz.width)

    def _column_sums(self, operation: Operation) -> None:
        (x,), (sums,) = operation.inputs, operation.outputs
        parts, place = self._parts(sums, x.width)

        def words(lane: Lane) -> dict[str, Any]:
            sizes = {"m": lane.rows, "n": x.width}
            return sizes | {"a": lane.address(x, ROWS), "d": place(lane)}

        self.add("column_sums", words, [self.at(x)], [parts])
        self._add_up(parts, sums, x.width)

    def _add(self, operation: Operation) -> None:
        (x, y), (result,) = operation.inputs, operation.outputs
        self.by_rows("add", {"a": x, "b": y}, result)

    def _multiply(self, operation: Operation) -> None:
        (x, y), (result,) = operation.inputs, operation.outputs
        self.by_rows("multiply", {"a": x, "b": y}, result)

    def _dropout(self, operation: Operation) -> None:
        (x, key), (y, mask) = operation.inputs, operation.outputs
        rate = operation.settings["rate"]
        self.by_rows(
            "dropout",
            {"a": x, "d": mask},
            y,
            k=key.index,
            e=self.recording.n_keys,
            flag=lambda lane: lane.first,
            limit=round(rate * 2**32),
            p=1.0 / (1.0 - rate),
        )
        self.instructions[-1].writes.append(self.at(mask))

    def _accumulate(self, operation: Operation) -> None:
        (x,), (total,) = operation.inputs, operation.outputs
        n = x.shape[0]
        width = x.width
        source, place = self._target(x, n)
        target, into = self._target(total, n)

        def words(lane: Lane) -> dict[str, Any]:
            start, stop = lane.part(n)
            skipped = start * width * self.dtype.itemsize
            m = (stop - start) * width
            return {"m": m, "a": place(lane) + skipped, "c": into(lane) + skipped}

        self.add("accumulate", words, [source, target], [target])

    def _convert(self, operation: Operation) -> None:
        (x,), (result,) = operation.inputs, operation.outputs
        y = self.recording.y
        if y is None or self.root(x) is not y or result.dtype != self.dtype:
            raise NotRecordableError("only targets are converted in a recorded step")
        self.y_dtype = self.dtype
        self.sharing[y] = ROWS
        self._aliases[result] = y

    # Losses

    def _loss(self, operation: Operation) -> None:
        prediction, target, scale = operation.inputs
        _, grad = operation.outputs
        loss, kernel = operation.formula, _kernel(operation)
        if not operation.settings["summed"]:
            raise NotRecordableError("the loss is not reduced to one number")
        operands = {"a": prediction}
        settings: dict[str, Any] = {}
        if kernel in ("softmax_cross_entropy", "cross_entropy"):
            plain = loss.class_weight is None and not loss.label_smoothing
            labels = len(target.shape) == 1
            if labels and plain and kernel == "softmax_cross_entropy":
                name = "loss_softmax_labels"
            else:
                if labels or not plain:
                    target = self._soft(loss, target, prediction)
                soft = kernel == "softmax_cross_entropy"
                name = "loss_softmax_soft" if soft else "loss_cross_entropy"
        else:
            from_logits = "loss_binary" if loss.from_logits else "loss_binary_probabilities"
            names = {"binary_cross_entropy": from_logits, "squared_error": "loss_squared"}
            name = names.get(kernel, "")
        if not name:
            raise NotRecordableError(f"there is no instruction for the loss `{kernel}`")
        if isinstance(scale, Value):
            operands["d"] = scale
        else:
            settings["p"] = float(scale)
        settings["q"] = float(np.finfo(self.dtype).eps)
        self.by_rows(name, operands | {"b": target}, grad, **settings)

    def _soft(self, loss: Any, target: Value, prediction: Value) -> Value:
        """Append what makes soft targets of labels, or smooths and weights those that are soft."""
        soft = Value(prediction.shape, prediction.dtype, by_sample=True)
        self.sharing[soft] = ROWS
        classes = None
        if loss.class_weight is not None:
            classes = np.asarray(table_of(loss, loss.class_weight, prediction.shape[1]), self.dtype)
            self.held.append(classes)
        name = "soft_labels" if len(target.shape) == 1 else "soft_targets"
        self.by_rows(name, {"b": target}, soft, weights={"d": classes}, p=loss.label_smoothing)
        return soft

    def _class_mass(self, operation: Operation) -> None:
        target, classes = operation.inputs
        (mass,) = operation.outputs
        if len(target.shape) == 1:
            self.sharing[mass] = OWN
            self._each(
                "mass_of_labels", {"a": target, "c": mass}, n=classes.size, d=_address(classes)
            )
            self.instructions[-1].reads.append(Access(_memory(classes), ALL))
        else:
            self.by_rows(
                "mass_of_targets", {"a": target}, mass, weights={"d": classes}, columns=classes.size
            )

    def _mean_scale(self, operation: Operation) -> None:
        weight, mass = operation.inputs
        (scale,) = operation.outputs
        self.sharing[scale] = OWN
        given = {"a": weight, "b": mass}
        known = {word: value for word, value in given.items() if value is not None}
        self._each("mean_scale", known | {"c": scale})

    def _each(self, name: str, operands: dict[str, Value], **settings: Any) -> None:
        """Append an instruction that each thread runs for itself, over the whole batch."""

        def words(lane: Lane) -> dict[str, Any]:
            places = {word: lane.address(value, ALL) for word, value in operands.items()}
            return {"m": self.n} | places | settings

        reads = [self.at(value, ALL) for word, value in operands.items() if word != "c"]
        self.add(name, words, reads, [self.at(operands["c"])])

    # Sums over the batch

    def _parts(self, sums: Any, width: int) -> tuple[Access, Callable[[Lane], int]]:
        """Return where each thread puts its part of a sum over the batch."""
        if self.threads == 1:
            return self._target(sums, width)
        part = Value((self.threads, width), self.dtype, by_sample=False)
        row = width * self.dtype.itemsize

        def place(lane: Lane) -> int:
            address = lane.address(part, ALL)
            assert isinstance(address, int)  # noqa: S101
            return address + lane.thread * row

        return Access(part, OWN), place

    def _add_up(self, parts: Access, sums: Any, width: int) -> None:
        """Append what adds the threads' parts up."""
        if self.threads == 1:
            return
        target, place = self._target(sums, width)

        def words(lane: Lane) -> dict[str, Any]:
            start, stop = lane.part(width)
            skipped = start * self.dtype.itemsize
            sizes = {"m": stop - start, "n": width, "flag": start}
            return sizes | {"a": lane.address(parts.place, ALL), "c": place(lane) + skipped}

        self.add("add_up", words, [Access(parts.place, ALL)], [target])

    def _target(self, result: Any, n: int) -> tuple[Access, Callable[[Lane], int]]:
        """Return the access to a gradient in n parts, and where it begins."""
        if isinstance(result, Value):

            def place(lane: Lane) -> int:
                address = lane.address(result, ALL)
                assert isinstance(address, int)  # noqa: S101
                return address

            return Access(result, in_parts(n)), place
        self._check(result, self.dtype)
        address = _address(result)
        return Access(_memory(result), in_parts(n)), lambda _: address

    def _check(self, array: Array, dtype: Any) -> None:
        """Refuse an array that instructions would misread."""
        contiguous = array.flags.c_contiguous or (array.ndim == 2 and array.T.flags.c_contiguous)
        if type(array) is not np.ndarray or array.dtype != dtype or not contiguous:
            raise NotRecordableError(
                "a parameter has another dtype than the batch, or lies in gaps"
            )
        if not array.flags.aligned:
            raise NotRecordableError("a parameter is not aligned")

    # The update

    def update(self, optimizer: Any, pieces: Sequence[Piece], *, penalized: bool) -> None:
        """Append what updates some pieces, after the norm of all gradients if that is limited."""
        kernel = kernel_of(optimizer)
        if kernel not in ("sgd", "adam"):
            raise NotRecordableError(f"the update of {type(optimizer).__name__}")
        clips = optimizer.clip_norm is not None
        limit = math.inf if optimizer.clip_value is None else optimizer.clip_value
        if clips:
            self._clip(pieces, limit, optimizer.clip_norm)
        for piece in pieces:
            made = [self._updating(kernel, optimizer, piece, limit, clips=clips)]
            if penalized and piece.decays:
                made.insert(0, self._penalty(piece))
            i = len(self.instructions) if clips else self._after_last_use(piece)
            self.instructions[i:i] = made

    def _after_last_use(self, piece: Piece) -> int:
        """Return where the piece may be updated: its lines are in the cache then."""
        own = _memory(piece.value), _memory(piece.grad)
        for i in range(len(self.instructions) - 1, -1, -1):
            known = self.instructions[i]
            for access in (*known.reads, *known.writes):
                place = access.place
                if isinstance(place, Memory) and any(
                    place.start < end and start < place.stop for start, end in own
                ):
                    return i + 1
        return len(self.instructions)

    def _clip(self, pieces: Sequence[Piece], limit: float, clip_norm: float) -> None:
        sums = Value((self.threads, 1), np.dtype("float64"), by_sample=False)

        def mine(lane: Lane) -> int:
            address = lane.address(sums, ALL)
            assert isinstance(address, int)  # noqa: S101
            return address + 8 * lane.thread

        for i, piece in enumerate(pieces):

            def words(lane: Lane, piece: Piece = piece, first: bool = i == 0) -> dict[str, Any]:
                m, skipped = self._share(lane, piece)
                address = _address(piece.grad) + skipped
                return {"m": m, "a": address, "d": mine(lane), "p": limit, "flag": int(first)}

            reads = [Access(_memory(piece.grad), in_parts(piece.n_parts))]
            self.add("squared_norm", words, [*reads, Access(sums, OWN)], [Access(sums, OWN)])
        self.add(
            "clip_factor",
            lambda lane: {"d": lane.address(sums, ALL), "p": clip_norm},
            [Access(sums, ALL)],
            [Access("factor", OWN)],
        )

    def _share(self, lane: Lane, piece: Piece) -> tuple[int, int]:
        """Return how many entries of a piece a thread has, and the bytes before them."""
        start, stop = lane.part(piece.n_parts)
        width = piece.value.size // piece.n_parts
        return (stop - start) * width, start * width * self.dtype.itemsize

    def _penalty(self, piece: Piece) -> Instruction:
        def words(lane: Lane) -> dict[str, Any]:
            m, skipped = self._share(lane, piece)
            return {"m": m, "a": _address(piece.value) + skipped}

        value = Access(_memory(piece.value), in_parts(piece.n_parts))
        return Instruction("penalty", [value], [Access("penalty", OWN)], words)

    def _updating(
        self, kernel: str, optimizer: Any, piece: Piece, limit: float, *, clips: bool
    ) -> Instruction:
        own = [piece.value, piece.grad, *piece.states]
        if kernel == "sgd":
            kept = {"c": piece.states[0] if piece.states else piece.value}
            rule = {"p": optimizer.momentum, "q": limit, "flag": int(optimizer.nesterov)}
            rule |= {"e": int(clips)}
        else:
            kept = {"c": piece.states[0], "e": piece.states[1]}
            rule = {"p": optimizer.beta_1, "q": optimizer.beta_2, "r": optimizer.epsilon}
            rule |= {"s": limit, "flag": int(clips)}

        def words(lane: Lane) -> dict[str, Any]:
            m, skipped = self._share(lane, piece)
            arrays = {"a": piece.value, "b": piece.grad} | kept
            places = {word: _address(array) + skipped for word, array in arrays.items()}
            return {"m": m, "d": int(piece.decays)} | places | rule

        for array in own:
            self._check(array, self.dtype)
        sharing = in_parts(piece.n_parts)
        accesses = [Access(_memory(array), sharing) for array in own]
        reads = [*accesses, Access("factor", OWN)] if clips else accesses
        return Instruction(kernel, reads, accesses, words)


def _kernel(operation: Operation) -> str:
    """Return the kernel that an operation's formula names, as the instructions know it."""
    kernel = kernel_of(operation.formula)
    if kernel is None:
        raise NotRecordableError(f"the formula of {type(operation.formula).__name__}")
    if kernel == "gelu" and operation.formula.approximate:
        return "gelu_tanh"
    return kernel


def _parameter(kernel: str, formula: Any) -> float:
    name = _PARAMETERS.get(kernel)
    return 0.0 if name is None else float(getattr(formula, name))


def _address(array: Array | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _memory(array: Array) -> Memory:
    start = _address(array)
    return Memory(start, start + array.nbytes)


def _moved(address: int | Patch, offset: int) -> int | Patch:
    if isinstance(address, Patch):
        return address._replace(offset=address.offset + offset)
    return address + offset
