"""The instructions of the CPU's interpreter: one compiled function for each, found by name."""

# Each file makes its instructions known when it is imported.
from gpunn.program.instructions import (
    convolution,
    data,
    host,
    layers,
    losses,
    norms,
    prelu,
    sequences,
    updates,
)
from gpunn.program.instructions.words import address_of, names

__all__ = [
    "address_of",
    "convolution",
    "data",
    "host",
    "layers",
    "losses",
    "names",
    "norms",
    "prelu",
    "sequences",
    "updates",
]
