"""Files of weights: what they hold, what they refuse, and what a failure leaves behind."""

from __future__ import annotations

import json
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpunn as gn
import gpunn.files.weights
from gpunn.errors import FileError, PathError, SettingError
from tests.conftest import Place, get_place

SHARED = HealthCheck.function_scoped_fixture  # a folder may serve all examples
SPECIAL = b"\x01\0\xa0\x7f\0\0\xc0\xff\0\0\0\x80\x01\0\0\0"  # two NaNs, -0 and a subnormal


class Counted(gn.Layer):
    """A layer with state that is not trained, of several kinds."""

    def __init__(self, inner: gn.Layer, start: int = 0) -> None:
        self.inner = inner
        self.mean = gn.Buffer(np.full((2, 3), float(start)))
        self.seen = gn.Buffer(np.asarray(start))
        self.extra = {"mask": [gn.Buffer(np.asarray([bool(start), False]))]}


class Held(gn.Layer):
    """Parameters by name; whole numbers are buffers."""

    def __init__(self, **values: Any) -> None:
        for name, x in values.items():
            kind = gn.Buffer if "int" in str(x.dtype) else gn.Parameter
            setattr(self, name, kind(x))


def make(seed: int = 0, backend: gn.Backend | str = "numpy") -> gn.Sequential:
    """Return a model with nested layers, shared ones and buffers."""
    shared = gn.Dense(3, 3, "tanh", rng=seed)
    deep = Counted(gn.Residual(gn.Dense(3, 3, bias=False, dtype="float64", rng=seed)), seed)
    return gn.Sequential(shared, deep, shared, gn.ReLU()).to(backend)


NAMES = {
    "layers.0.weight", "layers.0.bias", "layers.1.inner.layer.weight",
    "layers.1.mean", "layers.1.seen", "layers.1.extra.mask.0",
}  # fmt: skip


def bits(model: gn.Layer) -> dict[str, Any]:
    """Return all that a file should hold of a model."""
    held = {**model.named_parameters(), **model.named_buffers()}
    arrays = {name: gn.to_numpy(item.value) for name, item in held.items()}
    return {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in arrays.items()}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


class TestContent:
    def test_any_reader_finds_the_arrays_by_dotted_name(self, place: Place, path: Path) -> None:
        model = make(backend=place.backend)
        gn.save(path, model)
        arrays = load_file(path)
        assert set(arrays) == NAMES  # what is shared is there once
        found = {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in arrays.items()}
        assert found == bits(model)
        with safe_open(path, "np") as file:
            assert file.metadata() == {"format": "gpunn 1"}

    def test_a_file_does_not_depend_on_the_backend(self, place: Place, tmp_path: Path) -> None:
        files = [tmp_path / "here", tmp_path / "there"]
        gn.save(files[0], make())
        gn.save(str(files[1]), make(backend=place.backend))
        assert files[0].read_bytes() == files[1].read_bytes()

    @pytest.mark.parametrize(
        "value",
        [
            np.arange(6.0).reshape(2, 3).T,
            np.asfortranarray(np.arange(6.0).reshape(2, 3)),
            np.arange(10.0)[::-2],
            np.broadcast_to(np.float32(2.0), (2, 2)),
            np.arange(3, dtype=">f4"),
            np.zeros((0, 3)),
            np.asarray(1.0),
            np.float32(1.5),
        ],
    )
    def test_how_the_memory_lies_does_not_matter(self, path: Path, value: Any) -> None:
        gn.save(path, Held(value=value))
        fresh = Held(value=np.ones(value.shape, value.dtype.newbyteorder("=")))
        gn.load(path, fresh)
        assert np.array_equal(fresh.value.value, value)
        assert load_file(path)["value"].shape == value.shape

    def test_a_scalar_is_loaded_and_can_be_counted_on(self, path: Path) -> None:
        gn.save(path, make(7))
        model = make(0)
        model[1].seen.value = model[1].seen.value + 1  # NumPy makes a scalar of it
        gn.load(path, model)
        assert bits(model) == bits(make(7))
        model[1].seen.value += 1
        assert int(model[1].seen.value) == 8


