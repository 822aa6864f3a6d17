"""Make the C library's allocator reuse the memory of a training step's temporaries."""

from __future__ import annotations

from functools import cache

import numpy as np

#: Bytes of a block slightly smaller than the largest that raises glibc's thresholds.
_LARGE_BLOCK = (32 << 20) - (1 << 16)


@cache
def keep_heap() -> None:
    """Make glibc keep the memory that a step frees for the next step; once per process.

    By default it returns the top of the heap to the system at the end of a step, and the next step
    pays for each page again. Freeing one large block raises that limit to twice the block's size.
    The block is never written to, so it takes no memory. Other C libraries are not affected.
    """
    np.empty(_LARGE_BLOCK, np.uint8)
