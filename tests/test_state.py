"""Files of weights: what they hold, what they refuse, and what a failure leaves behind."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import gpunn as gn
import gpunn.files.weights
from gpunn.errors import FileError, PathError, SettingError
from tests.conftest import Place, get_place
from tests.saved import NAMES, SPECIAL, Held, bits, make


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def digest_of(path: Path) -> str:
    """Return the digest that a file should state, as the documentation has it."""
    content = path.read_bytes()
    with safe_open(path, "np") as file:
        stated = json.loads(file.metadata()["gpunn"])["sha256"].encode()
    return hashlib.sha256(content.replace(stated, b"0" * 64)).hexdigest()


class TestContent:
    def test_any_reader_finds_the_arrays_by_dotted_name(self, place: Place, path: Path) -> None:
        model = make(backend=place.backend)
        gn.save(path, model)
        arrays = load_file(path)
        assert set(arrays) == NAMES  # what is shared is there once
        found = {name: (str(x.dtype), x.shape, x.tobytes()) for name, x in arrays.items()}
        assert found == bits(model)
        with safe_open(path, "np") as file:
            (said,) = file.metadata().values()
        assert json.loads(said) == {
            "sha256": digest_of(path),
            "format": "gpunn 2",
            "metadata": {},
        }

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
            f"load: {path} does not fit the model, which is unchanged:",
            "of another shape: layers.1.mean is (3, 2) in the file and (2, 3) in the model",
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


class TestNothingInCommon:
    @pytest.mark.parametrize("strict", [True, False])
    def test_it_is_refused_with_the_names_of_both(self, path: Path, strict: bool) -> None:
        save_file({f"part.{i:02}": np.ones(2) for i in range(12)}, path)
        model = make()
        before = bits(model)
        with pytest.raises(FileError, match="no name in common, so nothing was loaded") as e:
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
        with pytest.raises(FileError, match="b cannot be written to in the model, which is unch"):
            gn.load(path, model)
        assert bits(model) == before


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
            f"nowhere/{name}": f"save: there is no folder {folder} to write {name} into; create it "
            "first",
            ".": f"save: {tmp_path} is a folder; name a file, such as {tmp_path / name}",
        }
        assert str(caught.value) == wanted[target]
        assert isinstance(caught.value, FileError)

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(PathError, match=r"load: .* is a folder; name a file in it"):
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
