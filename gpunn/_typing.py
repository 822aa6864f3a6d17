"""Names for types without a class of their own."""

from __future__ import annotations

from typing import Any, TypeAlias

#: An array of any library that follows the Python Array API standard.
#: The standard has no class for it (NumPy's, CuPy's and the strict one share none), hence `Any`.
Array: TypeAlias = Any

#: The functions of the standard, as one library offers them: `array_api_compat.numpy`, ...
Namespace: TypeAlias = Any

#: The lengths of an array's axes.
Shape: TypeAlias = tuple[int, ...]

#: What `rng` keywords take: a seed, a `numpy.random.Generator`, or None for a fresh one.
RNG: TypeAlias = Any
