"""Streaming to a GPU: the next batch is gathered and uploaded while this one is computed on.

A thread gathers rows into pinned host memory and uploads them on its own stream. The slots form a
ring; each has two events:

- `copied`: the upload from the slot's host buffer has run. The thread waits for it before it
  writes to that buffer again; the computing stream waits for it before it reads the device buffer.
- `consumed`: the device buffer has been read. The copying stream waits for it before the next
  upload into that buffer.

Only that thread waits on the host. Batches are new arrays, converted on the device, so a batch that
the caller keeps is never overwritten.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import cupy
import cupyx
import numpy as np

from gpunn._typing import Array

if TYPE_CHECKING:
    from numpy.typing import NDArray

SLOTS = 2


class Slot:
    """Buffers for one batch, on the host and on the device, in the stored dtypes.

    Parameters
    ----------
    parts : sequence of arrays
        The data, on the host.
    most : int
        The largest number of rows of a batch.
    """

    def __init__(self, parts: Sequence[NDArray[Any]], most: int) -> None:
        shapes = [(most, *part.shape[1:]) for part in parts]
        dtypes = [part.dtype.newbyteorder("=") for part in parts]  # GPUs need the native byte order
        pairs = list(zip(shapes, dtypes, strict=True))
        self.host = [cupyx.empty_pinned(shape, dtype) for shape, dtype in pairs]
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

    def take(self, dtypes: Sequence[str | None]) -> list[Array]:
        """Return the batch as new, converted arrays, once its upload has run."""
        stream = cupy.cuda.get_current_stream()
        stream.wait_event(self.copied)
        arrays = [
            device[: self.rows].astype(dtype or device.dtype, copy=True)
            for device, dtype in zip(self.device, dtypes, strict=True)
        ]
        self.consumed.record(stream)
        return arrays


def stage(
    parts: Sequence[NDArray[Any]],
    selections: Iterable[Any],
    most: int,
    dtypes: Sequence[str | None],
) -> Generator[list[Array], None, None]:
    """Yield batches of host data on the current device.

    Parameters
    ----------
    parts : sequence of numpy arrays
        With equal first axes; a memmap is read by rows.
    selections : iterable of slices or of index arrays
        The rows of each batch.
    most : int
        The largest number of rows of a batch.
    dtypes : sequence of str or None
        The dtype of each part on the device; None keeps the stored one.

    Raises
    ------
    Exception
        Whatever gathering raised, where the batches are used. The thread has ended by then, as it
        does when the iteration is left early.
    """
    parts = [np.asarray(part) for part in parts]  # indexing a memmap runs Python code each time
    slots = [Slot(parts, most) for _ in range(SLOTS)]
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
            arrays = item.take(dtypes)
            free.put(item)
            yield arrays
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
