"""Every kernel against plain NumPy in float64: the generic ones, and all sets of overrides."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import array_api_compat.numpy as xp64
import numpy as np
import pytest
import scipy.special
from numpy.testing import assert_array_equal

import gpunn as gn
from gpunn import kernels as kernels_module
from gpunn.kernels import Kernels, kernels
from gpunn.kernels.generic import splitmix64
from gpunn.kernels.numpy_ import NumpyKernels
from tests.conftest import Place

SIZES = [(0, 3), (1, 1), (7, 5), (130, 33), (2, 300), (1100, 2)]  # rows and columns
# Units in the last place of an array's largest entry. The longest sums have some 10,000 terms (the
# norm) or 1,100 (over rows), which round in both directions.
TOLERANCE = 48


class Plain:
    """Each kernel, as plain as can be, in float64."""

    def product(self, x: Any, y: Any) -> Any:
        return x @ y

    def convert(self, x: Any, dtype: Any) -> Any:
        return x.astype(dtype)

    def stack(self, arrays: Any) -> Any:
        return np.stack(arrays)

    def total(self, x: Any) -> Any:
        return x.sum()

    def lay_out(self, arrays: Any) -> Any:
        return None, arrays

    def activation(self, x: Any, formula: Any) -> Any:
        return formula.function(xp64, x)

    def bias_activation(self, z: Any, bias: Any, formula: Any) -> Any:
        z = z if bias is None else z + bias
        h = formula.function(xp64, z)
        return h, h if formula.saves_output else z

    def activation_backward(self, grad: Any, saved: Any, formula: Any) -> Any:
        return formula.gradient(xp64, grad, saved)

    def bias_activation_backward(self, grad: Any, saved: Any, formula: Any) -> Any:
        grad = formula.gradient(xp64, grad, saved)
        return grad, grad.sum(axis=0)

    def column_sums(self, x: Any) -> Any:
        return x.sum(axis=0)

    def dropout(self, x: Any, key: int, rate: float) -> Any:
        kept = splitmix64(np, key, x.size, None) / 2.0**64 >= rate
        mask = np.where(kept, 1 / (1 - rate), 0.0).reshape(x.shape)
        return x * mask, mask

    def one_hot(self, labels: Any, like: Any) -> Any:
        rows = np.full(like.shape, np.nan)
        for row, label in zip(rows, labels.tolist(), strict=True):
            if 0 <= label < len(row):
                row[:] = np.arange(len(row)) == label
        return rows

    def softmax_cross_entropy(
        self, logits: Any, labels: Any, scale: Any, summed: bool = False
    ) -> Any:
        targets = self.one_hot(labels, logits)
        return self.softmax_cross_entropy_soft(logits, targets, scale, summed)

    def softmax_cross_entropy_soft(
        self, logits: Any, targets: Any, scale: Any, summed: bool = False
    ) -> Any:
        losses = -(targets * scipy.special.log_softmax(logits, axis=1)).sum(axis=1)
        mass = targets.sum(axis=1, keepdims=True)
        grad = scipy.special.softmax(logits, axis=1) * mass - targets
        return self._scaled(losses, grad, scale, summed)

    def sigmoid_binary_cross_entropy(
        self, logits: Any, target: Any, scale: Any, summed: bool = False
    ) -> Any:
        losses = target * np.logaddexp(0, -logits) + (1 - target) * np.logaddexp(0, logits)
        grad = scipy.special.expit(logits) - target
        return self._scaled(losses.sum(axis=1), grad, scale, summed)

    def squared_error(self, prediction: Any, target: Any, scale: Any, summed: bool = False) -> Any:
        error = prediction - target
        return self._scaled((error**2).sum(axis=1) / 2, error, scale, summed)

    @staticmethod
    def _scaled(losses: Any, grad: Any, scale: Any, summed: bool) -> Any:
        losses = scale * losses
        return losses.sum() if summed else losses, np.reshape(scale, (-1, 1)) * grad

    def sum_of_squares(self, arrays: Any) -> Any:
        return sum((x**2).sum() for x in arrays)

    def gradient_norm(self, grads: Any) -> Any:
        return np.linalg.norm(np.concatenate([grad.ravel() for grad in grads]))

    def _regularised(self, values: Any, grads: Any, settings: dict[str, Any]) -> Any:
        if limit := settings["clip_value"]:
            grads = [np.clip(grad, -limit, limit) for grad in grads]
        if limit := settings["clip_norm"]:
            norm = self.gradient_norm(grads)
            grads = [grad * (min(norm, limit) / norm if norm else 1.0) for grad in grads]
        lists = zip(values, grads, settings["decays"], strict=True)
        return [grad + decay * value for value, grad, decay in lists]

    def sgd(self, values: Any, grads: Any, velocities: Any, **settings: Any) -> None:
        grads = self._regularised(values, grads, settings)
        for i, (value, grad) in enumerate(zip(values, grads, strict=True)):
            step = -settings["learning_rate"] * grad
            if velocities:
                velocities[i][...] = settings["momentum"] * velocities[i] + step
                ahead = settings["momentum"] * velocities[i] + step
                step = ahead if settings["nesterov"] else velocities[i]
            value[...] = value + step

    def adam(self, values: Any, grads: Any, firsts: Any, seconds: Any, **settings: Any) -> None:
        beta_1, beta_2 = settings["beta_1"], settings["beta_2"]
        grads = self._regularised(values, grads, settings)
        for value, g, m, v in zip(values, grads, firsts, seconds, strict=True):
            m[...] = beta_1 * m + (1 - beta_1) * g
            v[...] = beta_2 * v + (1 - beta_2) * g**2
            value[...] = value - settings["rate"] * m / (v**0.5 + settings["epsilon"])

    def clip(self, x: Any, lowest: float, highest: float) -> Any:
        return np.clip(x, lowest, highest)

    def gather(self, arrays: Any, indices: Any) -> Any:
        return [
            np.stack([x[i] for i in indices.tolist()]) if len(indices) else x[:0] for x in arrays
        ]


class Shift(gn.Activation):
    """A formula that no library can know."""

    def function(self, xp: Any, x: Any) -> Any:
        return xp.abs(x) + 1.0

    def gradient(self, xp: Any, grad: Any, saved: Any) -> Any:
        return grad * xp.sqrt(saved)


FORMULAS = [*(kind() for kind in gn.ACTIVATIONS.values()), gn.ELU(0.3), gn.LeakyReLU(0.2), Shift()]


def calls(rng: np.random.Generator, n: int, p: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the arguments of several calls of every kernel."""

    def x(*shape: int) -> Any:
        return rng.standard_normal(shape or (n, p))

    labels = rng.integers(0, p, n)
    wrong = np.where(np.arange(n) % 3 == 1, rng.choice([-1, p, 10**6], n), labels)
    scales = [0.25, np.asarray(0.5), rng.uniform(0, 1, n)]
    soft = rng.uniform(0, 1, (n, p))
    parameters = [(n, p), (p,), (2, n, 3), *[(p,)] * (50 if n == 1 else 0)]

    def drawn() -> list[Any]:
        return [x(*shape) for shape in parameters]

    regularised = [
        {
            "decays": [decay if i % 2 else 0.0 for i in range(len(parameters))],
            "clip_norm": clip_norm,
            "clip_value": clip_value,
        }
        for decay, clip_norm, clip_value in itertools.product((0.0, 0.1), (None, 1), (None, 1))
    ]
    backward = [
        (x(), formula.function(xp64, x()) if formula.saves_output else x(), formula)
        for formula in FORMULAS
    ]
    losses = {
        "softmax_cross_entropy": [
            *(
                (1e3 * x() if i else x(), some, scale)
                for i, scale in enumerate(scales)
                for some in (labels, wrong)
            ),
            *((1e3 * soft, some, 0.25) for some in (labels, wrong)),
        ],
        "softmax_cross_entropy_soft": [(x(), soft, scale) for scale in scales],
        "sigmoid_binary_cross_entropy": [(30 * x(), soft, scale) for scale in scales],
        "squared_error": [(x(), x(), scale) for scale in scales],
    }
    return {
        **{
            name: [*listed, *((*arguments, {"summed": True}) for arguments in listed)]
            for name, listed in losses.items()
        },
        "product": [(x(), x(p, 4)), (x(p, n), x())],
        "convert": [(labels, "int32"), (3 * x(), "int64")],
        "stack": [([x(), x(), x()],), ([x(p)],)],
        "total": [(x(),), (x(n),)],
        "lay_out": [(drawn(),)],
        "activation": [(x(), formula) for formula in FORMULAS],
        "bias_activation": [(x(), bias, formula) for formula in FORMULAS for bias in (x(p), None)],
        "activation_backward": backward,
        "bias_activation_backward": backward,
        "column_sums": [(x(),)],
        "dropout": [(x(), 2**64 - 1, 0.3), (x(n), 0, 0.5), (x(n, 2, p), 12345, 0.0)],
        "one_hot": [(some.astype(t), x()) for some in (labels, wrong) for t in ("int32", "int64")]
        + [(labels.astype("uint8"), x())],
        "sum_of_squares": [(drawn(),), ([x()],)],
        "gradient_norm": [(drawn(),)],
        "sgd": [
            (
                drawn(),
                drawn(),
                drawn() if momentum else [],
                {"learning_rate": 0.1, "momentum": momentum, "nesterov": nesterov} | settings,
            )
            for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True))
            for settings in regularised
        ],
        "adam": [
            (
                drawn(),
                drawn(),
                drawn(),
                [square**2 for square in drawn()],
                {"rate": 0.1, "beta_1": beta_1, "beta_2": beta_2, "epsilon": 1e-2} | settings,
            )
            for beta_1, beta_2 in ((0.9, 0.99), (0.0, 0.5), (0.5, 0.0))
            for settings in regularised
        ],
        "clip": [(x(), -0.5, 1.0)],
        "gather": [
            (some, rng.integers(0, n, m))
            for some in ([x()], [x(), labels], [x(n, 2, p), x(n), soft], [x()] * 4)
            for m in (0, n, 2 * n)
        ]
        if n
        else [([x(3, p)], labels)],
    }


