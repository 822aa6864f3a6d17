"""Random bits that do not depend on the library or the device."""

from __future__ import annotations

from typing import Any

from gpunn._typing import Array, Namespace


def splitmix64(xp: Namespace, key: int, size: int, on: Any) -> Array:
    """Return `size` pseudo-random 64-bit integers; entry i depends on `key` and i alone.

    SplitMix64 is a counter that advances by an odd constant, followed by a mixing function of
    two multiplications and three shifts, modulo 2^64. Entries can be computed in any order: on a
    GPU, one thread per entry.

    References
    ----------
    Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    z = xp.arange(1, size + 1, dtype=xp.uint64, device=on)
    z *= 0x9E3779B97F4A7C15
    z += key
    z ^= z >> 30
    z *= 0xBF58476D1CE4E5B9
    z ^= z >> 27
    z *= 0x94D049BB133111EB
    z ^= z >> 31
    return z
