"""The CUDA sources, and every set of macros that they are compiled with.

Apart from `gpunn.kernels.cupy_`, so that a machine without CuPy can compile them all, too.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np

from gpunn.kernels.activation_kinds import KINDS
from gpunn.kernels.rules import RULES

#: The dtypes that the kernels serve, as CUDA calls them. (A dtype's name takes microseconds.)
REAL: dict[np.dtype[Any], str] = {np.dtype("float32"): "float", np.dtype("float64"): "double"}
#: What numbers of a window's entries are stored in.
INDICES = {"uint8": "unsigned char", "int32": "int"}
#: What rows are copied in, by the number of bytes.
UNITS = {16: "int4", 8: "long long", 4: "int", 1: "char"}
#: Arrays of the optimizer; their pointers must fit in 4 KB of kernel parameters.
MOST_ARRAYS = 48
#: Parts of a batch: x, y and weights.
MOST_PARTS = 3

#: The activations that activation.cu knows, by the kernel that their class names: their names
#: there, and the parameters that they have.
FORMULAS: dict[str, tuple[str, str | None]] = {
    name: (kind.cuda or name, kind.parameter) for name, kind in KINDS.items()
}

#: The losses that are a launch of the kernel of their name in loss.cu, by the kernel that their
#: class names: the settings that it takes.
LOSSES: dict[str, tuple[str, ...]] = {
    "squared_error": (),
    "absolute_error": (),
    "huber": ("delta",),
    "poisson": ("deviance",),
    "hinge": ("squared",),
    "cosine_distance": ("epsilon",),
}

#: For each source, all the macros that are asked for: what a test compiles is what users do.
VARIANTS: dict[str, list[dict[str, str]]] = {
    "activation": [
        {"REAL": real, "ACTIVATION": name}
        for real in REAL.values()
        for name, _ in FORMULAS.values()
    ],
    "attention": [{"REAL": real} for real in REAL.values()],
    "bfloat16": [{}],
    "convolution": [
        {"REAL": real, "INDEX": index} for real in REAL.values() for index in INDICES.values()
    ],
    "data": [{"UNIT": unit, "MOST": str(MOST_PARTS)} for unit in UNITS.values()],
    "dropout": [{"REAL": real} for real in REAL.values()],
    "lookup": [{"REAL": real} for real in REAL.values()],
    "loss": [
        {"REAL": real} | target
        for real in REAL.values()
        for target in ({}, {"LABELS": "1"}, {"DIVERGENCE": "1"})
    ],
    "norm": [{"REAL": real} for real in REAL.values()],
    "step": [{"REAL": real} for real in REAL.values()],
    "optimizer": [
        {"REAL": real, "MOST": str(MOST_ARRAYS), "RULE": rule}
        for real in REAL.values()
        for rule in RULES
    ],
}


def source(file: str) -> str:
    """Return the CUDA source of that name, with common.cuh in place of its include."""
    folder = files("gpunn.kernels.cuda")
    text, common = (
        folder.joinpath(name).read_text(encoding="utf-8") for name in (f"{file}.cu", "common.cuh")
    )
    return text.replace('#include "common.cuh"\n', common)


def options(file: str, macros: dict[str, str]) -> tuple[str, ...]:
    """Return the compiler's options for one of the `VARIANTS` of a source."""
    if macros not in VARIANTS[file]:
        raise LookupError(f"{file}.cu is not compiled with {macros} in any test; see VARIANTS")
    return ("-std=c++17", *(f"-D{name}={value}" for name, value in sorted(macros.items())))