class TestLoad:
    @pytest.mark.parametrize(
        "other", ["numpy", "array-api-strict:2", pytest.param("cupy", marks=pytest.mark.gpu)]
    )
    def test_a_file_from_elsewhere_gives_the_same_bits(
        self, place: Place, path: Path, other: str
    ) -> None:
        saved, fresh = make(3, get_place(other).backend), make(0, place.backend)
        for item in saved.layers[0].parameters():
            item.value[...] = saved.backend.asarray(np.frombuffer(SPECIAL[:4], "float32")[0])
        arrays = {name: item.value for name, item in fresh.named_parameters().items()}
        gn.save(path, saved)
        assert gn.load(path, fresh) == ([], [])
        assert bits(fresh) == bits(saved)
        assert fresh.backend == place.backend
        for name, item in fresh.named_parameters().items():
            assert item.value is arrays[name]  # in place: optimizers hold the arrays

    def test_every_bit_of_a_float_arrives(self, place: Place, path: Path) -> None:
        saved = Held(value=np.frombuffer(SPECIAL, "float32"))
        fresh = Held(value=place.backend.asarray(np.zeros(4, "float32")))
        gn.save(path, saved)
        gn.load(path, fresh)
        assert gn.to_numpy(fresh.value.value).tobytes() == SPECIAL

    @pytest.mark.gpu
    def test_a_gpu_need_not_be_the_current_one(self, path: Path) -> None:
        cupy = pytest.importorskip("cupy")
        last = f"cupy:{cupy.cuda.runtime.getDeviceCount() - 1}"
        saved, fresh = make(3, last), make(0, last)
        gn.save(path, saved)
        gn.load(path, fresh)
        assert bits(fresh) == bits(make(3))
        assert str(fresh.backend) == last

    def test_not_strict_loads_what_both_have(self, place: Place, path: Path) -> None:
        where = place.backend.asarray
        gn.save(path, Held(both=np.asarray([0.1, 2.0]), more=np.ones(3)))
        model = Held(both=where(np.zeros(2, "float32")), less=where(np.ones(1)))
        with pytest.raises(FileError, match="strict=False loads what fits"):
            gn.load(path, model)
        report = gn.load(path, model, strict=False)
        assert report == gn.LoadReport(missing=["less"], unexpected=["more"])
        assert bits(model)["both"] == ("float32", (2,), np.asarray([0.1, 2.0], "float32").tobytes())
        assert gn.to_numpy(model.less.value).tolist() == [1.0]

    def test_one_error_lists_all_that_does_not_fit(self, place: Place, path: Path) -> None:
        model = make(1, place.backend)
        before = bits(model)
        gn.save(path, model)
        arrays = load_file(path)
        arrays["surplus"] = arrays.pop("layers.0.bias")
        arrays["layers.1.mean"] = arrays["layers.1.mean"].T.copy()
        arrays["layers.1.seen"] = arrays["layers.1.seen"].astype("float32")
        inner = "layers.1.inner.layer.weight"
        arrays[inner] = arrays[inner].astype("float32")
        arrays["layers.0.weight"] += 1.0  # this alone would fit
        save_file(arrays, path)
        with pytest.raises(FileError) as caught:
            gn.load(path, model)
        lines = [line.strip() for line in str(caught.value).splitlines()]
        assert lines == [
            f"load: {path} does not fit the model, which is left as it was:",
            "misshapen: layers.1.mean is (3, 2) in the file and (2, 3) in the model",
            "of another kind: layers.1.seen is float32 in the file and int64 in the model",
            "missing in the file: layers.0.bias",
            "unexpected in the file: surplus",
            f"of another dtype: {inner} is float32 in the file and float64 in the model",
        ]
        assert bits(model) == before
        with pytest.raises(FileError) as caught:
            gn.load(path, model, strict=False)
        assert [line.strip() for line in str(caught.value).splitlines()] == lines[:3]
        assert bits(model) == before

    def test_the_order_of_arguments(self, path: Path) -> None:
        for mixed_up in (gn.save, gn.load):
            with pytest.raises(
                SettingError, match=r"a path and then a model, got .*Path as the model; swap them"
            ):
                mixed_up(make(), path)  # type: ignore[arg-type]
            with pytest.raises(SettingError, match=f"{mixed_up.__name__}: .* got int as the path"):
                mixed_up(3, make())  # type: ignore[arg-type]
            with pytest.raises(SettingError, match=r"a path and then a model, got dict as the mod"):
                mixed_up(path, {})  # type: ignore[arg-type]


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


