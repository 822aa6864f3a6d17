"""Handles of cuBLAS: one for each thread and device, and one for each step capture."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_size_t, c_void_p
from functools import cache
from typing import Any
from weakref import finalize

import cupy
from cupy.cuda import runtime

from gpunn._typing import Array
from gpunn.kernels.cuda_kernel import pointer_of
from gpunn.kernels.cupy_rounding import Rounder, round_factors

# Looked up once: three attributes cost as much as the call.
_get_device, _get_stream = runtime.getDevice, cupy.cuda.get_current_stream

#: The documented names of statuses, without ``CUBLAS_STATUS_``.
_STATUSES = {
    1: "NOT_INITIALIZED",
    3: "ALLOC_FAILED",
    7: "INVALID_VALUE",
    8: "ARCH_MISMATCH",
    11: "MAPPING_ERROR",
    13: "EXECUTION_FAILED",
    14: "INTERNAL_ERROR",
    15: "NOT_SUPPORTED",
}


@cache
def loaded_library() -> Any:
    """Return the library that CuPy has loaded, for `ctypes`; None if it is not available."""
    if runtime.is_hip:
        return None  # AMD's library has other names
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib  # noqa: PLC0415 (comes with CuPy 14)

        return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)
    except (ImportError, OSError, RuntimeError) as error:
        logging.getLogger("gpunn").info("products go through cupy.dot, since %s", error)
        return None


#: Held while a step is captured: one thread's capture may break another's.
_capturing = threading.Lock()
#: Unused handles: the library, the pointer, the device and the process.
_retired: deque[tuple[Any, Any, int, int]] = deque()


@contextmanager
def one_capture_at_a_time() -> Iterator[None]:
    """Keep other threads from capturing a step or destroying a handle in the block."""
    try:
        with _capturing:
            yield
    finally:
        _destroy_retired()


def _retire(*handle: Any) -> None:
    """Queue a handle for destruction when it is collected, which may be during a capture."""
    _retired.append(handle)
    _destroy_retired()


def _destroy_retired() -> None:
    """Destroy the unused handles, unless a step is being captured; the capture then does so.

    Destroying a handle synchronizes the device, which would break the capture.
    """
    while _retired and _capturing.acquire(blocking=False):
        try:
            handle = _retired.popleft() if _retired else None
            if handle is not None:
                _destroy(*handle)
        finally:
            _capturing.release()


def _destroy(library: Any, pointer: Any, device: int, process: int) -> None:
    if process == os.getpid():  # CUDA does not work in a forked process
        with cupy.cuda.Device(device):
            library.cublasDestroy_v2(pointer)


class Handle:
    """A handle of cuBLAS on the current device; it must not be shared by threads."""

    def __init__(self) -> None:
        self._library = loaded_library()
        self.gemm = self._library.cublasGemmEx
        self.gemm_batched = self._library.cublasGemmStridedBatchedEx
        self.round: Rounder = round_factors
        self.pointer = c_void_p()
        self.stream: Any = None
        status = self._create()
        if status:  # the library allocates memory itself, and CuPy's pool may hold all of it
            cupy.get_default_memory_pool().free_all_blocks()
            status = self._create()
        device = runtime.getDevice()
        if status in (1, 3):
            raise MemoryError(f"cuBLAS has no memory to work with on device {device}") from failure(
                "cublasCreate", status
            )
        if status:
            raise failure("cublasCreate", status)
        finalize(self, _retire, self._library, self.pointer, device, os.getpid()).atexit = False

    def _create(self) -> int:
        status: int = self._library.cublasCreate_v2(ctypes.byref(self.pointer))
        return status

    def follow(self, stream: Any) -> None:
        """Use a stream from now on.

        Keeping a reference to the stream prevents a new stream from getting its pointer. The
        library reverts to its own workspace.
        """
        status = self._library.cublasSetStream_v2(self.pointer, c_void_p(pointer_of(stream)))
        if status:
            raise failure("cublasSetStream", status)
        self.stream = stream


class CaptureHandle:
    """A separate handle and workspace for this thread's products, in a ``with`` block.

    Captured products use their handle's workspace at every replay. They cannot share the workspace
    of the thread's usual handle, which other products may use at the same time.

    Parameters
    ----------
    stream : Stream
        The stream that is captured.
    workspace : array
        The memory, which this object keeps; keep this object as long as the graph.
    """

    def __init__(self, stream: Any, workspace: Array) -> None:
        self._handle, self._workspace, self._device = Handle(), workspace, _get_device()
        self._handle.follow(stream)
        status = loaded_library().cublasSetWorkspace_v2(
            self._handle.pointer, c_void_p(workspace.data.ptr), c_size_t(workspace.nbytes)
        )
        if status:
            raise failure("cublasSetWorkspace", status)

    def round_by(self, rounder: Rounder) -> None:
        """Round factors by `rounder` from now on."""
        self._handle.round = rounder

    def __enter__(self) -> None:
        """Make the thread use this handle."""
        self._before = _handles.by_device.get(self._device)
        _handles.by_device[self._device] = self._handle

    def __exit__(self, *_: object) -> None:
        """Restore the thread's own handle."""
        del _handles.by_device[self._device]
        if self._before is not None:
            _handles.by_device[self._device] = self._before


def workspace_bytes() -> int:
    """Return the workspace size that the library's documentation recommends for this device."""
    major = int(cupy.cuda.Device().compute_capability[:-1])
    return (32 if major >= 9 else 4) << 20


class _Handles(threading.local):
    """The handles of a thread, by device."""

    def __init__(self) -> None:
        self.by_device: dict[int, Handle] = {}


_handles = _Handles()


def current_handle(device: int) -> Handle:
    """Return this thread's handle for the current device, set to the current stream."""
    handle = _handles.by_device.get(device)
    if handle is None:
        handle = _handles.by_device[device] = Handle()
    stream = _get_stream()
    if handle.stream is not stream:
        handle.follow(stream)
    return handle


def failure(function: str, status: int, about: str = "") -> RuntimeError:
    """Return the error for a status other than 0."""
    name = f"CUBLAS_STATUS_{_STATUSES[status]}" if status in _STATUSES else "unknown"
    return RuntimeError(f"{function} failed with status {status} ({name}){about}")
