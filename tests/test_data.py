"""The loader: what goes in, the order in which it comes out, where it lies, what is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import sparse

import gpunn as gn
from gpunn.errors import DataError, DTypeError, GpunnError, SettingError, ShapeError
from tests.conftest import OnlyDLPack, Place, get_place

STRICT = "array-api-strict:1"
SHARED = HealthCheck.function_scoped_fixture  # a place may serve all examples
N = 7
X = np.random.default_rng(0).standard_normal((N, 2, 3))
Y = np.arange(N) % 3
W = np.linspace(0.5, 2.0, N)
SPARSE = sparse.coo_array(np.eye(N, 4, k=-1))


def rows(batches: Any) -> list[list[float]]:
    """Return the first column of each batch, as lists."""
    return [gn.to_numpy(batch.x).reshape(batch.x.shape[0], -1)[:, 0].tolist() for batch in batches]


def numbered(n: int, **settings: Any) -> gn.Loader:
    """Return a loader whose samples hold their own numbers."""
    return gn.Loader(np.arange(n), **settings)


def bits(batch: gn.Batch) -> list[Any]:
    """Return everything that can be told of a batch."""
    arrays = [None if part is None else gn.to_numpy(part) for part in batch]
    return [None if a is None else (a.dtype, a.shape, a.tobytes()) for a in arrays]


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


@pytest.fixture(params=[True, False], ids=["resident", "streamed"])
def resident(request: pytest.FixtureRequest) -> bool:
    return request.param


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


class Strict(NamedTuple):
    """Values that a test brings to array-api-strict, where it is installed."""

    values: Any


def _with(array: Any, index: Any, value: float) -> Any:
    array = np.array(array, dtype="float64")
    array[index] = value
    return array


NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[type[GpunnError], list[str], dict[str, Any]]] = [
    (DataError, ["x has 7 samples and y has 6"], {"y": Y[:-1]}),
    (DataError, ["x has 7 samples and sample_weight has 8"], {"sample_weight": np.ones(8)}),
    (DataError, ["x is empty, of shape (0, 3)"], {"x": np.ones((0, 3)), "y": None}),
    (DataError, ["x is empty"], {"x": [], "y": []}),
    *(
        (SettingError, ["batch_size must be from 1 to", "samples, 7; got", "None is"], {name: size})
        for name, size in (("batch_size", 8), ("batch_size", 32))
    ),
    *(
        (
            SettingError,
            [f"batch_size must be None or a whole number above 0, got {size!r}"],
            {"batch_size": size},
        )
        for size in (0, -1, 2.0, "2", True)
    ),
    *(
        (SettingError, [f"{name} must be one of {choices}; got {value!r}"], {name: value})
        for name, choices, value in (
            ("resident", "True, False, 'auto'", "yes"),
            ("resident", "True, False, 'auto'", 1),
        )
    ),
    (SettingError, ["dtype must be None, 'float32' or 'float64', got 'int8'"], {"dtype": "int8"}),
    (SettingError, ["drop_last must be True or False, got 'no'"], {"drop_last": "no"}),
    (SettingError, ["shuffle must be a function or one of", "got 'block'"], {"shuffle": "block"}),
    *(
        (SettingError, [f"{name} must be a whole number above 0, got {value!r}"], {name: value})
        for name, value in (("block_size", 0), ("block_size", True), ("window", 1.5))
    ),
    (SettingError, ["transform must be a function, got 3"], {"transform": 3}),
    (DTypeError, ["x must hold real numbers, got object", "convert"], {"x": [{}] * N}),
    (DTypeError, ["y must hold real numbers, got <U1", "encode"], {"y": list("abcabca")}),
    (DTypeError, ["x must hold real numbers, got complex128"], {"x": X + 1j}),
    (DTypeError, ["y must hold real numbers, got datetime64"], {"y": Y.astype("M8[s]")}),
    (
        DTypeError,
        ["x must hold real numbers", "complex64"],
        {"x": Strict(X.astype("complex64"))},
    ),
    (DTypeError, ["x cannot be read as an array"], {"x": [[1.0, 2.0], [3.0]]}),
    (
        DTypeError,
        ["x cannot be read", "its rows have 1 to 2 entries; make them equally long"],
        {"x": [[1.0, 2.0], [3.0]]},
    ),
    (
        DTypeError,
        ["x must hold real numbers, got object, such as NoneType in sample 1"],
        {"x": [[1.0, 2.0], [3.0, None]]},
    ),
    (
        DTypeError,
        ["y", "got datetime64[s]; convert times first", "timedelta64"],
        {"y": Y.astype("M8[s]")},
    ),
    (DTypeError, ["x", "got NoneType"], {"x": None}),
    (DTypeError, ["y is masked", "y.filled(0)"], {"y": np.ma.array(Y, mask=Y > 1)}),
    (ShapeError, ["x must have a first axis", "single number"], {"x": 3.0}),
    (ShapeError, ["sample_weight must be (N,), got (7, 1)"], {"sample_weight": W[:, None]}),
    *(
        (
            DataError,
            [f"sample_weight must be finite and not negative, got {bad:g}"],
            {"sample_weight": _with(W, 3, bad)},
        )
        for bad in (-1.0, NAN, INF)
    ),
    (
        DataError,
        ["sample_weight must be finite and not negative, got 1e+39, which is infinite in float32"],
        {"sample_weight": _with(W, 3, 1e39)},
    ),
    *(
        (
            DataError,
            [f"{name} has 1 values that are NaN or infinite", "in sample 5", "drop or impute"],
            {name: value, "check_finite": True},
        )
        for name, value in (
            ("x", _with(X, (5, 1, 2), NAN)),
            ("x", _with(X, (5, 0, 0), -INF).astype("float32")),
            ("x", Strict(_with(X, (5, 0, 0), INF))),
            ("y", _with(Y, 5, NAN)),
        )
    ),
]


class TestRefused:
    @pytest.mark.parametrize(("kind", "parts", "given_settings"), REFUSED)
    def test_the_error_says_what_was_wanted_and_what_came(
        self, kind: type[GpunnError], parts: list[str], given_settings: dict[str, Any]
    ) -> None:
        arguments: dict[str, Any] = {"x": X, "y": Y, "batch_size": 2, **given_settings}
        if isinstance(arguments["x"], Strict):
            arguments["x"] = get_place(STRICT).array(arguments["x"].values)
        with pytest.raises(kind) as caught:
            gn.Loader(arguments.pop("x"), arguments.pop("y"), **arguments)
        missing = [part for part in ("Loader: ", *parts) if part not in str(caught.value)]
        assert missing == [], str(caught.value)

    @pytest.mark.parametrize(
        ("make", "error", "message"),
        [
            (lambda x: gn.Loader(X, x), DTypeError, r"y is sparse; make it dense first"),
            (
                lambda x: gn.Loader(x, batch_size=2, resident=True),
                SettingError,
                "sparse x cannot be resident",
            ),
            (lambda x: gn.Loader(x * 1j), DTypeError, "of real numbers; got 2 axes of complex"),
            (
                lambda x: gn.Loader(x * np.nan, check_finite=True),
                DataError,
                "4 .*first in sample 1",
            ),
        ],
    )
    def test_so_are_sparse_matrices_where_they_do_not_belong(
        self, make: Any, error: type[GpunnError], message: str
    ) -> None:
        with pytest.raises(error, match=message):
            make(SPARSE)

    @pytest.mark.parametrize(
        ("order", "message"),
        [
            (range(N - 1), r"shuffle must return 7 integers, .* of shape \(6,\)"),
            (np.arange(N) / 1, "one a sample, got float64"),
            (range(1, N + 1), r"indices in 0..6, got 1 to 7"),
            (range(-1, N - 1), r"indices in 0..6, got -1 to 5"),
        ],
    )
    def test_so_is_an_order_of_other_samples(self, order: Any, message: str) -> None:
        with pytest.raises(SettingError, match=message):
            next(iter(gn.Loader(X, batch_size=2, shuffle=lambda: order)))

    def test_what_is_not_checked_is_not_refused(self) -> None:
        gn.Loader(_with(X, 0, NAN), _with(Y, 0, NAN), batch_size=2)
        gn.Loader(X, Y > 0, batch_size=N, sample_weight=np.zeros(N), check_finite=True)


class TestFinite:
    """In the dtype of the batches, which is not always that of the data."""

    #: Halfway from float32's largest number to the next one: what is below becomes the largest.
    FIRST = 2.0**128 - 2.0**103

    @pytest.mark.parametrize("value", [1e39, -1e39, FIRST, -FIRST, 1e300])
    @pytest.mark.parametrize("name", ["x", "y"])
    def test_what_would_be_infinite_is_refused(
        self, place: Place, resident: bool, name: str, value: float
    ) -> None:
        parts = {"x": X, "y": np.asarray(Y, "float64")}
        settings: dict[str, Any] = {"backend": place.backend, "resident": resident}
        parts[name] = _with(parts[name], 5, value)
        with np.errstate(over="ignore"):
            assert np.isinf(parts[name].astype("float32")).any()
            message = (
                f"{name} has [16] values that are NaN or infinite in float32, the first in sample 5"
            )
            with pytest.raises(DataError, match=message):
                gn.Loader(**parts, check_finite=True, **settings)
        gn.Loader(**parts, check_finite=True, dtype="float64", **settings)
        gn.Loader(**parts, check_finite=True, dtype=None, **settings)

    def test_what_is_rounded_to_a_number_is_not(self) -> None:
        last = np.nextafter(self.FIRST, 0)
        loader = gn.Loader(_with(X, 5, last), sample_weight=_with(W, 5, last), check_finite=True)
        for batch in loader:
            assert np.isfinite(batch.x).all()
            assert np.isfinite(batch.sample_weight).all()

    def test_so_are_weights_whether_asked_or_not(self, place: Place) -> None:
        weight = place.backend.asarray(_with(W, 5, self.FIRST))
        with pytest.raises(DataError, match=r"3.40282e\+38, which is infinite in float32"):
            gn.Loader(X, Y, sample_weight=weight)
        gn.Loader(X, Y, sample_weight=weight, dtype="float64")

    def test_the_first_is_found_wherever_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpunn.data.validation._ENTRIES_AT_ONCE", 13)  # two samples
        for sample in range(N):
            with pytest.raises(DataError, match=f"has 1 values .* in sample {sample};"):
                gn.Loader(_with(X, (sample, 0, 1), 1e39), check_finite=True)
        gn.Loader(np.ones((5, 0)), check_finite=True)

    def test_entries_of_a_sparse_matrix(self) -> None:
        for value in (NAN, 1e39):
            with pytest.raises(DataError, match=r"7 values .* infinite.* the first in sample 0"):
                gn.Loader(sparse.csr_array(np.diag(np.full(N, value))), check_finite=True)
        twice = np.full(2, 2.5e38), np.zeros(2, int), np.array([0, 2])
        with pytest.raises(DataError, match="x has 1 values"):
            gn.Loader(sparse.csr_array(twice, shape=(1, 1)), check_finite=True)

    def test_numbers_of_extended_precision(self) -> None:
        x = np.array([[1.0], [10.0]], np.longdouble) ** 400
        if np.isinf(x).any():  # where they are none
            return
        with pytest.raises(DataError, match="infinite in float64, the first in sample 1"):
            gn.Loader(x, dtype="float64", check_finite=True)


class TestBatchSize:
    @pytest.mark.parametrize("n", [1, 31, 32, 33])
    def test_the_default_gives_way_to_few_samples(self, n: int) -> None:
        assert gn.Loader(np.zeros((n, 1))).batch_size == min(n, 32)
        assert "batch_size: 'int | None' = 32" in str(inspect.signature(gn.Loader))

    def test_a_dtype_may_be_given_as_numpy_has_it(self) -> None:
        assert next(iter(gn.Loader(X, dtype=np.dtype("float64")))).x.dtype == "float64"


class TestPandas:
    """Frames whose columns differ, and series."""

    @pytest.fixture
    def pandas(self) -> Any:
        return pytest.importorskip("pandas")

    def columns(self, pandas: Any) -> dict[str, Any]:
        return {
            "float": pandas.Series([0.5, 1.5, 2.5]),
            "float32": pandas.Series([0.5, 1.5, 2.5], dtype="float32"),
            "bool": pandas.Series([True, False, True]),
            "int": pandas.Series([1, 2, 3]),
            "Int64": pandas.Series([1, 2, 3], dtype="Int64"),
            "UInt8": pandas.Series([1, 2, 3], dtype="UInt8"),
            "Float64": pandas.Series([0.5, 1.5, 2.5], dtype="Float64"),
            "boolean": pandas.Series([True, False, True], dtype="boolean"),
            "Sparse": pandas.Series([0.0, 1.0, 0.0], dtype="Sparse[float]"),
        }

    def test_columns_of_all_numeric_kinds(self, pandas: Any, place: Place, resident: bool) -> None:
        columns = self.columns(pandas)
        for first in columns:
            for second in columns:
                frame = pandas.DataFrame({"a": columns[first], "b": columns[second]})
                loader = gn.Loader(
                    frame, columns[first], shuffle=False, backend=place.backend, resident=resident
                )
                (batch,) = loader
                wanted = [[float(columns[kind][i]) for kind in (first, second)] for i in range(3)]
                assert gn.to_numpy(batch.x).tolist() == wanted
                assert gn.to_numpy(batch.x).dtype == "float32"
                assert gn.to_numpy(batch.y).tolist() == [row[0] for row in wanted]

    def test_kinds_stay_what_they_are(self, pandas: Any) -> None:
        columns = self.columns(pandas)
        for kind, wanted in {"Int64": "int64", "boolean": "bool", "Float64": "float64"}.items():
            for y in (columns[kind], pandas.array(columns[kind], dtype=kind)):
                assert gn.Loader(X[:3], y).targets.dtype == wanted

    @pytest.mark.parametrize("kind", ["Int64", "Float64", "boolean"])
    def test_gaps_are_refused_by_column(self, pandas: Any, kind: str) -> None:
        gap = pandas.Series([1, None, 0], dtype=kind)
        whole = pandas.Series([1.0, 2.0, 3.0])
        frame = pandas.DataFrame({"a": whole, "b": gap, ("c", 1): gap})
        with pytest.raises(DataError, match=r"x has missing values in 'b', \('c', 1\); drop or"):
            gn.Loader(frame)
        with pytest.raises(DataError, match="y has missing values in y; drop or impute"):
            gn.Loader(X[:3], gap)

    def test_columns_without_numbers_are_refused_by_name(self, pandas: Any) -> None:
        frame = pandas.DataFrame(
            {
                "a": [1.0, 2.0],
                "b": pandas.Series(["u", "v"], dtype="category"),
                "c": ["u", "v"],
                "d": pandas.to_datetime(["2020-01-01", "2020-01-02"]),
                "e": pandas.Series([1, "v"], dtype="object"),
            }
        )
        with pytest.raises(DTypeError) as caught:
            gn.Loader(frame)
        for part in ("real numbers, got 'b' (category), 'c' (", "'d' (datetime64", "'e' (object);"):
            assert part in str(caught.value)
        with pytest.raises(DTypeError, match=r"y must hold real numbers, got y \(category\)"):
            gn.Loader(X[:2], frame["b"])

    def test_a_frame_of_one_kind_is_not_copied(self, pandas: Any) -> None:
        frame = pandas.DataFrame(np.arange(6.0).reshape(3, 2))
        loader = gn.Loader(frame, dtype="float64", backend="numpy", resident=False)
        assert np.shares_memory(loader.stored.x, frame.to_numpy())

    def test_names_that_occur_twice(self, pandas: Any) -> None:
        frame = pandas.DataFrame([[1, 2.5], [3, 4.5]], columns=["a", "a"]).astype({"a": "Float64"})
        (batch,) = gn.Loader(frame, shuffle=False)
        assert batch.x.tolist() == [[1, 2.5], [3, 4.5]]


class TestSetLater:
    """A loader's settings are checked when they are set later, too."""

    @pytest.mark.parametrize(
        ("name", "wrong", "message"),
        [
            ("batch_size", 0, "Loader: batch_size must be None or a whole number above 0, got 0"),
            (
                "batch_size",
                "8",
                "Loader: batch_size must be None or a whole number above 0, got '8'",
            ),
            ("batch_size", N + 1, r"Loader: batch_size must be from 1 to .* 7; got 8"),
            ("shuffle", "no", "Loader: shuffle must be a function or one of True, False, 'blocks'"),
            ("shuffle", None, "Loader: shuffle must be a function or one of True, False, 'blocks'"),
            ("block_size", 0, "Loader: block_size must be a whole number above 0, got 0"),
            ("window", 2.5, "Loader: window must be a whole number above 0, got 2.5"),
            ("drop_last", "yes", "Loader: drop_last must be True or False, got 'yes'"),
            ("transform", 3, "Loader: transform must be a function, got 3"),
        ],
    )
    def test_what_is_wrong(self, name: str, wrong: Any, message: str) -> None:
        loader = gn.Loader(X, Y, batch_size=3)
        before = getattr(loader, name)
        with pytest.raises(SettingError, match=message):
            setattr(loader, name, wrong)
        assert getattr(loader, name) is before

    def test_what_is_right(self) -> None:
        loader = gn.Loader(X, Y, batch_size=3, shuffle=False)
        loader.batch_size, loader.drop_last, loader.transform = 2, True, lambda x: -x
        assert [batch.y.tolist() for batch in loader] == [[0, 1], [2, 0], [1, 2]]
        assert next(iter(loader)).x[0, 0, 0] == -np.float32(X[0, 0, 0])
        loader.batch_size = None
        assert loader.batch_size == N


@pytest.mark.parametrize("name", ["x", "y", "sample_weight"])
def test_labels_of_variable_width_strings(name: str) -> None:
    words = np.array(["no", "yes"] * 2, dtype=np.dtypes.StringDType())
    parts = {"x": np.ones((4, 1)), name: words}
    with pytest.raises(
        DTypeError, match=rf"Loader: {name} must hold real numbers, got StringDT.*encode"
    ):
        gn.Loader(**parts)