class TestNothingInCommon:
    @pytest.mark.parametrize("strict", [True, False])
    def test_it_is_refused_with_the_names_of_both(self, path: Path, strict: bool) -> None:
        save_file({f"part.{i:02}": np.ones(2) for i in range(12)}, path)
        model = make()
        before = bits(model)
        with pytest.raises(FileError, match="no name in common, so that nothing was loaded") as e:
            gn.load(path, model, strict=strict)
        assert "strict=False" not in str(e.value)
        in_file, in_model = str(e.value).splitlines()[1:]
        shown = ", ".join(f"part.{i:02}" for i in range(10))
        assert in_file == f"  in the file: {shown} and 2 more"
        assert set(in_model.removeprefix("  in the model: ").split(", ")) == NAMES
        assert bits(model) == before

    def test_nor_does_an_empty_file_load(self, path: Path) -> None:
        save_file({}, path)
        with pytest.raises(FileError, match="in the file: none"):
            gn.load(path, make(), strict=False)


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
            "  misshapen: layers.1.weight is (2, 3) in the file and (3, 2) in the model; "
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
        with pytest.raises(FileError, match=r"strict=False [^!]*w is bfloat16 in the file"):
            gn.load(path, model)
        gn.load(path, model, strict=False)
        assert gn.to_numpy(model.w.value).tobytes() == values.tobytes()

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


def frozen(x: Any) -> Any:
    x = np.array(x)
    x.flags.writeable = False
    return x


