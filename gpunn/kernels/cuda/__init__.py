"""The CUDA sources, and every set of macros that they are compiled with.

This is separate from `gpunn.kernels.cupy_`, so that they can be compiled without CuPy.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import numpy as np

from gpunn.kernels.activation_kinds import KINDS
from gpunn.kernels.rules import RULES

#: The CUDA types of the dtypes that the kernels serve. (Reading a dtype's name takes microseconds.)
REAL: dict[np.dtype[Any], str] = {np.dtype("float32"): "float", np.dtype("float64"): "double"}
#: The CUDA types for positions in a window.
INDICES = {"uint8": "unsigned char", "int32": "int"}
#: The CUDA types in which rows are copied, by their number of bytes.
UNITS = {16: "int4", 8: "long long", 4: "int", 1: "char"}
#: Maximum number of arrays in an optimizer's launch: their pointers must fit in 4 KB of parameters.
MOST_ARRAYS = 48
#: Maximum number of parts of a batch: x, y and weights.
MOST_PARTS = 3

#: The activations in activation.cu, by kernel name: their names there, and their parameters.
FORMULAS: dict[str, tuple[str, str | None]] = {
    name: (kind.cuda or name, kind.parameter) for name, kind in KINDS.items()
}

#: The losses that launch the kernel of the same name in loss.cu, and the settings that it takes.
LOSSES: dict[str, tuple[str, ...]] = {
    "squared_error": (),
    "absolute_error": (),
    "huber": ("delta",),
    "poisson": ("deviance",),
    "hinge": ("squared",),
    "cosine_distance": ("epsilon",),
}

#: For each source, all sets of macros in use: tests compile exactly what users do.
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
