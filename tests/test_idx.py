"""IDX files: what is written is read, and what is damaged is refused."""

from __future__ import annotations

import gzip
import math
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as some_numpy
from numpy.testing import assert_array_equal

import gpunn as gn

CODES = {
    "uint8": 0x08,
    "int8": 0x09,
    "int16": 0x0B,
    "int32": 0x0C,
    "float32": 0x0D,
    "float64": 0x0E,
}

#: One file serves all examples of a property, which runs them one after another.
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

ARRAYS = st.sampled_from(sorted(CODES)).flatmap(
    lambda dtype: some_numpy.arrays(
        dtype, some_numpy.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5)
    )
)


def header(code: int, *shape: int) -> bytes:
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def written(array: np.ndarray[Any, Any]) -> bytes:
    """Return the bytes of an IDX file, by the format's description."""
    big = array.astype(array.dtype.newbyteorder(">"))
    return header(CODES[array.dtype.name], *array.shape) + big.tobytes()


def read(folder: Path, content: bytes) -> np.ndarray[Any, Any]:
    path = folder / "file"
    path.write_bytes(content)
    return gn.datasets.read_idx(path)


def same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    return (
        one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()
    )


@SAME_FOLDER
@given(array=ARRAYS, compressed=st.booleans())
def test_what_is_written_is_read(tmp_path: Path, array: Any, *, compressed: bool) -> None:
    content = written(array)
    found = read(tmp_path, gzip.compress(content) if compressed else content)
    assert same(found, array)
    assert found.dtype.isnative
    assert found.flags.c_contiguous
    assert found.flags.writeable


@SAME_FOLDER
@given(array=ARRAYS, compressed=st.booleans(), data=st.data())
def test_a_shorter_file_is_refused(
    tmp_path: Path, array: Any, data: Any, *, compressed: bool
) -> None:
    content = written(array)
    content = gzip.compress(content) if compressed else content
    content = content[: data.draw(st.integers(0, len(content) - 1))]
    with pytest.raises(gn.errors.FileError):
        read(tmp_path, content)


@SAME_FOLDER
@given(array=ARRAYS, more=st.binary(min_size=1, max_size=40), where=st.integers(0, 2))
def test_a_longer_file_is_refused(tmp_path: Path, array: Any, more: bytes, where: int) -> None:
    content = written(array)
    if where == 0:
        content += more
    elif where == 1:
        content = gzip.compress(content + more)
    elif any(more):  # gzip fills its files with zeros
        content = gzip.compress(content) + more
    else:
        content = gzip.compress(content) + gzip.compress(more)
    with pytest.raises(gn.errors.FileError, match="damaged"):
        read(tmp_path, content)


@SAME_FOLDER
@given(array=ARRAYS, compressed=st.booleans(), data=st.data())
def test_a_flipped_bit_is_refused_or_does_no_harm(
    tmp_path: Path, array: Any, data: Any, *, compressed: bool
) -> None:
    content = written(array)
    damaged = bytearray(gzip.compress(content) if compressed else content)
    bit = data.draw(st.integers(0, 8 * len(damaged) - 1))
    damaged[bit // 8] ^= 1 << bit % 8
    try:
        found = read(tmp_path, bytes(damaged))
    except gn.errors.FileError:
        return
    if compressed:  # a check sum guards the content; a name or a time may be wrong
        assert same(found, array)
    else:  # nothing guards the entries; the header still fits the file
        assert len(written(found)) == len(content)
        assert written(found) == bytes(damaged)


@SAME_FOLDER
@given(content=st.binary(max_size=200), begins=st.sampled_from([b"", b"\0\0", b"\x1f\x8b\x08"]))
def test_any_bytes_are_an_array_or_refused(tmp_path: Path, content: bytes, begins: bytes) -> None:
    try:
        found = read(tmp_path, begins + content)
    except gn.errors.FileError:
        return
    assert isinstance(found, np.ndarray)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "begins with nothing"),
        (b"\x00\x00\x08", "begins with 00 00 08"),
        (b"\x89PNG\r\n", "begins with 89 50 4e 47"),
        (b"\x00\x01\x08\x01" + bytes(8), "not an IDX file"),
        (header(0x0A, 1) + b"a", "not an IDX file"),
        (header(0x08) + b"a", "announces 0 axes"),
        (bytes([0, 0, 8, 65]) + bytes(65 * 4), "announces 65 axes"),
        (header(0x08, 3, 3)[:-1], "cut off in its header"),
        (header(0x08, 3, 3) + bytes(8), "9 bytes, and 8 are there"),
        (header(0x08, 3, 3) + bytes(10), "goes on after its last entry"),
        (header(0x0E, 2**32 - 1, 2**32 - 1), r"the header of .* is damaged"),
        (header(0x0E, 0, 2**32 - 1, 2**32 - 1), r"the header of .* is damaged"),
        (gzip.compress(header(0x08, 2) + b"ab", mtime=0)[:-1], "damaged, or cut off"),
        (gzip.compress(header(0x08, 2) + b"ab", mtime=0) + b"c", "damaged, or cut off"),
    ],
)
def test_what_is_no_idx_file_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(gn.errors.FileError, match=message):
        read(tmp_path, content)