OWNED = {  # by position: may be written to
    "bias_activation": [0],
    "sgd": [0, 1, 2],
    "adam": [0, 1, 2, 3],
}
WRITTEN = {"sgd": [0, 2], "adam": [0, 2, 3]}  # by position: a result


def converted(x: Any, change: Callable[[Any], Any]) -> Any:
    """Return an argument with each array changed, the floating-point ones and the others."""
    if isinstance(x, list):
        return [converted(item, change) for item in x]
    return change(x) if isinstance(x, np.ndarray) else x


def laid_out(place: Place, x: Any, layout: str, owned: bool) -> Any:
    """Return an array there, in that layout of memory, writable if it is owned."""
    put = (lambda x: place.backend.asarray(np.array(x))) if owned else place.array
    if layout == "transposed" and x.ndim == 2:
        return put(x.T.copy()).T
    if layout == "strided" and x.ndim and not owned:  # besides owned arrays that are not
        return put(np.repeat(x, 2, axis=-1))[..., ::2]
    return put(x)


def arrays(x: Any) -> Iterator[Any]:
    """Yield the arrays of a result."""
    if isinstance(x, (list, tuple)):
        for item in x:
            yield from arrays(item)
    elif x is not None:
        yield x


def run(name: str, k: Any, arguments: list[Any]) -> list[Any]:
    """Call a kernel; return its results, and the arguments that it is to write to."""
    keywords = arguments[-1] if isinstance(arguments[-1], dict) else {}
    given = arguments[:-1] if keywords else arguments
    if name == "convert" and isinstance(k, Kernels):
        given = [given[0], getattr(k.xp, given[1])]
    result = getattr(k, name)(*given, **keywords)
    if name == "lay_out":
        result = result[1]
    return list(arrays([result, *(given[i] for i in WRITTEN.get(name, []))]))


