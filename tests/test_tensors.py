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
from gpunn.errors import DTypeError, FileError, MissingFileError, PathError, SettingError
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

    def test_what_cannot_be_written(self, path: Path) -> None:
        with pytest.raises(DTypeError, match=r"save: odd is complex128, of which .* no numbers"):
            write("save", path, KIND, {"odd": np.zeros(2, "complex128")})
        with pytest.raises(SettingError, match="the metadata 'format' and"):
            write("save", path, KIND, {}, {"format": "mine"})
        assert not path.exists()


class TestFormat:
    @pytest.mark.parametrize(
        ("written", "message"),
        [
            (Format("gpunn test", 4), "'gpunn test 4', and this gpunn reads those up to 'gpunn t"),
            (Format("gpunn", 3), "of format 'gpunn 3', and 'gpunn test 3' is expected"),
            (Format("pt", 3), "'pt 3', and 'gpunn test 3' is expected"),
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
        path.write_bytes(raw({"__metadata__": {"format": "gpunn test 3"}}))
        with pytest.raises(FileError, match=r"state a digest, as gpunn\.sha256, and it does not"):
            read_as("load", path, KIND)

    @pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
    def test_metadata_that_are_no_json(
        self, path: Path, text: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(json, "dumps", lambda value, dumps=json.dumps, **how: (
                text if value == "odd" else dumps(value, **how)
            ))  # fmt: skip
            write("save", path, KIND, {}, {"step": "odd"})
        with pytest.raises(FileError, match=f"^load: the metadata of {path} are no JSON"):
            read_as("load", path, KIND)

    def test_models_of_a_newer_gpunn_and_other_files_of_this_one(self, path: Path) -> None:
        model = gn.Dense(2, 1, rng=0)
        state = {name: p.value for name, p in model.named_parameters().items()}
        write("save", path, Format("gpunn", 3), state)
        with pytest.raises(FileError, match=r"reads those up to 'gpunn 2'; a newer gpunn wrote it"):
            gn.load(path, model)
        write("save", path, KIND, state)
        with pytest.raises(FileError, match="is of format 'gpunn test 3', and 'gpunn 2' is expec"):
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
            with pytest.raises(FileError, match=r"is damaged: .*gpunn\.sha256"):
                gn.load(path, model, strict=strict)
        assert all((p.value == before[name]).all() for name, p in model.named_parameters().items())

    @pytest.mark.parametrize("stated", ["", "0" * 63, "0" * 65, "é" * 64, "\ud800", "0" * 64])
    def test_a_digest_that_is_none(self, path: Path, stated: str) -> None:
        path.write_bytes(raw({"__metadata__": {"gpunn.sha256": stated}}))
        with pytest.raises(FileError, match="is damaged"):
            read("load", path)

    def test_a_digest_that_is_there_twice(self, path: Path) -> None:
        write("save", path, KIND, {}, {})
        stated = path.read_bytes()[8:].split(b'"')[9]
        assert len(stated) == 64
        content = path.read_bytes().replace(b'"gpunn.sha256"', b'"%b":"","gpunn.sha256"' % stated)
        path.write_bytes(struct.pack("<Q", len(content) - 8) + content[8:])
        with pytest.raises(FileError, match="is not 64 digits"):
            read("load", path)

    def test_an_error_stays_short(self, path: Path) -> None:
        path.write_bytes(raw({"w" * 10_000: 3}))
        with pytest.raises(FileError, match="the entry of www") as caught:
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


def test_memory_is_that_of_the_arrays(path: Path) -> None:
    """They are there once when they are read, and twice, beside the caller's, never."""
    size = 40 << 20
    state = {"large": np.zeros(size // 8), "other": np.zeros(size // 8)}
    tracemalloc.start()
    for task, most in (
        (lambda: write("save", path, KIND, state), 2 * size),
        (lambda: read_as("load", path, KIND), 2 * size),
        (lambda: read("load", path, ["other"]), size),
    ):
        tracemalloc.reset_peak()
        begun, _ = tracemalloc.get_traced_memory()
        task()
        assert tracemalloc.get_traced_memory()[1] - begun < most + (4 << 20)
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
