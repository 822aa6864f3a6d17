"""The precision of products on a GPU: what it does to a product, to training, and where it holds.

An emulator of CUDA computes tf32 as float32; it does round to bfloat16.
"""

from __future__ import annotations

import importlib
import runpy
import threading
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import gpunn as gn
from gpunn.__main__ import main
from gpunn.arrays import backend as backends
from gpunn.arrays import precision as precisions
from gpunn.arrays.backend import product_precision
from gpunn.arrays.precision import PRECISIONS, Precision
from gpunn.errors import SettingError
from tests.conftest import get_place
from tests.layouts import LAYOUTS, SIZES
from tests.runs import Block, Run, assert_same_bits, both, one_by_one

ROUNDED: tuple[Precision, ...] = ("tf32", "bfloat16")
#: How far a factor may be off. cuBLAS may leave off bits for tf32, where the nearest is 2^-11 off.
ROUNDOFF = {"float32": 0.0, "tf32": 2.0**-10, "bfloat16": 2.0**-8}
cupy: Any = None


@pytest.fixture
def _gpu() -> None:
    global cupy  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = importlib.import_module("cupy")
    if cupy.cuda.runtime.is_hip:
        pytest.skip("on AMD's devices products are in float32")
    if int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("bfloat16 needs compute capability 8.0")


def cublas() -> Any:
    return importlib.import_module("gpunn.kernels.cublas")


def assert_within_bound(z: Any, x: Any, y: Any, precision: str) -> None:
    """Check each sum of products by what rounding factors and sums may do to it."""
    z, x, y = (gn.to_numpy(a).astype("float64") for a in (z, x, y))
    u = ROUNDOFF[precision]
    relative = 2 * u + u**2 + x.shape[-1] * 2.0**-23
    assert np.all(np.abs(z - x @ y) <= relative * (np.abs(x) @ np.abs(y)) + 1e-37)