class TestUntouched:
    """A model is loaded as a whole, or not at all."""

    @pytest.mark.parametrize("strict", [True, False])
    def test_what_refuses_writing_is_named_beforehand(self, path: Path, strict: bool) -> None:
        gn.save(path, Held(a=np.ones(2), b=np.ones(2), c=np.ones(())))
        model = Held(a=np.zeros(2), b=frozen(np.zeros(2)), c=frozen(0.0))
        model.b = gn.Buffer(model.b.value)
        before = bits(model)
        with pytest.raises(FileError) as caught:
            gn.load(path, model, strict=strict)
        assert sorted(line.strip() for line in str(caught.value).splitlines()[1:]) == [
            "read-only: b cannot be written to in the model",
            "read-only: c cannot be written to in the model",
        ]
        assert bits(model) == before

    @pytest.mark.parametrize("failing", range(3))
    @pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
    def test_a_failure_on_the_way_is_undone(
        self, place: Place, path: Path, failing: int, kind: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def make_model(value: float) -> Held:
            x = place.backend.asarray(np.full(2, value))
            model = Held(a=x, b=np.float32(value), c=place.backend.asarray(np.asarray(value)))
            model.c = gn.Buffer(model.c.value)
            return model

        gn.save(path, make_model(1.0))
        model = make_model(0.0)
        arrays = model.a.value, model.c.value
        before = bits(model)
        calls = []

        def put(item: Any, array: Any, write: Any = gpunn.files.weights._put) -> None:
            calls.append(item)
            write(item, array)
            if len(calls) == failing + 1:
                raise kind("lost the device")

        monkeypatch.setattr("gpunn.files.weights._put", put)
        expected = kind if kind is KeyboardInterrupt else FileError
        with pytest.raises(expected, match="lost the device"):
            gn.load(path, model)
        assert bits(model) == before
        assert (model.a.value, model.c.value)[0] is arrays[0]

    def test_so_is_one_of_an_array_that_hides_that_it_is_read_only(self, path: Path) -> None:
        strict = gn.get_backend("array-api-strict")
        gn.save(path, Held(a=np.ones(2), b=np.ones(2), c=np.ones(2)))
        model = Held(a=strict.asarray(np.zeros(2)), b=strict.asarray(frozen(np.zeros(2))),
                     c=strict.asarray(np.zeros(2)))  # fmt: skip
        before = bits(model)
        with pytest.raises(FileError, match="b cannot be written to in the model, which is left"):
            gn.load(path, model)
        assert bits(model) == before


class TestDamage:
    @pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
    def test_what_is_no_such_file_is_refused(self, path: Path, content: bytes) -> None:
        path.write_bytes(content)
        with pytest.raises(FileError, match="is no safetensors file, or is damaged") as caught:
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


class TestWriting:
    @pytest.mark.parametrize("function", ["replace", "fsync"])
    @pytest.mark.parametrize("kind", [OSError, KeyboardInterrupt])
    def test_an_interruption_leaves_the_old_file_and_no_other(
        self,
        monkeypatch: pytest.MonkeyPatch,
        path: Path,
        function: str,
        kind: type[BaseException],
    ) -> None:
        gn.save(path, make(1))
        before = path.read_bytes()

        def fail(*_: Any) -> None:
            assert [part.suffix for part in path.parent.iterdir() if part != path] == [".part"]
            raise kind("no space left")

        with monkeypatch.context() as patch:
            patch.setattr(os, function, fail)
            with pytest.raises(kind, match="no space left"):
                gn.save(path, make(2))
        assert list(path.parent.iterdir()) == [path]
        assert path.read_bytes() == before
        gn.save(path, make(2))
        assert path.read_bytes() != before

    @pytest.mark.parametrize("target", ["nowhere/model.safetensors", "."])
    def test_a_place_that_cannot_be_written_to(self, tmp_path: Path, target: str) -> None:
        with pytest.raises(OSError, match="nowhere" if target != "." else tmp_path.name) as caught:
            gn.save(tmp_path / target, make())
        assert list(tmp_path.iterdir()) == []
        folder, name = tmp_path / "nowhere", "model.safetensors"
        wanted = {
            f"nowhere/{name}": f"save: there is no folder {folder} to write {name} into; make it "
            "first",
            ".": f"save: {tmp_path} is a folder; name a file, such as {tmp_path / name}",
        }
        assert str(caught.value) == wanted[target]
        assert isinstance(caught.value, FileError)

    def test_a_failure_names_the_file_and_no_other(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(self: Path, mode: str) -> Any:
            raise PermissionError(13, "Permission denied", str(self))

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(PathError) as caught:
            gn.save(path, make())
        assert str(caught.value) == f"save: cannot write {path}: Permission denied"

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(PathError, match="is a folder, and no file of weights"):
            gn.load(tmp_path, make())

    @pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
    @pytest.mark.parametrize(("umask", "fresh"), [(0o022, 0o644), (0o077, 0o600)])
    def test_permissions_are_those_of_any_new_file_or_of_the_old(
        self, path: Path, umask: int, fresh: int
    ) -> None:
        before = os.umask(umask)
        try:
            gn.save(path, make())
            assert stat.S_IMODE(path.stat().st_mode) == fresh
            path.chmod(0o640)
            gn.save(path, make())
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
        finally:
            os.umask(before)

    def test_a_model_without_arrays_has_a_file_too(self, path: Path) -> None:
        gn.save(path, gn.Sequential(gn.ReLU()))
        assert gn.load(path, gn.Sequential(gn.Flatten(), gn.Tanh())) == ([], [])
