"""What a GPU reaches at its best: large products, a large copy, and a copy over the bus."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from gpu_timing import Clock, device_time  # before NumPy, as timing

# isort: split
import gpu_kernels
import numpy as np
from timing import surroundings

#: cuBLAS's settings for each precision: factor type and compute type, by CuPy's names.
PRODUCTS = {
    "float32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F"),
    "tf32": ("CUDA_R_32F", "CUBLAS_COMPUTE_32F_FAST_TF32"),
    "bfloat16": ("CUDA_R_16BF", "CUBLAS_COMPUTE_32F"),
}


def peaks(cupy: Any, clock: Clock, rounds: int, n: int) -> dict[str, float]:
    """Measure the device on n x n matrices.

    Returns
    -------
    dict
        FLOP/s of a product in each precision; bytes/s of a "copy" (read and written) and, as "bus",
        of one from pinned memory of the host.
    """
    rng = np.random.default_rng(0)
    a = cupy.asarray(rng.standard_normal((n, n), dtype=np.float32))  # of zeros, it would be faster
    out = cupy.empty_like(a)
    found = {}
    for precision in PRODUCTS:
        call = product(cupy, a, out, precision)
        found[precision] = 2 * n**3 / device_time(clock, call, rounds, 3).median
    copy = device_time(clock, lambda: cupy.copyto(out, a), rounds, gpu_kernels.REPEATS).median
    found["copy"] = 2 * a.nbytes / copy
    pinned = _pinned(cupy, a)
    found["bus"] = a.nbytes / device_time(clock, lambda: out.set(pinned), rounds, 2).median
    return found


def side(cupy: Any) -> int:
    """Return the side of a large square matrix for this device."""
    return 8192 if cupy.cuda.runtime.memGetInfo()[0] > 4 * 2**30 else 4096


def product(cupy: Any, a: Any, out: Any, precision: str) -> Callable[[], None]:
    """Return a function that computes a^T a^T, in cuBLAS's order, in float32 sums."""
    cublas, n = cupy.cuda.cublas, len(a)
    kind, compute = PRODUCTS[precision]
    factor_type = getattr(cupy.cuda.runtime, kind)
    if precision == "bfloat16":  # the upper half of a float32
        a = (a.view(cupy.uint32) >> 16).astype(cupy.uint16)
    handle = cupy.cuda.get_cublas_handle()
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)

    def call() -> None:
        cublas.gemmEx(
            handle,
            *(cublas.CUBLAS_OP_N, cublas.CUBLAS_OP_N),
            *(n, n, n, one.ctypes.data),
            *(a.data.ptr, factor_type, n),
            *(a.data.ptr, factor_type, n),
            *(zero.ctypes.data, out.data.ptr, cupy.cuda.runtime.CUDA_R_32F, n),
            *(getattr(cublas, compute), cublas.CUBLAS_GEMM_DEFAULT),
        )

    return call


def check(cupy: Any, n: int = 64) -> None:
    """Fail unless the product in each precision is the product."""
    a = cupy.asarray(np.random.default_rng(0).standard_normal((n, n), dtype=np.float32))
    # How far a factor may be from what it was: half a unit in the last place, or one if truncated.
    for precision, rounding in {"float32": 0.0, "tf32": 2**-10, "bfloat16": 2**-7}.items():
        out = cupy.empty_like(a)
        product(cupy, a, out, precision)()
        exact = a.get().astype(np.float64)
        # cuBLAS stores by columns: its product of a's transposes is that of a, transposed back.
        bound = (2 * rounding + n * 2**-23) * (abs(exact) @ abs(exact))
        assert (abs(out.get() - exact @ exact) <= bound).all(), precision


def _pinned(cupy: Any, like: Any) -> Any:
    memory = cupy.cuda.alloc_pinned_memory(like.nbytes)
    array = np.frombuffer(memory, like.dtype, like.size).reshape(like.shape)
    array[...] = 0
    return array


def describe(cupy: Any) -> dict[str, Any]:
    """Return what this is measured on."""
    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    properties = runtime.getDeviceProperties(device.id)
    return {
        "device": properties["name"].decode(),
        "compute_capability": device.compute_capability,
        "memory_bytes": properties["totalGlobalMem"],
        "cuda": {"driver": runtime.driverGetVersion(), "runtime": runtime.runtimeGetVersion()},
        "cupy": cupy.__version__,
        "machine": platform.machine(),
        **surroundings(),
    }