def sets(place: Place) -> list[Kernels]:
    """Return the kernels that are in use there, and those they are built upon: last the generic."""
    own = kernels(place.array([0.0]))
    return [kind(own.xp) for kind in type(own).__mro__ if issubclass(kind, Kernels)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("n", "p", "layout"),
    [*((n, p, "contiguous") for n, p in SIZES), (7, 5, "transposed"), (7, 5, "strided")],
)
@pytest.mark.parametrize("name", sorted(calls(np.random.default_rng(0), 1, 1)))
def test_every_kernel_gives_what_plain_numpy_does(
    place: Place, name: str, n: int, p: int, layout: str, dtype: str
) -> None:
    for arguments in calls(np.random.default_rng(0), n, p)[name]:
        for k in sets(place):
            rounded = [
                converted(x, lambda x: x.astype(dtype) if x.dtype.kind == "f" else x)
                for x in arguments
            ]
            given = [
                converted(x, lambda x, i=i: laid_out(place, x, layout, i in OWNED.get(name, [])))
                for i, x in enumerate(rounded)
            ]
            exact = [
                converted(x, lambda x: x.astype("float64") if x.dtype.kind == "f" else x)
                for x in rounded
            ]
            for got, want in zip(run(name, k, given), run(name, Plain(), exact), strict=True):
                assert gn.backend_of(got) == place.backend
                # An update may cancel: it rounds in units of what it was, 1 or so.
                least = 1.0 if name in WRITTEN else 0.0
                compare(gn.to_numpy(got), np.asarray(want), dtype, least)


