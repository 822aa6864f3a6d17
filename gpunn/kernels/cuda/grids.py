"""Grids and blocks: how the kernels' work is divided among threads."""

from __future__ import annotations

THREADS = 256  # per block
PACK = 4  # entries per thread and iteration; float64 takes two instructions for them
#: Maximum number of partial sums of squares per launch. Each block of an update adds up all.
MOST_PARTIALS = 512

_MAX_BLOCKS = 65_536  # beyond this, threads loop
_MAX_BLOCKS_Y = 65_535  # CUDA's limit

Launch = tuple[tuple[int, int], tuple[int, int]]  # grid and block


def over_entries(size: int) -> Launch:
    """Return a launch with one thread per `PACK` entries."""
    return (min(-(-size // (THREADS * PACK)), _MAX_BLOCKS), 1), (THREADS, 1)


def over_rows(n: int, width: int) -> Launch:
    """Return a launch for `n` rows, with `width` threads per row.

    The grid's x and the block's y count rows, the grid's y and the block's x positions in a row, so
    a thread computes its position without a division.
    """
    lanes = min(THREADS, 1 << (width - 1).bit_length())
    rows = THREADS // lanes
    grid = min(-(-n // rows), _MAX_BLOCKS), min(-(-width // lanes), _MAX_BLOCKS_Y)
    return grid, (lanes, rows)


def over_columns(n: int, p: int) -> Launch | None:
    """Return a launch that sums the columns of an (n, p) matrix, or None if a product is faster.

    Each block sums a few columns alone, so a narrow matrix keeps only part of the device busy; that
    pays for up to 256 rows, and from 64 blocks on for up to 1,024. Tiles of eight columns give four
    times as many blocks as tiles of 32 and still use all of each 32-byte sector they read.
    """
    lanes = 32 if p >= 4096 else 8
    blocks = -(-p // lanes)
    if n > (1024 if blocks >= 64 else 256):
        return None
    return (blocks, 1), (lanes, THREADS // lanes)


def over_parts(n: int, width: int) -> Launch:
    """Return a launch for `n` parts of `width` entries, with several threads per part."""
    lanes = min(THREADS, max(1, 1 << (-(-width // PACK) - 1).bit_length()))
    rows = max(1, 128 // lanes)
    return (-(-n // rows), 1), (lanes, rows)


def over_tiles(n: int, p: int, rows: int, most: int) -> Launch:
    """Return a launch for tiles of up to 32 columns and a range of rows of an (n, p) matrix.

    A thread takes `rows` rows, or more if there would otherwise be more than `most` blocks.
    """
    lanes = min(32, 1 << (p - 1).bit_length())
    tiles = -(-p // lanes)
    ranges = min(-(-n // (THREADS // lanes * rows)), max(1, most // tiles))
    return (tiles, ranges), (lanes, THREADS // lanes)
