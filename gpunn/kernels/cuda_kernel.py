"""CUDA kernels whose launches cost the host little.

`cupy.RawKernel` creates an object for every argument at every launch. Here a launch packs the
arguments into a reused buffer and passes it to the driver, which copies it before it returns. The
types of the arguments are read from the source.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct
import threading
from typing import Any

import cupy
from cupy.cuda import driver, runtime

from gpunn.kernels.cuda import options, source

# Looked up once: three attributes cost as much as the call.
_get_device, _get_stream = runtime.getDevice, cupy.cuda.get_current_stream
_launch = driver.launchKernel

#: The `struct` code of each parameter type; each takes eight bytes.
_CODES = {
    "long long": "q",
    "unsigned long long": "Q",
    "double": "d",
    "int": "i4x",
    "unsigned": "I4x",
    "float": "f4x",
}
#: CuPy's default stream. Like CuPy, this reads the environment variable on import.
_DEFAULT_STREAM = (
    runtime.streamPerThread
    if int(os.environ.get("CUPY_CUDA_PER_THREAD_DEFAULT_STREAM", "0"))
    else 0
)


def pointer_of(stream: Any) -> int:
    """Return the pointer of a stream that is CuPy's current one."""
    pointer: int = stream.ptr or _DEFAULT_STREAM
    return pointer


class _Functions(threading.local):
    """The compiled kernel on each device, for one thread."""

    def __init__(self) -> None:
        self.by_device: dict[int, int] = {}


class CudaKernel:
    """A kernel of one of the sources in `gpunn/kernels/cuda/`.

    Any thread may launch it, and several at the same time.

    Parameters
    ----------
    file, name : str
        The source, and the kernel in it.
    macros : dict of str to str
        Definitions for the compiler.
    """

    def __init__(self, file: str, name: str, macros: dict[str, str]) -> None:
        text = source(file)
        self._raw = cupy.RawKernel(text, name, options(file, macros))
        codes, self._has_table = argument_codes(text, name)
        self._count = len(codes)
        self._pack = struct.Struct("".join(codes)).pack_into
        self._functions = _Functions()
        #: Buffers that no launch is using. (A list's pop and append are atomic.)
        self._spare: list[tuple[Any, int]] = []

    def __call__(
        self,
        grid: tuple[int, int],
        block: tuple[int, int],
        *arguments: float,
        shared_bytes: int = 0,
    ) -> None:
        """Launch the kernel on the current device, in the current stream.

        Parameters
        ----------
        grid, block : tuple of two ints
            The number of blocks, and of threads in a block.
        *arguments : int or float
            The kernel's arguments; arrays as pointers, ``x.data.ptr``, and a struct as its address
            on the host.
        shared_bytes : int, default 0
            The size of the shared memory of a block.
        """
        device = _get_device()
        function = self._functions.by_device.get(device) or self._load(device)
        try:
            buffer, pointers = spare = self._spare.pop()
        except IndexError:
            buffer, pointers = spare = self._make_buffer()
        self._pack(buffer, 0, *arguments)
        if self._has_table:
            buffer[self._count] = arguments[0]
        stream = pointer_of(_get_stream())
        (columns, rows), (x, y) = grid, block
        _launch(function, columns, rows, 1, x, y, 1, shared_bytes, stream, pointers, 0)
        self._spare.append(spare)

    def _load(self, device: int) -> int:
        """Compile the kernel for the current device, unless a thread has done so already."""
        # The driver needs a context, which only a call of the runtime creates in a new thread.
        runtime.memGetInfo()
        function: int = self._raw.kernel.ptr
        self._functions.by_device[device] = function
        return function

    def _make_buffer(self) -> tuple[Any, int]:
        """Return a buffer for the arguments and pointers to them, and the pointers' address."""
        buffer = (ctypes.c_uint64 * (2 * self._count))()
        start, size = ctypes.addressof(buffer), ctypes.sizeof(ctypes.c_uint64)
        buffer[self._count :] = [start + i * size for i in range(self._count)]
        return buffer, start + self._count * size


def argument_codes(text: str, name: str) -> tuple[list[str], bool]:
    """Return the `struct` codes of a kernel's arguments.

    Also return whether the first argument is a struct by value; its code is then that of an
    address.

    Raises
    ------
    LookupError
        If the source has no such kernel, or an argument has another type.
    """
    found = re.search(rf"__global__\s+void\s+{name}\s*\(([^)]*)\)", text)
    if found is None:
        raise LookupError(f"the source has no kernel {name}")
    codes, has_table = [], False
    for i, parameter in enumerate(found[1].split(",")):
        words = [
            word for word in parameter.split()[:-1] if word not in ("const", "__grid_constant__")
        ]
        kind = " ".join(words)
        if "*" in parameter:
            codes.append("P")
        elif kind in _CODES:
            codes.append(_CODES[kind])
        elif i == 0 and re.search(rf"\bstruct\s+{words[-1]}\b", text):
            codes.append("P")
            has_table = True
        else:
            raise LookupError(f"{name}: no argument of type {kind!r} can be passed here")
    return codes, has_table