def compare(got: Any, want: Any, dtype: str, least: float) -> None:
    assert got.dtype == (dtype if want.dtype.kind == "f" else want.dtype)
    assert got.shape == want.shape
    info, largest = np.finfo(dtype), np.nan_to_num(np.abs(want)).max(initial=least)
    near = float(TOLERANCE * info.eps * largest + info.tiny)
    np.testing.assert_allclose(got, want, rtol=0, atol=near)


@pytest.mark.parametrize(
    "name",
    [
        "activation_backward",
        "adam",
        "bias_activation",
        "bias_activation_backward",
        "dropout",
        "sgd",
        "sigmoid_binary_cross_entropy",
        "softmax_cross_entropy",
        "squared_error",
    ],
)
def test_nan_goes_where_the_generic_kernel_lets_it(place: Place, name: str) -> None:
    def put(x: Any, i: int, poisoned: bool) -> Any:
        x = np.array(x)
        if poisoned and x.dtype.kind == "f" and x.size > 1:
            x.flat[1] = np.nan
        return laid_out(place, x, "contiguous", i in OWNED.get(name, []))

    for arguments in calls(np.random.default_rng(0), 130, 33)[name]:
        for where in range(len(arguments)):
            found = []
            for k in sets(place):
                given = [
                    converted(x, lambda x, i=i, nan=i == where: put(x, i, nan))
                    for i, x in enumerate(arguments)
                ]
                found.append([np.isnan(gn.to_numpy(x)) for x in run(name, k, given)])
            for nans in found:
                for got, want in zip(nans, found[-1], strict=True):
                    assert_array_equal(got, want)


def test_results_are_written_where_they_are_wanted(place: Place) -> None:
    x, y = (place.array(np.arange(6.0).reshape(s)) for s in ((2, 3), (3, 2)))
    saved = place.array(np.array([[1.0, -1, 0], [2, 3, 4]]))
    for k in sets(place):

        def room(*shape: int) -> Any:
            return place.backend.asarray(np.full(shape, np.nan))

        with place.backend.scope():
            into = room(2, 2)
            assert k.product(x, y, into=into) is into
            assert gn.to_numpy(into).tolist() == [[10, 13], [28, 40]]
            into = room(3)
            assert k.column_sums(x, into=into) is into
            assert gn.to_numpy(into).tolist() == [3, 5, 7]
            into = room(3)
            assert k.bias_activation_backward(x, saved, gn.ReLU(), into=into)[1] is into
            assert gn.to_numpy(into).tolist() == [3, 4, 5]


def test_a_block_holds_its_arrays(place: Place) -> None:
    given = [np.arange(3.0), np.ones((2, 2)), np.zeros((0, 5)), np.array(7.0)]
    for k in sets(place):
        blocks, arrays = k.lay_out([place.array(x) for x in given])
        with place.backend.scope():
            for block in blocks:
                block[...] = block + 1.0
        for got, x in zip(arrays, given, strict=True):
            assert_array_equal(gn.to_numpy(got), x + 1, strict=True)
        assert len(blocks) == (len(given) if type(k) is Kernels else 1)


