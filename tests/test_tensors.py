"""The one mechanism for files of arrays: what is written is read, or damage is found."""

from __future__ import annotations

import json
import math
import os
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import gpunn as gn
from gpunn.errors import DTypeError, FileError, MissingFileError, PathError
from gpunn.files.tensors import Format, read, read_as, write
from tests.conftest import Place
from tests.fuzzed import as_file
from tests.saved import SPECIAL

KIND = Format("gpunn test", 3)
DTYPES = (
    *("float64", "float32", "float16", "complex64", "bool"),
    *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.safetensors"


def arrays() -> dict[str, Any]:
    """Return arrays of every type, with axes of length 0, without axes, and in any order."""
    found = {name: np.arange(6).reshape(2, 3).astype(name) for name in DTYPES}
    turned = np.arange(6.0).reshape(2, 3).T
    return {"empty": np.zeros((0, 3)), "scalar": np.asarray(1.5), "turned": turned, **found}


def bits(found: Any) -> dict[str, Any]:
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in found.items()}


def raw(header: Any, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def stating(**said: Any) -> dict[str, Any]:
    """Return a header with gpunn's entry in its metadata."""
    return {"__metadata__": {"gpunn": json.dumps(said, separators=(",", ":"))}}


class TestPair:
    def test_arrays_and_metadata_come_back(self, path: Path) -> None:
        numbers = [0.1, 1e-320, -0.0, 1e308, 2**80, True, None]
        metadata = {"step": 3, "texts": {"é\ud800": "\0"}, "numbers": numbers, "lost": math.nan}
        write("save", path, KIND, arrays(), metadata)
        found, said = read_as("load", path, KIND)
        assert bits(found) == bits(arrays())
        assert all(x.flags.writeable and x.flags.c_contiguous for x in found.values())
        assert repr(said) == repr(metadata)

    def test_other_readers_find_them_too(self, path: Path) -> None:
        write("save", path, KIND, arrays())
        assert bits(load_file(path)) == bits(arrays())

    def test_nothing_is_a_content_too(self, path: Path) -> None:
        write("save", path, KIND, {})
        assert read_as("load", path, KIND) == ({}, {})

    def test_on_any_backend(self, place: Place, path: Path) -> None:
        values = np.frombuffer(SPECIAL, "float32")
        write("save", path, KIND, {"x": place.backend.asarray(values)})
        assert read_as("load", path, KIND)[0]["x"].tobytes() == SPECIAL

    def test_equal_contents_give_equal_files(self, path: Path) -> None:
        write("save", path, KIND, arrays(), {"a": 1})
        first = path.read_bytes()
        write("save", path, KIND, dict(reversed(arrays().items())), {"a": 1})
        assert path.read_bytes() == first

    @pytest.mark.parametrize(
        "value",
        [
            np.arange(6.0).reshape(2, 3).T,
            np.arange(10.0)[::-2],
            np.broadcast_to(np.float32(2.0), (2, 2)),
            np.arange(6, dtype=">f8").reshape(2, 3).T,
            np.asarray(7, ">i2"),
        ],
        ids=["turned", "backwards", "repeated", "big-endian and turned", "big-endian"],
    )
    def test_however_they_lie(self, path: Path, value: Any) -> None:
        write("save", path, KIND, {"x": value})
        (found,) = read_as("load", path, KIND)[0].values()
        assert found.dtype == value.dtype.newbyteorder("=")
        assert found.tolist() == value.tolist()
        assert load_file(path)["x"].tolist() == value.tolist()

    def test_what_cannot_be_written(self, path: Path) -> None:
        with pytest.raises(DTypeError, match=r"save: odd is complex128, which .* cannot hold"):
            write("save", path, KIND, {"odd": np.zeros(2, "complex128")})
        with pytest.raises(FileError, match=f"save: {path} was not written, .* surrogates not"):
            write("save", path, KIND, {"\ud800": np.zeros(2)})
        with pytest.raises(FileError, match="save: no array can be called __metadata__"):
            write("save", path, KIND, {"__metadata__": np.zeros(2)})
        assert not path.exists()


class TestFormat:
    @pytest.mark.parametrize(
        ("written", "message"),
        [
            (Format("gpunn test", 4), "'gpunn test 4', and this gpunn reads those up to 'gpunn t"),
            (Format("gpunn", 3), "of format 'gpunn 3', but 'gpunn test 3' is expected"),
            (Format("pt", 3), "'pt 3', but 'gpunn test 3' is expected"),
        ],
    )
    def test_another_is_refused(self, path: Path, written: Format, message: str) -> None:
        write("save", path, written, arrays())
        with pytest.raises(FileError, match=f"^load: {path} is .*{message}"):
            read_as("load", path, KIND)

    @pytest.mark.parametrize("version", ["", "x", "-1", "1" * 5000, "3 "])
    def test_so_is_a_version_that_is_no_number(self, path: Path, version: str) -> None:
        path.write_bytes(raw({"__metadata__": {"format": f"gpunn test {version}"}}))
        with pytest.raises(FileError, match="is expected"):
            read_as("load", path, KIND)

    def test_a_digest_cannot_be_left_out(self, path: Path) -> None:
        said = {"format": "gpunn test 3", "metadata": {}}
        for header in (stating(**said), stating(**said, sha256="0" * 64)):  # not where it belongs
            path.write_bytes(raw(header))
            with pytest.raises(FileError, match=r"state a digest, .*, and this one does not"):
                read_as("load", path, KIND)

    @pytest.mark.parametrize(
        "text",
        [
            *("", "{", "[" * 100_000, "[]", "3", "{}", '{"format":"gpunn test 3"}'),
            *('{"format":3,"metadata":{}}', '{"format":"gpunn test 3","metadata":[]}'),
        ],
    )
    def test_an_entry_that_is_none_of_gpunns(self, path: Path, text: str) -> None:
        path.write_bytes(raw({"__metadata__": {"gpunn": text}}))
        with pytest.raises(FileError, match=f"^load: {path} is not a safetensors file, or is dam"):
            read_as("load", path, KIND)

    def test_models_of_a_newer_gpunn_and_other_files_of_this_one(self, path: Path) -> None:
        model = gn.Dense(2, 1, rng=0)
        state = {name: p.value for name, p in model.named_parameters().items()}
        write("save", path, Format("gpunn", 3), state)
        with pytest.raises(FileError, match=r"reads those up to 'gpunn 2'; a newer gpunn wrote it"):
            gn.load(path, model)
        write("save", path, KIND, state)
        with pytest.raises(FileError, match="is of format 'gpunn test 3', but 'gpunn 2' is expec"):
            gn.load(path, model)

    def test_models_of_an_older_gpunn_are_read(self, path: Path) -> None:
        place = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        path.write_bytes(raw({"__metadata__": {"format": "gpunn 1"}, "bias": place}, b"\0\0\0\x40"))
        model = gn.Dense(2, 1, rng=0)
        assert gn.load(path, model, strict=False).missing == ["weight"]
        assert model.bias is not None
        assert model.bias.value.tolist() == [2.0]


class TestDamage:
    """Whatever byte is another, or missing, or too many: the file is refused."""

    @pytest.fixture
    def content(self, path: Path) -> bytes:
        write("save", path, KIND, {"weight": np.arange(6.0), "mask": np.ones(3, "?")}, {"step": 3})
        return path.read_bytes()

    def refuses(self, content: bytes) -> bool:
        path = as_file(content)  # in memory: there are thousands to write
        with pytest.raises(FileError, match=f"^load: {path} is "):
            read_as("load", path, KIND)
        return True

    def test_each_bit(self, content: bytes) -> None:
        for place in range(len(content)):
            for bit in range(8):
                damaged = bytearray(content)
                damaged[place] ^= 1 << bit
                assert self.refuses(bytes(damaged))

    def test_each_byte_as_zero_and_as_any_other(self, content: bytes) -> None:
        rng = np.random.default_rng(7)
        for place, byte in enumerate(content):
            for other in {0, 255, ord("0"), ord('"'), *rng.integers(256, size=4).tolist()} - {byte}:
                damaged = bytearray(content)
                damaged[place] = other
                assert self.refuses(bytes(damaged))

    def test_each_length(self, content: bytes) -> None:
        for length in range(len(content)):
            assert self.refuses(content[:length])
        assert self.refuses(content + b"\0")

    def test_arrays_that_nobody_wants_are_checked_too(self, path: Path, content: bytes) -> None:
        path.write_bytes(content[:-1] + b"\0")
        with pytest.raises(FileError, match=r"do not have the digest .* Restore it from a copy"):
            read("load", path, ["weight"])

    def test_a_model_is_not_loaded_in_part(self, path: Path) -> None:
        gn.save(path, gn.Dense(3, 2, rng=0))
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
        model = gn.Dense(3, 2, rng=1)
        before = {name: p.value.copy() for name, p in model.named_parameters().items()}
        for strict in (True, False):
            with pytest.raises(FileError, match=r"is damaged: .*digest sha256"):
                gn.load(path, model, strict=strict)
        assert all((p.value == before[name]).all() for name, p in model.named_parameters().items())

    @pytest.mark.parametrize("stated", ["", "0" * 63, "0" * 65, "é" * 64, "\ud800", "0" * 64])
    def test_a_digest_that_is_none(self, path: Path, stated: str) -> None:
        path.write_bytes(raw(stating(sha256=stated, format="gpunn test 3", metadata={})))
        with pytest.raises(FileError, match="is damaged"):
            read_as("load", path, KIND)

    def test_digests_among_the_metadata_and_names_are_none(self, path: Path) -> None:
        """The one at the beginning of the entry counts."""
        texts = {"sha256": "0" * 64, "text": '"{"sha256":"' + "0" * 64 + '"'}
        arrays = {'{"sha256":"' + "1" * 64 + '"': np.arange(3.0)}
        write("save", path, KIND, arrays, texts)
        assert read_as("load", path, KIND)[1] == texts

    def test_an_error_stays_short(self, path: Path) -> None:
        path.write_bytes(raw({"w": {"dtype": "F" * 10_000, "shape": [], "data_offsets": [0, 0]}}))
        with pytest.raises(FileError, match="FFF") as caught:
            read("load", path)
        assert len(str(caught.value)) < 1000

    def test_truth_values_that_are_neither(self, path: Path) -> None:
        path.write_bytes(raw({"m": {"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}}, b"\2"))
        with pytest.raises(FileError, match="m is BOOL, with bytes that are neither 0 nor 1"):
            read("load", path)


class TestPlace:
    def test_what_cannot_be_read(self, path: Path) -> None:
        for missing in (path, path.parent / "nowhere" / "file"):
            with pytest.raises(MissingFileError, match=f"^load: there is no file {missing}$"):
                read("load", missing)
        with pytest.raises(PathError, match=r"is a folder"):
            read("load", path.parent)
        with pytest.raises(PathError, match=r"is a device, a pipe or a socket"):
            read("load", Path(os.devnull))
        with pytest.raises(PathError, match=r"load: cannot read .*null"):
            read("load", path / "a\0b")

    @pytest.mark.skipif(os.name != "posix", reason="pipes with names are POSIX's")
    def test_a_pipe_is_not_waited_for(self, path: Path) -> None:
        os.mkfifo(path)
        with pytest.raises(PathError, match=r"is a device, a pipe or a socket"):
            read("load", path)

    def test_a_link_is_followed(self, path: Path) -> None:
        write("save", path, KIND, arrays())
        link = path.with_name("link")
        link.symlink_to(path.name)
        assert bits(read_as("load", link, KIND)[0]) == bits(arrays())


def test_memory_is_twice_that_of_the_arrays(path: Path) -> None:
    """They are there as the file and as arrays; what is read has them once."""
    size = 40 << 20
    state = {"large": np.zeros(size // 8), "other": np.zeros(size // 8)}
    whole = 2 * size
    tracemalloc.start()
    try:
        for task, most, left in (
            (lambda: write("save", path, KIND, state), 2 * whole, 0),
            (lambda: read_as("load", path, KIND), 2 * whole, whole),
            (lambda: read("load", path, ["other"]), 2 * whole, size),
        ):
            tracemalloc.reset_peak()
            begun, _ = tracemalloc.get_traced_memory()
            result = task()
            now, peak = tracemalloc.get_traced_memory()
            assert peak - begun < most + (4 << 20)
            assert now - begun < left + (4 << 20)
            del result
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("announced", [2**30, 2**40, 2**62])
def test_a_small_file_takes_little_memory(path: Path, announced: int) -> None:
    """Whatever its header announces."""
    entry = {"dtype": "U8", "shape": [announced], "data_offsets": [0, announced]}
    header = raw({"w": entry}, bytes(100))
    for content in (header, struct.pack("<Q", announced) + header[8:]):
        path.write_bytes(content)
        tracemalloc.start()
        with pytest.raises(FileError, match="damaged"):
            read("load", path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
        tracemalloc.stop()
