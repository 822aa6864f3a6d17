"""The loader: what goes in, the order in which it comes out, where it lies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import gpunn as gn
from gpunn.errors import ShapeError
from tests.conftest import OnlyDLPack, Place, get_place
from tests.samples import SHARED, SPARSE, STRICT, N, W, X, Y, bits, numbered, rows


class OnlyArray:
    """An object that NumPy can read."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.array(self.x, dtype=dtype)


def _memmap(x: Any, folder: Path) -> Any:
    np.save(folder / "x.npy", x)
    return np.load(folder / "x.npy", mmap_mode="r")


def _pandas(x: Any, _: Path) -> Any:
    return pytest.importorskip("pandas").DataFrame(x)


INPUTS: dict[str, Callable[[Any, Path], Any]] = {
    "float64": lambda x, _: x,
    "float32": lambda x, _: x.astype("float32"),
    "float16": lambda x, _: x.astype("float16"),
    "big-endian": lambda x, _: x.astype(">f8"),
    "int64": lambda x, _: x.astype("int64"),
    "uint8": lambda x, _: x.astype("uint8"),
    "bool": lambda x, _: x > 3,
    "not contiguous": lambda x, _: x.repeat(2, axis=1).T[::-2].T,
    "lists": lambda x, _: x.tolist(),
    "memmap": _memmap,
    "pandas": _pandas,
    "subclass": lambda x, _: x.view(type("Subclass", (np.ndarray,), {})),
    "__array__": lambda x, _: OnlyArray(x),
    "DLPack": lambda x, _: OnlyDLPack(x),
    "array-api-strict": lambda x, _: get_place(STRICT).array(x),
}


class TestInputs:
    @pytest.mark.parametrize("make", INPUTS.values(), ids=INPUTS)
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_whatever_comes_in_comes_out_on_the_device(
        self, place: Place, resident: bool, make: Any, dtype: str, tmp_path: Path
    ) -> None:
        if make is INPUTS["float16"] and place.backend.package == "array-api-strict":
            pytest.skip("the standard has no float16")
        given_x = make(np.arange(1.0, 9.0).reshape(4, 2), tmp_path)
        before = np.array(gn.to_numpy(given_x))
        loader = gn.Loader(
            given_x,
            [0, 1, 2, 1],
            batch_size=3,
            sample_weight=[1, 2, 3, 4],
            backend=place.backend,
            dtype=dtype,
            resident=resident,
            rng=0,
        )
        order = np.random.default_rng(0).permutation(4)
        (batch, rest) = loader
        assert gn.to_numpy(batch.x).tolist() == before[order[:3]].astype(dtype).tolist()
        assert gn.to_numpy(rest.y).tolist() == [[0, 1, 2, 1][order[3]]]
        for array, wanted in zip(batch, (dtype, "int64", dtype), strict=True):
            assert gn.backend_of(array) == place.backend
            assert gn.to_numpy(array).dtype == wanted
        assert np.array_equal(gn.to_numpy(given_x), before)

    @pytest.mark.gpu
    def test_arrays_on_a_gpu_stay_there(self, resident: bool) -> None:
        cupy = pytest.importorskip("cupy")
        last = cupy.cuda.runtime.getDeviceCount() - 1  # mostly not the current one
        with cupy.cuda.Device(last):
            x, y = cupy.asarray(X), cupy.asarray(Y)
        settings = {"batch_size": 2, "resident": resident, "rng": 0}
        here = gn.Loader(X, Y, sample_weight=W, **settings)
        there = gn.Loader(x, y, sample_weight=W, **settings)
        back = gn.Loader(x, y, backend="numpy", **settings)
        assert str(there.backend) == f"cupy:{last}"
        for mine, theirs, returned in zip(here, there, back, strict=True):
            assert all(gn.backend_of(part) == there.backend for part in theirs)
            assert bits(mine) == bits(theirs)
            assert bits(mine)[:2] == bits(returned)[:2]

    @pytest.mark.parametrize("kept", ["float32", "float64", "int64", "bool"])
    def test_no_dtype_keeps_what_is_stored(self, place: Place, resident: bool, kept: str) -> None:
        x = np.ones((3, 2), kept)
        loader = gn.Loader(x, x, batch_size=3, dtype=None, backend=place.backend, resident=resident)
        assert [gn.to_numpy(part).dtype for part in next(iter(loader))[:2]] == [kept, kept]

    @pytest.mark.parametrize(
        ("kind", "comes"),
        [("uint8", "int64"), ("int32", "int64"), ("bool", "bool"), ("float64", "float32")],
    )
    def test_targets_stay_labels_or_become_features(
        self, place: Place, resident: bool, kind: str, comes: str
    ) -> None:
        y = np.array([0, 1, 1]).astype(kind)
        loader = gn.Loader(y, y, batch_size=2, backend=place.backend, resident=resident)
        assert gn.to_numpy(next(iter(loader)).y).dtype == comes

    def test_the_backend_is_where_x_is_unless_somebody_says(self) -> None:
        strict = gn.get_backend(STRICT)
        x = strict.asarray(X)
        assert gn.Loader(x, batch_size=2).backend == strict
        assert str(gn.Loader(x, batch_size=2, backend="numpy").backend) == "numpy"
        with gn.use(backend=strict):
            assert gn.Loader(X, batch_size=2).backend == strict