@pytest.mark.parametrize("classes", [2, 33, 256, 257, 1000, 50_000])
def test_softmax_of_few_and_of_many_classes(place: Place, classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal((3, classes)).astype("float32")
    labels = np.array([0, classes - 1, classes // 2])
    soft = rng.dirichlet(np.ones(classes), 3).astype("float32")
    k, own = kernels(place.array(logits)), Plain()
    names = ("softmax_cross_entropy", labels), ("softmax_cross_entropy_soft", soft)
    for (name, target), summed in itertools.product(names, (False, True)):
        got = getattr(k, name)(place.array(logits), place.array(target), 0.5, summed=summed)
        want = getattr(own, name)(logits.astype("float64"), target, 0.5, summed=summed)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(gn.to_numpy(a), b, rtol=2e-5, atol=1e-7)


class TestTheSetOfKernels:
    def overrides(self) -> list[type[Kernels]]:
        """Return the subclasses that are in use here, and all others that are known."""
        kernels(np.zeros(1))
        found, waiting = [], [Kernels]
        while waiting:
            waiting += (below := waiting.pop().__subclasses__())
            found += below
        return found

    def public(self, kind: type) -> set[str]:
        return {name for name, item in vars(kind).items() if callable(item) and name[0] != "_"}

    def test_every_kernel_is_tested(self) -> None:
        names = self.public(Kernels) - {"threads", "steps"}  # see test_threads.py and test_steps.py
        assert names == self.public(Plain)
        assert names == set(calls(np.random.default_rng(0), 1, 1))

    def test_a_library_overrides_and_adds_nothing(self) -> None:
        for kind in self.overrides():
            assert self.public(kind) <= self.public(Kernels), kind
            for name in self.public(kind):
                ours, theirs = (inspect.signature(getattr(k, name)) for k in (kind, Kernels))
                assert list(ours.parameters) == list(theirs.parameters), (kind, name)


class TestDispatch:
    def test_arrays_of_one_type_have_the_same_kernels(self, place: Place) -> None:
        k = kernels(place.array([1.0]))
        assert k is kernels(place.array([[2]]))
        assert isinstance(k, Kernels)
        assert gn.backend_of(k.xp.zeros(1)).package == place.backend.package

    def test_a_subclass_of_an_array_is_an_array(self, tmp_path: Any) -> None:
        mapped = np.memmap(tmp_path / "x", dtype="float32", mode="w+", shape=(2, 3))
        assert_array_equal(kernels(mapped).column_sums(mapped + 1), [2, 2, 2])
        assert_array_equal(kernels(np.float64(3.0)).clip(np.float64(3.0), 0.0, 1.0), 1.0)

    @pytest.mark.parametrize("x", [[1.0], 2.0, None, "array"], ids=repr)
    def test_what_is_no_array(self, x: Any) -> None:
        with pytest.raises(gn.errors.DTypeError, match=f"expected an array .* {type(x).__name__}"):
            kernels(x)

    def test_numpy_has_compiled_kernels_where_there_is_numba(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("numba", reason="the compiled kernels need numba")
        monkeypatch.delenv("GPUNN_COMPILED", raising=False)
        assert kernels_module._for_numpy().__name__ == "NumbaKernels"

    def test_they_can_be_turned_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GPUNN_COMPILED", "0")
        assert kernels_module._for_numpy() is NumpyKernels

    def test_without_numba_there_are_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("GPUNN_COMPILED", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        assert kernels_module._for_numpy() is NumpyKernels

    def test_a_numba_that_does_not_start_is_told(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.delenv("GPUNN_COMPILED", raising=False)
        monkeypatch.setattr("importlib.util.find_spec", lambda name: "found")
        monkeypatch.setitem(sys.modules, "gpunn.kernels.numba_", None)  # type: ignore[arg-type]
        assert kernels_module._for_numpy() is NumpyKernels
        assert "numba is not used" in caplog.text

    def test_no_folder_for_what_is_compiled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        numba = pytest.importorskip("numba", reason="the compiled kernels need numba")
        native = importlib.import_module("gpunn.kernels.compiled.native")

        def njit(cache: bool = False, **settings: Any) -> Any:
            if cache:
                raise RuntimeError("cannot cache function: no locator available")
            return real(**settings)

        real = numba.njit
        monkeypatch.setattr(numba, "njit", njit)
        assert native.compiled(lambda x: x + 1)(1) == 2

    def test_what_is_gathered_is_a_copy(self, place: Place) -> None:
        x = place.backend.asarray(np.arange(4.0))
        (rows,) = kernels(x).gather([x], place.array([1, 2]))
        x += 10
        assert gn.to_numpy(rows).tolist() == [1, 2]
