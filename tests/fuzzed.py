"""Functions for fuzzers: each lets a reader read some bytes, and raises if the reader misbehaves.

A reader may accept a file or refuse it with a `FileError`. Any other error is a fault; so is a file
that is read wrongly, or a refused file that has changed a model. `TARGETS` names the functions, and
``tests/corpus/NAME`` holds inputs for each. `test_fuzz.py` runs them on these and on variations,
`bench/fuzz.py` on inputs that it finds by code coverage.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open

import gpunn as gn
from gpunn.data.idx import read_idx
from gpunn.errors import FileError, StateError
from gpunn.files.tensors import Format, read, read_as

CORPUS = Path(__file__).parent / "corpus"

#: The format of the corpus's files that are not models.
KIND = Format("gpunn test", 3)

_ZEROS = b"0" * 64
_IDX_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


@cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")  # noqa: S108 (quicker than a disk; the folder is private)
    return tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)


def as_file(content: bytes) -> Path:
    """Write bytes to the one file that all readers read."""
    path = Path(_folder().name) / "file"
    path.write_bytes(content)
    return path


def signed(content: bytes) -> bytes:
    """Return a file in which the first 64 zeros in a row are the digest of the whole."""
    return content.replace(_ZEROS, hashlib.sha256(content).hexdigest().encode(), 1)


def outcome(reader: Callable[[], Any]) -> Any:
    """Return what a reader returns, None if it refuses the file."""
    try:
        return reader()
    except FileError as error:
        kind, message = type(error), str(error)
    assert kind is FileError, "the path was right"
    assert 10 < len(message) < 3000
    return None


def safetensors(content: bytes) -> None:
    """Read arrays: all, and as the library describes them, as are the metadata."""
    path = as_file(content)
    file = outcome(lambda: read("load", path))
    if file is None:
        return
    with safe_open(path, "np") as other:
        texts = other.metadata() or {}
        shapes = {name: tuple(other.get_slice(name).get_shape()) for name in other.keys()}  # noqa: SIM118
    assert file.names == sorted(shapes)
    assert {name: stored.shape for name, stored in file.found.items()} == shapes
    arrays = {name: x.array for name, x in file.found.items() if x.array is not None}
    assert all(array.shape == shapes[name] for name, array in arrays.items())
    said = json.loads(texts["gpunn"]) if "gpunn" in texts else {"metadata": {}, **texts}
    assert (file.written_by, repr(file.metadata)) == (
        said.get("format", ""),
        repr(said["metadata"]),
    )


def state(content: bytes) -> None:
    """Read arrays and metadata of a file whose digest is right."""
    path = as_file(signed(content))
    found = outcome(lambda: read_as("load", path, KIND))
    if found is not None:
        arrays, _ = found
        assert sum(x.nbytes for x in arrays.values()) <= 2 * len(content)  # bfloat16 grows


def weights(content: bytes) -> None:
    """Load a model; if the file is refused, the model is unchanged."""
    path = as_file(signed(content))
    for strict in (True, False):
        model = gn.Dense(2, 1, rng=0)
        before = [p.value.tobytes() for p in model.parameters()]
        report = outcome(lambda: gn.load(path, model, strict=strict))  # noqa: B023 (called here)
        if report is None:
            assert [p.value.tobytes() for p in model.parameters()] == before
        elif strict:
            assert report == ([], [])
        assert [(p.value.shape, str(p.value.dtype)) for p in model.parameters()] == [
            ((2, 1), "float32"),
            ((1,), "float32"),
        ]


def idx(content: bytes) -> None:
    """Read an array: it is the one that the file holds, compressed or not."""
    array = outcome(lambda: read_idx(as_file(content)))
    packed = outcome(lambda: read_idx(as_file(gzip.compress(content, 1))))
    if array is None or content[:2] == b"\x1f\x8b":
        return
    assert packed.tobytes() == array.tobytes()
    big = array.astype(array.dtype.newbyteorder(">"))
    code = bytes([0, 0, _IDX_CODES[big.dtype.str[1:]], array.ndim])
    assert content == code + struct.pack(f">{array.ndim}I", *array.shape) + big.tobytes()


def checkpoint(content: bytes) -> None:
    """Resume from a checkpoint whose digest is right; if it is refused, nothing has changed."""
    path = as_file(signed(content))
    trainer, loader = training()
    before = repr(trainer.state_dict())
    try:
        with np.errstate(all="ignore"):
            trainer.fit(loader, 2, resume=path, progress=False)
    except (FileError, StateError):
        assert repr(trainer.state_dict()) == before
    except ArithmeticError:
        pass  # a rate or a schedule that somebody chose leads nowhere


def onnx(content: bytes) -> None:
    """Read a network; it is not much larger than the file, and comes back from an export."""
    for channels_first in (False, True):
        path = as_file(content)
        model = outcome(lambda: gn.import_onnx(path, channels_first=channels_first))  # noqa: B023
        if model is None:
            continue
        held = [item.value for item in (*model.parameters(), *model.buffers())]
        assert sum(x.nbytes for x in held) <= 16 * len(content) + 2**20
        assert all(str(x.dtype) == "float32" for x in held)
        assert repr(model)


def training() -> tuple[gn.Trainer, gn.Loader]:
    """Return a small trainer, and a loader for it."""
    model = gn.Sequential(gn.Dense(2, 3, "relu", rng=0), gn.Dropout(0.5), gn.Dense(3, 2, rng=1))
    optimizer = gn.SGD(model.parameters(), gn.StepDecay(0.1, every=2), momentum=0.9)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer, metrics=["accuracy"], rng=2)
    x, y = np.arange(10, dtype="float32").reshape(5, 2) / 10, np.arange(5) % 2
    return trainer, gn.Loader(x, y, batch_size=2, backend="numpy", rng=3)


TARGETS: dict[str, Callable[[bytes], None]] = {
    function.__name__: function for function in (safetensors, state, weights, checkpoint, idx, onnx)
}