sizes = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))


class TestOrder:
    @given(sizes, st.booleans(), st.integers(0, 2**32))
    @settings(deadline=None, max_examples=40, suppress_health_check=[SHARED])
    def test_an_epoch_is_every_sample_once(
        self, place: Place, size: tuple[int, int], drop_last: bool, seed: int
    ) -> None:
        n, batch_size = size
        where = {"backend": place.backend, "resident": bool(seed % 2), "rng": seed}
        loader = numbered(n, batch_size=batch_size, drop_last=drop_last, **where)
        twin = numbered(n, batch_size=batch_size, resident=True, rng=np.random.default_rng(seed))
        for _ in range(2):
            batches = rows(loader)
            whole = [batch_size] * (n // batch_size)
            rest = [n % batch_size] if n % batch_size and not drop_last else []
            assert [len(batch) for batch in batches] == whole + rest
            assert len(loader) == len(batches)
            seen = [sample for batch in batches for sample in batch]
            assert len(set(seen)) == len(seen)
            assert set(seen) <= set(range(n))
            ahead = [sample for batch in rows(twin) for sample in batch]
            assert seen == ahead[: len(seen)]  # the same seed, the same order everywhere

    def test_each_epoch_has_its_own(self) -> None:
        loader = numbered(50, batch_size=50, rng=0)
        first, second = rows(loader), rows(loader)
        assert sorted(first[0]) == sorted(second[0])
        assert first != second
        assert rows(numbered(50, batch_size=50, rng=1)) not in (first, second)

    def test_without_shuffling_it_is_theirs(self, place: Place, resident: bool) -> None:
        loader = numbered(5, batch_size=2, shuffle=False, backend=place.backend, resident=resident)
        assert rows(loader) == rows(loader) == [[0, 1], [2, 3], [4]]

    def test_reading_in_order_draws_nothing(self, place: Place, resident: bool) -> None:
        settings: dict[str, Any] = {
            "batch_size": 2, "drop_last": True, "backend": place.backend, "resident": resident
        }  # fmt: skip
        plain, read = (numbered(5, rng=3, **settings) for _ in range(2))
        assert rows(read.in_order()) == [[0, 1], [2, 3], [4]]
        assert rows([read.first_row()]) == [[0]]
        assert rows(read) == rows(plain)

    def test_no_batch_size_is_the_full_batch(self, place: Place, resident: bool) -> None:
        loader = numbered(5, batch_size=None, backend=place.backend, resident=resident)
        assert len(loader) == 1
        assert [sorted(batch) for batch in rows(loader)] == [[0, 1, 2, 3, 4]]

    def test_targets_and_weights_travel_with_their_samples(
        self, place: Place, resident: bool
    ) -> None:
        n = np.arange(9)
        loader = gn.Loader(
            n, 2 * n, batch_size=4, sample_weight=3 * n, backend=place.backend, resident=resident
        )
        for batch in (*loader, *loader.in_order()):
            x, y, weight = (gn.to_numpy(part) for part in batch)
            assert (y == 2 * x).all()
            assert (weight == 3 * x).all()

    @pytest.mark.parametrize("n", [8, 9, 10, 11, 12, 13])
    def test_batches_that_are_taken_together(
        self, place: Place, resident: bool, n: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("gpunn.data.loader._BYTES_AT_ONCE", 64)  # two batches of two samples
        loader = gn.Loader(
            np.arange(n), np.arange(n), batch_size=2, backend=place.backend, resident=resident
        )
        for batches in (list(loader), list(loader.in_order())):
            assert [batch.x.shape[0] for batch in batches] == [2] * (n // 2) + [1] * (n % 2)
            assert sorted(sample for batch in rows(batches) for sample in batch) == [*range(n)]
            for batch in batches:
                assert gn.to_numpy(batch.x).tolist() == gn.to_numpy(batch.y).tolist()

    def test_one_generator_serves_several(self) -> None:
        generator = np.random.default_rng(0)
        first, second = (numbered(20, batch_size=20, rng=generator) for _ in range(2))
        assert rows(first) != rows(second)

    def test_a_function_says_it(self, place: Place, resident: bool) -> None:
        orders = iter([[2, 0, 1, 4, 3], [4, 3, 2, 1, 0]])
        loader = numbered(
            5, batch_size=2, shuffle=lambda: next(orders), resident=resident, backend=str(place)
        )
        assert rows(loader) == [[2, 0], [1, 4], [3]]
        assert rows(loader) == [[4, 3], [2, 1], [0]]


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_array", "coo_array"])
@pytest.mark.parametrize("shuffle", [True, False, "blocks"])
def test_a_sparse_matrix_is_made_dense_by_the_batch(
    place: Place, kind: str, shuffle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = getattr(sparse, kind)(SPARSE)
    assert not gn.Loader(x, batch_size=2).resident
    settings = {"batch_size": 2, "shuffle": shuffle, "rng": 0, "backend": str(place)}
    monkeypatch.setattr("gpunn.data.loader._BYTES_AT_ONCE", 1)
    wanted = [bits(batch) for batch in gn.Loader(SPARSE.toarray(), Y, **settings)]
    given = gn.Loader(x, Y, **settings)
    monkeypatch.setattr(type(x), "toarray", _refused_beyond(2, type(x).toarray))
    assert [bits(batch) for batch in given] == wanted


def _refused_beyond(rows: int, toarray: Callable[..., Any]) -> Callable[..., Any]:
    def checked(x: Any) -> Any:
        assert x.shape[0] <= rows
        return toarray(x)

    return checked


class TestPlace:
    @pytest.mark.parametrize("dtype", ["float32", "float64", None])
    @pytest.mark.parametrize("kind", ["float64", "float32", "uint8"])
    def test_resident_or_streamed_the_bits_are_the_same(
        self, place: Place, kind: str, dtype: str | None
    ) -> None:
        x = (100 * X**2).astype(kind)
        settings = {"batch_size": 3, "dtype": dtype, "sample_weight": W.astype(dtype), "rng": 0}
        make = [
            gn.Loader(x, Y, backend=place.backend, resident=r, **settings) for r in (True, False)
        ]
        here = gn.Loader(x, Y, backend="numpy", resident=False, **settings)
        for _ in range(2):
            for batches in zip(*make, here, strict=True):
                assert bits(batches[0]) == bits(batches[1]) == bits(batches[2])

    def test_only_resident_data_lie_on_the_device(self) -> None:
        home, away = gn.get_backend(STRICT), gn.get_backend("numpy")
        for keep, wanted in ((True, home), (False, away), ("auto", home)):
            loader = gn.Loader(X, Y, batch_size=2, backend=home, resident=keep)
            assert [gn.backend_of(part) for part in loader.stored[:2]] == [wanted, wanted]
            assert ("resident" if wanted == home else "streamed") in repr(loader)
            assert loader.targets.base is Y  # as given, and not to be written to
            assert not loader.targets.flags.writeable

    @pytest.mark.parametrize(
        ("dtype", "labels", "size_bytes"),
        [("float32", "uint8", 6 * 4 + 8 + 4), ("float64", "bool", 6 * 8 + 1 + 8),
         (None, "float32", 6 * 8 + 4 + 8)],
    )  # fmt: skip
    def test_auto_takes_half_of_the_free_memory(
        self, monkeypatch: pytest.MonkeyPatch, dtype: str | None, labels: str, size_bytes: int
    ) -> None:
        settings = {"batch_size": 2, "sample_weight": W, "dtype": dtype, "backend": STRICT}
        for free, keeps in (
            (2 * N * size_bytes, True),
            (2 * N * size_bytes - 1, False),
            (None, True),
        ):
            monkeypatch.setattr(gn.Backend, "free_bytes", lambda _, free=free: free)
            loader = gn.Loader(X, Y.astype(labels), resident="auto", **settings)
            assert loader.resident is keeps
        assert gn.Loader(X, resident=True, **settings).resident

    def test_auto_streams_a_memmap(self, tmp_path: Path) -> None:
        x = _memmap(X, tmp_path)
        loader, asked = (gn.Loader(x, batch_size=3, resident=r, rng=0) for r in ("auto", True))
        assert (loader.resident, asked.resident) == (False, True)
        for streamed, kept in zip(loader, asked, strict=True):
            assert type(streamed.x) is type(kept.x) is np.ndarray
            assert bits(streamed) == bits(kept)


class TestTransform:
    def test_it_runs_on_the_device_after_the_conversion(self, place: Place, resident: bool) -> None:
        seen = []

        def halve(x: Any) -> Any:
            seen.append((gn.backend_of(x), gn.to_numpy(x).dtype))
            return x / 2.0

        x = np.array([[2], [4], [6]], "uint8")
        loader = gn.Loader(
            x, batch_size=2, backend=place.backend, resident=resident, transform=halve, rng=0
        )
        assert {sample for batch in rows(loader) for sample in batch} == {1.0, 2.0, 3.0}
        assert rows(loader.in_order()) == [[1.0, 2.0], [3.0]]
        assert set(seen) == {(place.backend, np.dtype("float32"))}
        assert x.ravel().tolist() == [2, 4, 6]

    @pytest.mark.parametrize(
        ("transform", "came"),
        [
            (lambda x: x[:1, ...], r"Array of shape \(1, 2, 3\)"),
            (gn.to_numpy, r"ndarray of shape \(2, 2, 3\)"),
            (lambda _: None, "NoneType of shape None"),
        ],
        ids=["rows lost", "elsewhere", "nothing"],
    )
    def test_it_must_return_as_many_rows_there(self, transform: Any, came: str) -> None:
        loader = gn.Loader(X, batch_size=2, backend=STRICT, transform=transform)
        wanted = f"transform must return an array on {STRICT} with 2 rows, got {came}"
        with pytest.raises(ShapeError, match=wanted):
            next(iter(loader))

    @pytest.mark.parametrize("transform", [lambda x: x[:, :1], lambda x: x.astype("float64")])
    def test_it_must_keep_its_promise(self, transform: Any) -> None:
        transform.keeps_shape = True
        loader = gn.Loader(X, batch_size=2, transform=transform)
        with pytest.raises(
            ShapeError, match=r"says keeps_shape, so .* float32 of shape \(2, 2, 3\)"
        ):
            next(iter(loader))