def test_a_small_file_takes_little_memory(tmp_path: Path) -> None:
    """It may announce a lot, or unpack to a lot."""
    announced = header(0x08, 2**31)
    bomb = gzip.compress(header(0x08, 10) + bytes(200 << 20), 1)
    for content in (announced + bytes(1000), gzip.compress(announced + bytes(1000)), bomb):
        tracemalloc.start()
        with pytest.raises(gn.errors.FileError):
            read(tmp_path, content)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(gn.errors.PathError, match=r"read_idx: there is no file .*nothing"):
        gn.datasets.read_idx(tmp_path / "nothing")
    with pytest.raises(gn.errors.PathError, match="is a folder; load_idx"):
        gn.datasets.read_idx(tmp_path)
    with pytest.raises(gn.errors.PathError, match="is a device, a pipe or a socket; name a file"):
        gn.datasets.read_idx(os.devnull)
    with pytest.raises(gn.errors.SettingError, match="expected a path, got int"):
        gn.datasets.read_idx(3)  # type: ignore[arg-type]


# The four files of a set


def pixels(n: int, side: int = 4) -> np.ndarray[Any, Any]:
    return (np.arange(n * side * side) % 256).astype(np.uint8).reshape(n, side, side)


def labels(n: int) -> np.ndarray[Any, Any]:
    return (np.arange(n) % 10).astype(np.uint8)


def make_set(folder: Path, *, compressed: bool = False, **changed: bytes) -> Path:
    """Write the four files; `changed` has the bytes of some, by part and kind."""
    for part, n in (("train", 6), ("t10k", 3)):
        for kind, axes, array in (("images", 3, pixels(n)), ("labels", 1, labels(n))):
            content = changed.get(f"{part}_{kind}", written(array))
            name = f"{part}-{kind}-idx{axes}-ubyte"
            if compressed:
                content, name = gzip.compress(content), f"{name}.gz"
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("compressed", [False, True])
def test_the_four_files(tmp_path: Path, *, compressed: bool) -> None:
    train, test = gn.datasets.load_idx(make_set(tmp_path, compressed=compressed))
    assert_array_equal(train.x, pixels(6)[..., None].astype(np.float32) / np.float32(255))
    assert_array_equal(train.y, labels(6))
    assert (train.x.dtype, train.y.dtype) == (np.float32, np.int64)
    assert test.x.shape == (3, 4, 4, 1)
    flat = gn.datasets.load_idx(str(tmp_path), flat=True)
    assert_array_equal(flat.test.x, test.x.reshape(3, 16))
    assert math.isclose(flat.train.x.max(), pixels(6).max() / 255, rel_tol=1e-6)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"train_labels": written(labels(5))}, "6 train images and 5 labels"),
        ({"t10k_images": written(pixels(4))}, "4 t10k images and 3 labels"),
        ({"t10k_images": written(pixels(3, 5))}, "pixels to train on"),
        ({"train_images": written(labels(6))}, "bytes along 3 axes; it holds uint8 of shape"),
        ({"train_labels": written(pixels(6))}, "bytes along 1 axes; it holds uint8 of shape"),
        ({"train_labels": written(labels(6).astype("int8"))}, "it holds int8"),
        ({"train_images": written(pixels(6))[:-1]}, "cut off"),
        ({"t10k_labels": written(labels(3)) + b"\0"}, "goes on after"),
        ({"t10k_labels": b"<html>"}, "not an IDX file"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, changed: dict[str, bytes], message: str) -> None:
    with pytest.raises(gn.errors.FileError, match=message):
        gn.datasets.load_idx(make_set(tmp_path, **changed))


def test_a_missing_file(tmp_path: Path) -> None:
    (make_set(tmp_path) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(gn.errors.PathError, match=r"no t10k-labels-idx1-ubyte .* and no .*\.gz"):
        gn.datasets.load_idx(tmp_path)
    with pytest.raises(gn.errors.SettingError, match="path of a folder, got NoneType"):
        gn.datasets.load_idx(None)  # type: ignore[arg-type]
    with pytest.raises(gn.errors.SettingError, match="flat"):
        gn.datasets.load_idx(tmp_path, flat=1)  # type: ignore[arg-type]
