"""Trial forward passes, which find what each layer returns, computes and saves."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import backend_of, get_backend, scope_of
from gpunn.arrays.capacity import room_for
from gpunn.arrays.facts import dtype_name, size_of
from gpunn.kernels.counting import Count, Counted
from gpunn.nn.parameter import Held
from gpunn.nn.tape import Tape
from gpunn.nn.tree import Node, children, entrance


@dataclass
class Call:
    """A record of a layer's call in a forward pass over some samples.

    Attributes
    ----------
    layer : Layer
        The layer of the model.
    inputs : tuple and dict
        The arguments of `forward` except the tape, with descriptions in place of arrays.
    within : list of Call
        The calls of inner layers, in order.
    output : tuple of int
        The shape of the output for one sample.
    entries : range
        The indices of the tape entries pushed during the call.
    """

    layer: Any
    inputs: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
    within: list[Call] = field(default_factory=list)
    output: Shape = ()
    entries: range = range(0)

    def layers(self) -> list[Any]:
        """Return the layer and all that were called within it, in order."""
        return [self.layer, *(layer for call in self.within for layer in call.layers())]

    def saved(self, sizes: list[int]) -> int:
        """Return the bytes that the layer itself saved, from the size of each entry."""
        inner = sum(sum(sizes[i] for i in call.entries) for call in self.within)
        return sum(sizes[i] for i in self.entries) - inner


@dataclass(frozen=True)
class _Described:
    """An array's shape and dtype."""

    shape: Shape
    dtype: str


@dataclass(frozen=True)
class Trial:
    """A forward pass: the model's call, with those within it, and the bytes of each tape entry.

    `input_bytes` are those of the batch itself; an entry excludes memory counted before it.
    """

    call: Call
    sizes: list[int]
    input_bytes: int


def try_out(model: Any, shape: Shape, n: int) -> Trial | None:
    """Run a pass over n samples on a copy of the layers; None if they cannot be copied."""
    copies = trial_copies(model)
    if copies is None:
        return None
    root = Call(model)
    _watch(model, copies, [root])
    tape = Tape(rng=0)
    x = trial_batch(model, shape, n)
    with scope_of(x):
        copies[id(model)].forward(x, tape)
    return Trial(root.within[0], entry_sizes(tape, x), size_of(x))


def trial_copies(
    model: Any, replace: Callable[[Held], Held] | None = None
) -> dict[int, Any] | None:
    """Return a copy of each layer of a model, by the layer's id; None if copying fails.

    A pass over the copies changes no state, such as a count of calls or a running mean.

    Parameters
    ----------
    model : Layer
        The model.
    replace : function, optional
        Returns the parameter or buffer that a copy has in place of the original. By default,
        parameters are shared and buffers copied.
    """
    if replace is None:
        copies: dict[int, Any] = {id(item): item for item in model.parameters()}
    else:
        copies = {id(item): replace(item) for item in (*model.parameters(), *model.buffers())}
    try:
        copy.deepcopy(model, copies)
    except Exception:  # noqa: BLE001 (a user's layer may hold a lock, a file or anything else)
        return None
    return copies


def trial_batch(model: Any, shape: Shape, n: int) -> Array:
    """Return n samples that a model accepts, on the device of its parameters."""
    first = next(iter(model.parameters()), None)
    place = get_backend("numpy") if first is None else backend_of(first.value)
    assert place is not None  # noqa: S101 (parameters hold arrays)
    dtype = "float32" if first is None else dtype_name(first.value)
    fill, dtype = (0, "int64") if entrance(model).takes_integers else (1, dtype)
    with room_for(f"{n} samples of input_shape {shape}", place, (n, *shape)):
        return place.full((n, *shape), fill, dtype)


def entry_sizes(tape: Tape, x: Array) -> list[int]:
    """Return the bytes of each entry of a tape; memory counts where it is first saved.

    The memory of the batch `x` itself does not count.
    """
    sizes, seen = [], {id(_owner(x))}
    for _, saved in tape.entries():
        new = {id(_owner(item)): item for item in saved if _is_array(item)}
        sizes.append(sum(size_of(item) for key, item in new.items() if key not in seen))
        seen.update(new)
    return sizes


def count_operations(call: Call, empty: dict[int, Any]) -> int | None:
    """Return the floating-point operations of a call's products; None if they are not known.

    Parameters
    ----------
    call : Call
        The call to repeat, on arrays that count operations.
    empty : dict
        The layers to call, from `empty_copies`.
    """
    count = Count()
    x, *more = (_as_counted(item, count) for item in call.inputs[0])
    named = {name: _as_counted(item, count) for name, item in call.inputs[1].items()}
    try:
        y = empty[id(call.layer)].forward(x, Tape(rng=0), *more, **named)
    except Exception:  # noqa: BLE001 (such arrays may not support it)
        return None
    return count.operations if isinstance(y, Counted) else None


def empty_copies(model: Any) -> dict[int, Any]:
    """Return a copy of each layer whose parameters and buffers are zeros on the host."""
    return trial_copies(model, _empty) or {}


def _empty(item: Held) -> Held:
    """Return a parameter or buffer like `item`, of zeros whose memory is never touched."""
    xp = get_backend("numpy").xp
    emptied = copy.copy(item)
    emptied.value = xp.zeros(tuple(item.value.shape), dtype=dtype_name(item.value))
    return emptied


def _watch(model: Any, copies: dict[int, Any], stack: list[Call]) -> None:
    """Make each copy of a layer record its calls within the last call on a stack."""
    for layer in _nodes(model, set()):
        if id(layer) in copies:
            _watch_layer(layer, copies[id(layer)], stack)


def _watch_layer(layer: Any, copied: Any, stack: list[Call]) -> None:
    forward = copied.forward

    def watched(x: Array, tape: Tape | None = None, *more: Any, **settings: Any) -> Array:
        call = Call(layer, _describe_arguments((x, *more), settings))
        stack[-1].within.append(call)
        stack.append(call)
        before = 0 if tape is None else len(tape)
        y = forward(x, tape, *more, **settings)
        stack.pop()
        call.output, call.entries = tuple(y.shape[1:]), range(before, before)
        if tape is not None:
            call.entries = range(before, len(tape))
        return y

    copied.forward = watched


def _nodes(value: Any, seen: set[int]) -> Iterator[Any]:
    """Yield a layer and all within it, each once."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Node):
        yield value
    for _, item in children(value):
        if isinstance(item, (Node, list, tuple, dict)):
            yield from _nodes(item, seen)


def _describe_arguments(
    arguments: tuple[Any, ...], settings: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    named = {name: _describe(item) for name, item in settings.items()}
    return tuple(map(_describe, arguments)), named


def _describe(item: Any) -> Any:
    return _Described(tuple(item.shape), dtype_name(item)) if _is_array(item) else item


def _as_counted(item: Any, count: Count) -> Any:
    if not isinstance(item, _Described):
        return item
    return count.wrap(get_backend("numpy").xp.zeros(item.shape, dtype=item.dtype))


def _owner(x: Any) -> Any:
    """Return the array that this one is a view of, if the library exposes it."""
    base = getattr(x, "base", None)
    return _owner(base) if type(base) is type(x) else x


def _is_array(item: Any) -> bool:
    return hasattr(item, "shape") and hasattr(item, "dtype")
