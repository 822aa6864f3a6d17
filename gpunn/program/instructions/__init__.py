"""The instructions of the CPU's interpreter: one compiled function each, looked up by name."""

# Importing a file registers its instructions.
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
