"""Uploads to a GPU: the next rows are gathered and sent while these are computed on.

Loaders that stream bring their batches in this way, and large arrays that are to stay on a device
come in pieces. A thread gathers rows into pinned host memory and uploads them on its own stream.
The slots form a ring; each has two events:

- `copied`: the upload from the slot's host buffer has run. The thread waits for it before it
  writes to that buffer again; the computing stream waits for it before it reads the device buffer.
- `consumed`: the device buffer has been read. The copying stream waits for it before the next
  upload into that buffer.

Only that thread waits on the host. What arrives is converted on the device into memory of its own,
so a batch that the caller keeps is never overwritten; or to where the caller wants it.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

import cupy
import cupyx
import numpy as np

from gpunn._typing import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOTS = 2

_T = TypeVar("_T")


class Slot:
    """Buffers for one batch, on the host and on the device, in the stored dtypes.

    Parameters
    ----------
    parts : sequence of arrays
        The data, on the host.
    most : int
        The largest number of rows of a batch.
    pooled : bool
        Whether the host buffers come from CuPy's pool, which keeps them for the next epoch, rounded
        up to a power of two. To allocate pinned memory takes long.
    """

    def __init__(self, parts: Sequence[NDArray[Any]], most: int, *, pooled: bool) -> None:
        shapes = [(most, *part.shape[1:]) for part in parts]
        dtypes = [part.dtype.newbyteorder("=") for part in parts]  # GPUs need the native byte order
        pairs = list(zip(shapes, dtypes, strict=True))
        empty = cupyx.empty_pinned if pooled else _empty_pinned
        self.host = [empty(shape, dtype) for shape, dtype in pairs]
        self.device = [cupy.empty(shape, dtype) for shape, dtype in pairs]
        self.rows = 0
        self.copied = cupy.cuda.Event(disable_timing=True)
        self.consumed = cupy.cuda.Event(disable_timing=True)
        # Queued work on the computing stream may still use memory that the pool hands out.
        self.consumed.record()

    def wait_for_upload(self) -> None:
        """Wait, on the host, until the host buffers may be written to."""
        self.copied.synchronize()

    def fill(self, parts: Sequence[NDArray[Any]], chosen: Any) -> None:
        """Gather rows into the host buffers; `chosen` is a slice or indices, all in range."""
        in_order = isinstance(chosen, slice)
        self.rows = chosen.stop - chosen.start if in_order else len(chosen)
        for part, host in zip(parts, self.host, strict=True):
            if in_order or part.dtype != host.dtype:
                host[: self.rows] = part[chosen]
            else:
                np.take(part, chosen, axis=0, out=host[: self.rows], mode="clip")

    def send(self, stream: Any) -> None:
        """Queue the upload of the gathered rows, as stored."""
        stream.wait_event(self.consumed)
        for host, device in zip(self.host, self.device, strict=True):
            size = host[: self.rows].nbytes
            device.data.copy_from_host_async(host.ctypes.data, size, stream)
        self.copied.record(stream)

    def receive(self, read: Callable[[list[Array]], _T]) -> _T:
        """Return what `read` makes of the batch on the device, as stored, once it has arrived."""
        stream = cupy.cuda.get_current_stream()
        stream.wait_event(self.copied)
        result = read([device[: self.rows] for device in self.device])
        self.consumed.record(stream)
        return result


def bring(x: NDArray[Any], dtype: str | None, pieces: list[slice]) -> Array:
    """Return a host array on the current device, in C order, converted there.

    It comes in pieces through `SLOTS` buffers on the host and as many on the device, which are let
    go at the end: so it takes no more memory than the result and these.

    Parameters
    ----------
    x : numpy array
    dtype : str or None
        The dtype on the device; None keeps the stored one.
    pieces : list of slice
        The rows to bring together, the most rows first.
    """
    result = cupy.empty(x.shape, dtype or x.dtype.newbyteorder("="))
    targets = iter(pieces)

    def put(arrived: list[Array]) -> None:
        result[next(targets)] = arrived[0]

    for _ in stage([x], pieces, pieces[0].stop, put, pooled=False):
        pass
    return result


def convert(dtypes: Sequence[str | None]) -> Callable[[list[Array]], list[Array]]:
    """Return a function that copies arrays into new ones of these dtypes; None keeps the stored."""

    def converted(arrived: list[Array]) -> list[Array]:
        pairs = zip(arrived, dtypes, strict=True)
        return [part.astype(dtype or part.dtype, copy=True) for part, dtype in pairs]

    return converted


def put(places: Sequence[Array]) -> Callable[[list[Array]], list[Array]]:
    """Return a function that copies arrays to the first rows of these, and returns those rows."""

    def placed(arrived: list[Array]) -> list[Array]:
        rows = [place[: part.shape[0]] for place, part in zip(places, arrived, strict=True)]
        for own, part in zip(rows, arrived, strict=True):
            own[...] = part
        return rows

    return placed


def stage(
    parts: Sequence[NDArray[Any]],
    selections: Iterable[Any],
    most: int,
    read: Callable[[list[Array]], _T],
    *,
    pooled: bool = True,
) -> Generator[_T, None, None]:
    """Yield what is made of batches of host data on the current device.

    Parameters
    ----------
    parts : sequence of numpy arrays
        With equal first axes; a memmap is read by rows.
    selections : iterable of slices or of index arrays
        The rows of each batch.
    most : int
        The largest number of rows of a batch.
    read : function
        Makes something of its own from the parts of a batch on the device, which are as stored and
        soon overwritten.
    pooled : bool, default True
        Whether pinned memory is kept for the next time; see `Slot`.

    Raises
    ------
    Exception
        Whatever gathering raised, where the batches are used. The thread has ended by then, as it
        does when the iteration is left early.
    """
    parts = [np.asarray(part) for part in parts]  # indexing a memmap runs Python code each time
    slots = [Slot(parts, most, pooled=pooled) for _ in range(SLOTS)]
    free: SimpleQueue[Slot | None] = SimpleQueue()
    ready: SimpleQueue[Slot | BaseException | None] = SimpleQueue()
    for slot in slots:
        free.put(slot)
    stop = threading.Event()
    arguments = (parts, selections, free, ready, stop, cupy.cuda.Device())
    thread = threading.Thread(target=_produce, args=arguments, name="gpunn-staging", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            result = item.receive(read)
            free.put(item)
            yield result
    finally:
        stop.set()
        free.put(None)  # wakes the thread if it waits for a slot
        thread.join()
        for slot in slots:  # their memory must outlive the uploads
            slot.wait_for_upload()


def _produce(  # noqa: PLR0917
    parts: Sequence[NDArray[Any]],
    selections: Iterable[Any],
    free: SimpleQueue[Slot | None],
    ready: SimpleQueue[Slot | BaseException | None],
    stop: threading.Event,
    device: Any,
) -> None:
    """Gather and upload one batch after another; pass errors on."""
    try:
        with device:  # each thread has a current device of its own
            stream = cupy.cuda.Stream(non_blocking=True)
            for chosen in selections:
                slot = free.get()
                if slot is None or stop.is_set():
                    return
                slot.wait_for_upload()
                slot.fill(parts, chosen)
                slot.send(stream)
                ready.put(slot)
        ready.put(None)
    except BaseException as error:  # noqa: BLE001 (raised again by `stage`)
        ready.put(error)


def _empty_pinned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Return a pinned array of exactly that size, which is freed when it is let go."""
    memory = cupy.cuda.PinnedMemory(math.prod(shape) * dtype.itemsize)
    pointer = cupy.cuda.PinnedMemoryPointer(memory, 0)
    return np.ndarray(shape, dtype, buffer=pointer)
