"""Files of weights that others wrote, in other layouts and types, and damaged ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import gpunn as gn
import gpunn.files.weights
from gpunn.errors import FileError, SettingError
from tests.conftest import Place
from tests.saved import SPECIAL, Counted, Held, bits, make

SHARED = HealthCheck.function_scoped_fixture  # a folder may serve all examples


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def raw(header: Any, data: bytes = b"") -> bytes:
    """Return a file of that header, fit or unfit."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[int], dtype: str = "F32", size: int = 0) -> dict[str, Any]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}


DAMAGED = {
    "empty": b"",
    "short": b"safe",
    "text": b"These are not the weights that you are looking for.",
    "zip": b"PK\x03\x04" + bytes(100),
    "pickle": b"\x80\x04\x95\x1a\0\0\0\0\0\0\0}\x94.",
    "a huge header": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": raw(b"hello"),
    "a list": raw([]),
    "too few bytes": raw(entry([2], size=8), bytes(4)),
    "too many bytes": raw(entry([1], size=4), bytes(8)),
    "a shape without end": raw(entry([0, 2**64 - 1])),
    "a shape past the memory": raw(entry([0, 2**40, 2**40])),
    "too many axes": raw(entry([1] * 70, size=4), bytes(4)),
    "a negative length": raw(entry([-1])),
    "no such type": raw(entry([0], dtype="F99")),
}


def dense(inputs: int, outputs: int, place: Place | None = None) -> gn.Sequential:
    layers = gn.Residual(gn.Dense(inputs, inputs, rng=0)), gn.Dense(inputs, outputs, rng=1)
    return gn.Sequential(*layers).to("numpy" if place is None else place.backend)


def as_torch(model: gn.Sequential, path: Path, metadata: dict[str, str] | None) -> dict[str, Any]:
    """Write a model as PyTorch would; return its arrays, as gpunn has them."""
    arrays = {name: gn.to_numpy(p.value) + 1 for name, p in model.named_parameters().items()}
    turned = {name: np.ascontiguousarray(x.T) for name, x in arrays.items()}
    save_file(turned, path, metadata=metadata)
    return arrays


class TestLayout:
    """The weights of a dense layer are (inputs, outputs), and elsewhere the other way round."""

    @pytest.mark.parametrize("metadata", [{"format": "pt"}, {"format": "mlx"}, None])
    @pytest.mark.parametrize("strict", [True, False])
    def test_torchs_are_transposed_if_asked(
        self, place: Place, path: Path, metadata: Any, strict: bool
    ) -> None:
        model = dense(3, 2, place)
        arrays = as_torch(model, path, metadata)
        assert gn.load(path, model, strict=strict, layout="torch") == ([], [])
        for name, parameter in model.named_parameters().items():
            assert np.array_equal(gn.to_numpy(parameter.value), arrays[name])

    @pytest.mark.parametrize("strict", [True, False])
    @pytest.mark.parametrize("written_by", ["pt", "mlx"])
    def test_a_file_of_theirs_is_refused_until_somebody_says(
        self, path: Path, strict: bool, written_by: str
    ) -> None:
        model = dense(3, 3)  # square weights would fit either way
        before = bits(model)
        as_torch(model, path, {"format": written_by})
        with pytest.raises(FileError, match=f"format is '{written_by}'.*layout='torch'.*'gpunn'"):
            gn.load(path, model, strict=strict)
        assert bits(model) == before
        stored = load_file(path)
        gn.load(path, model, strict=strict, layout="gpunn")
        for name, parameter in model.named_parameters().items():
            assert np.array_equal(parameter.value, stored[name])

    def test_a_weight_that_would_fit_transposed(self, path: Path) -> None:
        model = dense(3, 2)
        as_torch(model, path, None)
        with pytest.raises(FileError) as caught:
            gn.load(path, model)
        (line,) = str(caught.value).splitlines()[1:]
        assert line == (
            "  of another shape: layers.1.weight is (2, 3) in the file and (3, 2) in the model; "
            "it would fit transposed, layout='torch'"
        )
        save_file({name: x.T.copy() for name, x in load_file(path).items()}, path)
        with pytest.raises(FileError, match=r"is \(3, 2\) in the file .* would be transposed"):
            gn.load(path, model, layout="torch")

    def test_other_arrays_stay_as_they_are(self, path: Path) -> None:
        saved, fresh = Counted(gn.Dense(3, 2, rng=0), 7), Counted(gn.Dense(3, 2, rng=1))
        gn.save(path, saved)
        arrays = load_file(path)
        arrays["inner.weight"] = arrays["inner.weight"].T.copy()
        save_file(arrays, path)
        gn.load(path, fresh, layout="torch")
        assert bits(fresh) == bits(saved)

    def test_a_file_of_ours_is_not_torchs(self, path: Path) -> None:
        gn.save(path, dense(3, 3))
        gn.load(path, dense(3, 3), layout="gpunn")
        with pytest.raises(FileError, match="was written by gpunn"):
            gn.load(path, dense(3, 3), layout="torch")

    def test_settings_out_of_range(self, path: Path) -> None:
        gn.save(path, make())
        for name, value in {"layout": "pt", "strict": "no"}.items():
            given_settings: Any = {name: value}
            with pytest.raises(SettingError, match=f"load: {name} must be one of"):
                gn.load(path, make(), **given_settings)


