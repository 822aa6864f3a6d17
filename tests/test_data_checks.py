"""What the loader refuses: at first, and when its settings are set later."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy import sparse

import gpunn as gn
from gpunn.errors import DataError, DTypeError, GpunnError, SettingError, ShapeError
from tests.conftest import Place, get_place
from tests.samples import INF, NAN, SPARSE, STRICT, N, W, X, Y, with_value


class Strict(NamedTuple):
    """Values that a test brings to array-api-strict, where it is installed."""

    values: Any


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
            {"sample_weight": with_value(W, 3, bad)},
        )
        for bad in (-1.0, NAN, INF)
    ),
    (
        DataError,
        ["sample_weight must be finite and not negative, got 1e+39, which is infinite in float32"],
        {"sample_weight": with_value(W, 3, 1e39)},
    ),
    *(
        (
            DataError,
            [f"{name} has 1 values that are NaN or infinite", "in sample 5", "drop or impute"],
            {name: value, "check_finite": True},
        )
        for name, value in (
            ("x", with_value(X, (5, 1, 2), NAN)),
            ("x", with_value(X, (5, 0, 0), -INF).astype("float32")),
            ("x", Strict(with_value(X, (5, 0, 0), INF))),
            ("y", with_value(Y, 5, NAN)),
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
        gn.Loader(with_value(X, 0, NAN), with_value(Y, 0, NAN), batch_size=2)
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
        parts[name] = with_value(parts[name], 5, value)
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
        loader = gn.Loader(
            with_value(X, 5, last), sample_weight=with_value(W, 5, last), check_finite=True
        )
        for batch in loader:
            assert np.isfinite(batch.x).all()
            assert np.isfinite(batch.sample_weight).all()

    def test_so_are_weights_whether_asked_or_not(self, place: Place) -> None:
        weight = place.backend.asarray(with_value(W, 5, self.FIRST))
        with pytest.raises(DataError, match=r"3.40282e\+38, which is infinite in float32"):
            gn.Loader(X, Y, sample_weight=weight)
        gn.Loader(X, Y, sample_weight=weight, dtype="float64")

    def test_the_first_is_found_wherever_it_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("gpunn.data.validation._ENTRIES_AT_ONCE", 13)  # two samples
        for sample in range(N):
            with pytest.raises(DataError, match=f"has 1 values .* in sample {sample};"):
                gn.Loader(with_value(X, (sample, 0, 1), 1e39), check_finite=True)
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
