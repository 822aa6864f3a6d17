"""Facts about arrays that every library tells in its own way."""

from __future__ import annotations

import math
from typing import Any

from gpunn._typing import Array


def dtype_name(x: Any) -> str:
    """Return the name of a dtype, or of an array's: ``"float32"``, whatever the library."""
    return str(getattr(x, "dtype", x)).rpartition(".")[2]


def is_out_of_memory(error: Exception) -> bool:
    """Return whether a library says that its device has no memory left."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def size_of(x: Array) -> int:
    """Return the size of an array in bytes."""
    digits = "".join(character for character in dtype_name(x) if character.isdecimal())
    itemsize = int(digits) // 8 if digits else 1  # bool
    return int(math.prod(x.shape)) * itemsize
