"""Facts about arrays, read in the same way from every library."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

from gpunn._typing import Array, Namespace


def dtype_name(x: Any) -> str:
    """Return the name of an array's dtype, or of a dtype: ``"float32"``, whatever the library."""
    dtype = getattr(x, "dtype", x)
    # NumPy's dtypes have a name without the byte order; others are written "library.float32".
    return str(getattr(dtype, "name", dtype)).rpartition(".")[2]


#: CUDA's "out of memory" errors: the status of each class. CuPy's pools raise a `MemoryError`
#: instead, but allocators without a pool, modules, graphs and cuBLAS do not.
_OUT_OF_MEMORY = {"CUDARuntimeError": 2, "CUDADriverError": 2, "CUBLASError": 3}


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error of any library means that its device is out of memory."""
    kind = type(error).__name__
    if isinstance(error, MemoryError) or kind == "OutOfMemoryError":
        return True
    return kind in _OUT_OF_MEMORY and getattr(error, "status", None) == _OUT_OF_MEMORY[kind]


def size_of(x: Array) -> int:
    """Return the size of an array in bytes."""
    digits = "".join(character for character in dtype_name(x) if character.isdecimal())
    itemsize = int(digits) // 8 if digits else 1  # bool
    return int(math.prod(x.shape)) * itemsize


@lru_cache(maxsize=64)  # called in every pass, for few dtypes
def is_floating(xp: Namespace, dtype: Any) -> bool:
    """Return whether a dtype is real floating-point."""
    return is_kind(xp, dtype, "real floating")


@lru_cache(maxsize=64)  # called at every step, for few dtypes
def is_integer(xp: Namespace, dtype: Any) -> bool:
    """Return whether a dtype is an integer type, signed or unsigned."""
    return is_kind(xp, dtype, "integral")


def is_kind(xp: Namespace, dtype: Any, kinds: str | tuple[str, ...]) -> bool:
    """Return whether a dtype is of one of these kinds, named as in the standard's `isdtype`.

    False for a dtype that `isdtype` rejects, such as NumPy's variable-width strings.
    """
    try:
        return bool(xp.isdtype(dtype, kinds))
    except TypeError:
        return False