def nearest(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return float32 numbers rounded to 8 significant bits, ties to even, as float32."""
    with np.errstate(invalid="ignore", over="ignore"):  # signalling NaN, and what rounds to inf
        wide = x.astype("float64")
        # Below the least normal number, the distance between neighbours no longer falls.
        exponent = np.maximum(np.frexp(wide)[1], -125)
        unit = np.ldexp(1.0, exponent - 8)
        return np.where(np.isfinite(x), np.rint(wide / unit) * unit, wide).astype("float32")


def as_float32(halves: Any) -> Any:
    return (gn.to_numpy(halves).astype("u4") << 16).view("f4")


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestRounding:
    def round(self, x: Any, y: Any) -> tuple[Any, Any]:
        rounding = importlib.import_module("gpunn.kernels.cupy_rounding")
        both, left, right = rounding.round_factors(x, y)
        starts = [(start - both.data.ptr) // 2 for start in (left, right)]
        return tuple(
            as_float32(both[start : start + each.size])
            for start, each in zip(starts, (x, y), strict=True)
        )  # type: ignore[return-value]

    def test_to_the_nearest_and_ties_to_even(self) -> None:
        """Every bfloat16, and those bits behind it that decide."""
        upper = np.arange(2**16, dtype="u4")[:, None] << 16
        lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], "u4")
        x = (upper | lower).ravel().view("f4")
        found, again = self.round(cupy.asarray(x), cupy.asarray(x[::-1].copy()))
        wanted = nearest(x)
        numbers = ~np.isnan(x)
        np.testing.assert_array_equal(found[numbers].view("u4"), wanted[numbers].view("u4"))
        assert np.isnan(found[~numbers]).all()
        np.testing.assert_array_equal(again[::-1].view("u4"), found.view("u4"))

    @pytest.mark.parametrize("n", [1, 3, 4, 5, 63, 64, 65, 1023, 5000])
    @pytest.mark.parametrize("offset", [0, 1, 2, 4])
    def test_arrays_of_every_length_and_start(self, n: int, offset: int) -> None:
        rng = np.random.default_rng(n)
        x, y = (cupy.asarray(rng.standard_normal(m).astype("f4"))[offset:] for m in (n + 4, 70))
        for each, found in zip((x, y, y, x), (*self.round(x, y), *self.round(y, x)), strict=True):
            np.testing.assert_array_equal(found, nearest(gn.to_numpy(each)))


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestProducts:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("right", LAYOUTS)
    @pytest.mark.parametrize("left", LAYOUTS)
    def test_each_is_within_the_bound_of_its_format(
        self, monkeypatch: pytest.MonkeyPatch, left: str, right: str, precision: Precision
    ) -> None:
        monkeypatch.setattr(cupy, "dot", None)  # it knows nothing of the setting
        for n, p, q in SIZES:
            with gn.use(backend="cupy", products=precision):
                x, y = LAYOUTS[left](n, p, "float32"), LAYOUTS[right](p, q, "float32")
                z = cublas().product(x, y)
                into = cupy.full((n, q), np.nan, "float32")
                assert cublas().product(x, y, into) is into
            assert z.dtype == "float32"
            assert_within_bound(z, x, y, precision)
            cupy.testing.assert_array_equal(z, into)

    def test_factors_are_bfloat16_and_sums_are_float32(self) -> None:
        rng = np.random.default_rng(0)
        x, y = rng.standard_normal((64, 300), "f4"), rng.standard_normal((300, 40), "f4")
        with gn.use(backend="cupy", products="bfloat16"):
            z = gn.to_numpy(cublas().product(cupy.asarray(x), cupy.asarray(y)))
        rounded = nearest(x), nearest(y)
        assert_within_bound(z, *rounded, "float32")
        assert np.abs(z - x.astype("f8") @ y).max() > 1e-3  # not the product of x and y themselves

    @pytest.mark.parametrize(("precision", "number"), [("float32", 68), ("tf32", 77)])
    def test_the_library_is_told(self, precision: Precision, number: int) -> None:
        """The emulator computes tf32 as float32, so the results do not tell."""
        x = cupy.ones((3, 3), "float32")
        asked = x.shape, x.strides, x.dtype
        assert cublas()._plan(*asked, *asked, x.dtype, precision).tail[2] == number

    def test_what_is_not_finite_stays_so(self) -> None:
        x = cupy.asarray([[np.inf, 1.0], [-np.inf, 1.0], [np.nan, 1.0], [0.0, 1.0]], "float32")
        with gn.use(backend="cupy", products="bfloat16"):
            z = gn.to_numpy(cublas().product(x, cupy.ones((2, 1), "float32")))[:, 0]
        np.testing.assert_array_equal(z, [np.inf, -np.inf, np.nan, 1.0])

    @pytest.mark.parametrize("precision", ROUNDED)
    def test_float64_and_column_sums_are_as_ever(self, precision: Precision) -> None:
        kernels = importlib.import_module("gpunn.kernels").kernels
        rng = np.random.default_rng(0)
        x, y = (cupy.asarray(rng.standard_normal((50, 50))) for _ in range(2))
        single = x.astype("float32")
        found = []
        for products in ("float32", precision):
            with gn.use(backend="cupy", products=products):
                found.append((cublas().product(x, y), kernels(x).column_sums(single)))
        for a, b in zip(*found, strict=True):
            cupy.testing.assert_array_equal(a, b)

    def test_a_changed_factor_is_seen(self) -> None:
        """Nothing of an earlier product is kept."""
        x, y = cupy.ones((4, 4), "float32"), cupy.ones((4, 4), "float32")
        with gn.use(backend="cupy", products="bfloat16"):
            for value in (1.0, 2.0, 3.0):
                y[...] = value
                cupy.testing.assert_array_equal(cublas().product(x, y), 4 * y)

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cublas(), "loaded_library", lambda: None)
        cublas()._plan.cache_clear()
        x = cupy.ones((3, 3), "float32")
        try:
            with (
                gn.use(backend="cupy", products="bfloat16"),
                pytest.raises(SettingError, match="products in bfloat16 need cuBLAS itself"),
            ):
                cublas().product(x, x)
            with gn.use(backend="cupy", products="float32"):
                cublas().product(x, x)
        finally:
            cublas()._plan.cache_clear()


RUN = Run(
    blocks=(Block("dense", 9, "relu"), Block("dropout", rate=0.3), Block("dense", 6, "tanh")),
    optimizer="momentum",
    weight_decay=0.1,
    n=70,
    batch_size=4,
    dtype="float32",
    backend="cupy",
    epochs=3,
)


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestTraining:
    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("optimizer", ["momentum", "adam"])
    @pytest.mark.parametrize("data", ["resident", "streamed"])
    def test_graphs_leave_what_the_readable_loop_leaves(
        self, precision: Precision, optimizer: str, data: str
    ) -> None:
        with gn.use(backend="cupy", products=precision):
            captured, readable = both(replace(RUN, optimizer=optimizer, data=data))
        assert captured[0].why_not_recorded == ""
        assert f"with products in {precision}" in captured[0].explain()
        assert readable[0].why_not_recorded
        assert_same_bits(captured, readable)

    def test_a_step_is_captured_anew_when_the_precision_has_changed(self) -> None:
        """An epoch each; the readable loop asks at every product."""
        changes: list[Precision] = ["float32", "bfloat16", "tf32", "bfloat16", "float32"]

        def train(ways: list[Precision]) -> tuple[Any, Any]:
            trainer, loader = RUN.trainer(), RUN.loader()
            for precision in ways:
                with gn.use(backend="cupy", products=precision):
                    history = trainer.fit(loader, 1, progress=False)
            return trainer, history

        captured = train(changes)
        assert captured[0].why_not_recorded == ""
        assert "products in float32" in captured[0].explain()
        with one_by_one():
            assert_same_bits(captured, train(changes))
            plain = train(["float32"] * len(changes))
        with pytest.raises(AssertionError):
            assert_same_bits(captured, plain)

    def test_states_and_gradients_are_float32(self) -> None:
        with gn.use(backend="cupy", products="bfloat16"):
            trainer, *_ = RUN.run()
        parameters = trainer.model.parameters()
        assert {p.value.dtype for p in parameters} == {np.dtype("float32")}
        assert {x.dtype for s in trainer.optimizer._states for x in s} == {np.dtype("float32")}

    @pytest.mark.parametrize("precision", ROUNDED)
    @pytest.mark.parametrize("widths", [(64,), (64, 48, 48, 32, 32)], ids=["digits", "deeper"])
    def test_accuracy_is_that_of_float32(
        self, widths: tuple[int, ...], precision: Precision
    ) -> None:
        """Within half a percent of the samples that no weight was fitted to."""
        wanted, found = (accuracy(widths, way) for way in ("float32", precision))
        assert wanted > 0.94
        assert abs(found - wanted) <= 0.005


def accuracy(widths: tuple[int, ...], precision: Any) -> float:
    """Train on a part of the digits; return the accuracy on the rest."""
    x, y = load_digits(return_X_y=True)
    x, held_out = (x / 16).astype("float32"), 450
    with gn.use(backend="cupy", products=precision):
        rng = np.random.default_rng(3)
        ends = list(pairwise((64, *widths, 10)))
        hidden = [gn.Dense(*sides, "relu", rng=rng) for sides in ends[:-1]]
        model = gn.Sequential(*hidden, gn.Dense(*ends[-1], rng=rng))
        trainer = gn.Trainer(
            model,
            gn.SoftmaxCrossEntropy(),
            gn.Adam(model.parameters(), 0.002),
            metrics=[gn.Accuracy()],
        )
        loader = gn.Loader(x[held_out:], y[held_out:], batch_size=32, rng=1)
        trainer.fit(loader, 20, progress=False)
        return trainer.evaluate((x[:held_out], y[:held_out]))["accuracy"]


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestWhereItHolds:
    def test_a_block_a_process_and_a_thread(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backends, "_process_uses", [])
        token = backends._block_choice.set(None)
        try:
            assert product_precision() == precisions.DEFAULT
            gn.use(backend="cupy", products="tf32")
            assert product_precision() == "tf32"
            with gn.use(backend="cupy", products="bfloat16"):
                assert product_precision() == "bfloat16"
                seen: list[str] = []
                thread = threading.Thread(target=lambda: seen.append(product_precision()))
                thread.start()
                thread.join()
                assert seen == ["tf32"]
                with gn.use(backend="cupy"):  # each call sets both
                    assert product_precision() == precisions.DEFAULT
                assert product_precision() == "bfloat16"
            with backends.held_choice():
                gn.use(backend="cupy", products="float32")
                assert product_precision() == "tf32"
            assert product_precision() == "float32"
        finally:
            backends._block_choice.reset(token)

    def test_older_devices_have_no_bfloat16(self) -> None:
        class Turing:
            id = 1
            compute_capability = "75"

        checked = precisions.checked_precision
        assert checked("tf32", "cupy", Turing()) == "tf32"  # it computes in float32
        with pytest.raises(SettingError, match=r"8\.0 or later, and cupy:1 has 7\.5; omit prod"):
            checked("bfloat16", "cupy", Turing())

    def test_rocm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(precisions, "on_rocm", lambda: True)
        with pytest.raises(SettingError, match="is for CUDA, and this CuPy is for ROCm"):
            gn.use(backend="cupy", products="tf32")

    def test_the_doctor_says_which(self, capsys: pytest.CaptureFixture[str]) -> None:
        for precision in PRECISIONS:
            with gn.use(backend="cupy", products=precision):
                main(["doctor", "--backend", "cupy"])
            said = f"float32 products on a GPU are in {precision}, by gpunn.use or CUPY_TF32"
            assert (said in capsys.readouterr().out) == (precision != "float32")


class TestOnTheHost:
    @pytest.mark.parametrize(("value", "wanted"), [("0", "float32"), ("1", "tf32")])
    def test_the_default_is_that_of_cupy(
        self, monkeypatch: pytest.MonkeyPatch, value: str, wanted: str
    ) -> None:
        monkeypatch.setenv("CUPY_TF32", value)
        assert runpy.run_path(precisions.__file__)["DEFAULT"] == wanted

    @pytest.mark.parametrize("backend", ["numpy", "array-api-strict"])
    @pytest.mark.parametrize("precision", ROUNDED)
    def test_it_is_refused(self, backend: str, precision: Precision) -> None:
        before = list(backends._process_uses)
        wanted = f"products='{precision}' is for GPUs, and the backend is {backend}; omit products"
        with pytest.raises(SettingError, match=wanted):
            gn.use(backend=backend, products=precision)
        assert backends._process_uses == before

    @pytest.mark.parametrize("wrong", ["float16", "TF32", 32, True, ""])
    def test_no_such_precision(self, wrong: Any) -> None:
        with pytest.raises(SettingError, match="products must be one of 'float32', 'tf32', 'bf"):
            gn.use(backend="numpy", products=wrong)

    def test_float32_is_what_there_is(self) -> None:
        with gn.use(backend="numpy", products="float32") as place:
            assert gn.get_backend() == place


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(1.00390625, 1.0), (1.01171875, 1.015625), (3.4e38, np.inf), (0.1, 0.10009765625)],
)
def test_the_tests_own_rounding(value: float, wanted: float) -> None:
    assert nearest(np.array([value], "f4")) == np.float32(wanted)