def as_bfloat16(values: Any, path: Path, **others: Any) -> None:
    """Write float32 numbers that have few digits as bfloat16, beside other arrays."""
    halves = (values.view("uint32") >> 16).astype("<u2")
    header: dict[str, Any] = {
        "w": {"dtype": "BF16", "shape": [len(halves)], "data_offsets": [0, halves.nbytes]}
    }
    data = halves.tobytes()
    for name, x in others.items():
        end = len(data) + x.nbytes
        header[name] = {"dtype": "F32", "shape": [*x.shape], "data_offsets": [len(data), end]}
        data += x.tobytes()
    path.write_bytes(raw(header, data))


class TestConversion:
    def test_bfloat16_becomes_float32_bit_for_bit(self, place: Place, path: Path) -> None:
        values = (np.frombuffer(SPECIAL, "uint32") >> 16 << 16).view("float32")
        as_bfloat16(values, path)
        model = Held(w=place.backend.asarray(np.zeros(4, "float32")))
        with pytest.raises(FileError, match=r"convert=True [^!]*w is bfloat16 in the file"):
            gn.load(path, model)
        assert gn.load(path, model, convert=True) == ([], [])
        assert gn.to_numpy(model.w.value).tobytes() == values.tobytes()

    def test_names_must_agree_nonetheless(self, path: Path) -> None:
        save_file({"w": np.ones(3, "float16"), "more": np.ones(1)}, path)
        model = Held(w=np.zeros(3, "float32"))
        with pytest.raises(
            FileError, match=r"strict=False loads what fits:\s+unexpected[^!]*more$"
        ):
            gn.load(path, model, convert=True)
        assert not model.w.value.any()
        assert gn.load(path, model, strict=False) == ([], ["more"])
        assert model.w.value.tolist() == [1.0] * 3
        with pytest.raises(
            SettingError, match="load: convert must be True or False, got 'float32'"
        ):
            gn.load(path, model, convert="float32")  # type: ignore[arg-type]

    @pytest.mark.parametrize("dtype", ["F8_E5M2", "BF16"])
    def test_what_is_not_wanted_may_be_of_any_type(self, path: Path, dtype: str) -> None:
        header = {
            "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "other": {"dtype": dtype, "shape": [4 if dtype == "F8_E5M2" else 2],
                      "data_offsets": [4, 8]},
        }  # fmt: skip
        path.write_bytes(raw(header, np.float32(7).tobytes() + bytes(4)))
        model = Held(w=np.zeros(1, "float32"))
        assert gn.load(path, model, strict=False) == ([], ["other"])
        assert model.w.value.tolist() == [7]

    @pytest.mark.parametrize(
        ("stored", "held"),
        [
            (np.array([1.0, 1e39]), "float32"),
            (np.array([1.0, 1e5], "float32"), "float16"),
            (np.array([1, 2**40]), "int32"),
            (np.array([1, 2**63], "uint64"), "int64"),
        ],
    )
    def test_no_number_becomes_another(self, path: Path, stored: Any, held: str) -> None:
        save_file({"w": stored, "v": stored[:1]}, path)
        model = Held(v=np.zeros(1, held), w=np.zeros(2, held))
        message = f"too large: w has numbers in the file that {held} cannot hold"
        with pytest.raises(FileError, match=message):
            gn.load(path, model, strict=False)
        assert model.v.value.tolist() == [0]

    def test_infinity_stays_infinity(self, path: Path) -> None:
        save_file({"w": np.array([np.inf, np.nan])}, path)
        model = Held(w=np.zeros(2, "float32"))
        gn.load(path, model, strict=False)
        assert repr(model.w.value.tolist()) == "[inf, nan]"


class TestDamage:
    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
    def test_what_is_no_such_file_is_refused(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(FileError, match="is not a safetensors file, or is damaged") as caught:
            gn.load(path, Held(w=np.zeros(1, "float32")))
        assert str(caught.value).startswith(f"load: {path}")

    @pytest.mark.parametrize("strict", [True, False])
    def test_so_are_numbers_that_numpy_lacks(self, path: Path, strict: bool) -> None:
        path.write_bytes(raw(entry([1], dtype="F8_E4M3", size=1), bytes(1)))
        with pytest.raises(FileError, match=r"w is F8_E4M3 in the file; convert the file to F32"):
            gn.load(path, Held(w=np.zeros(1, "float32")), strict=strict)

    @given(
        edits=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
        length=st.one_of(st.none(), st.integers(0, 2000)),
        strict=st.booleans(),
    )
    @settings(deadline=None, max_examples=300, suppress_health_check=[SHARED])
    def test_damage_is_told_and_touches_nothing(
        self, path: Path, edits: list[tuple[int, int]], length: int | None, strict: bool
    ) -> None:
        gn.save(path, make(1))
        content = bytearray(path.read_bytes())
        for position, value in edits:
            content[position % len(content)] = value
        path.write_bytes(content[:length])
        model = make(0)
        before = bits(model)
        try:
            gn.load(path, model, strict=strict)
        except FileError:
            assert bits(model) == before
        else:
            after = bits(model)
            assert {k: v[:2] for k, v in after.items()} == {k: v[:2] for k, v in before.items()}

    def test_a_missing_file_is_missing(self, path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=path.name):
            gn.load(path, make())
