"""Every kernel against plain NumPy in float64: the generic ones, and all sets of overrides."""

from __future__ import annotations

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.testing import assert_array_equal

import gpunn as gn
from gpunn import kernels as kernels_module
from gpunn.kernels import Kernels, kernels
from gpunn.kernels.numpy_ import NumpyKernels
from gpunn.kernels.update import Slots, Update
from tests.conftest import Place
from tests.kernel_calls import OWNED, calls
from tests.plain import Plain
from tests.plain_sizes import LINEAR, Sizes

# Rows and columns. Kernels take several numbers of a row at once where its length allows.
SIZES = [(0, 3), (1, 1), (7, 5), (130, 33), (67, 36), (2, 300), (1100, 2)]
LAYOUTS = [(7, 5, "transposed"), (7, 5, "strided"), (7, 5, "unaligned"), (7, 8, "unaligned")]
# Units in the last place of an array's largest entry. The longest sums have some 10,000 terms (the
# norm) or 1,100 (over rows), which round in both directions.
TOLERANCE = 48
# Where the terms of a sum may cancel: units in the last place of the sum of their sizes, of each
# entry by itself. Some 4,000 terms, one after another, are off by 8 of them in the mean square.
TOLERANCE_OF_TERMS = 32


def converted(x: Any, change: Callable[[Any], Any]) -> Any:
    """Return an argument with each array changed, the floating-point ones and the others."""
    if isinstance(x, list):
        return [converted(item, change) for item in x]
    if isinstance(x, Update):
        return x._replace(slots=Slots(*(converted(part, change) for part in x.slots)))
    return change(x) if isinstance(x, np.ndarray) else x


def laid_out(place: Place, x: Any, layout: str, owned: bool) -> Any:
    """Return an array there, in that layout of memory, writable if it is owned."""
    put = (lambda x: place.backend.asarray(np.array(x))) if owned else place.array
    if layout == "transposed" and x.ndim == 2:
        return put(x.T.copy()).T
    if layout == "strided" and x.ndim and not owned:  # besides owned arrays that are not
        return put(np.repeat(x, 2, axis=-1))[..., ::2]
    if layout == "unaligned":
        longer = put(np.concatenate([np.zeros(1, x.dtype), x.ravel()]))
        return place.backend.xp.reshape(longer[1:], x.shape)
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
    if name == "copy_to_blocks":
        result = result[1]
    if name == "accumulate":
        result = given[0]
    if name == "track":
        result = given[0]
    if name == "update":
        result = [given[1].slots.values, given[1].slots.states]
    return list(arrays(result))


def sets(place: Place) -> list[Kernels]:
    """Return the kernels that are in use there, and those they are built upon: last the generic."""
    own = kernels(place.array([0.0]))
    return [kind(own.xp) for kind in type(own).__mro__ if issubclass(kind, Kernels)]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("n", "p", "layout"), [*((n, p, "contiguous") for n, p in SIZES), *LAYOUTS]
)
@pytest.mark.parametrize("name", sorted(calls(np.random.default_rng(0), 1, 1)))
def test_every_kernel_gives_what_plain_numpy_does(
    place: Place, name: str, n: int, p: int, layout: str, dtype: str
) -> None:
    assert_plain(place, name, n, p, layout, dtype)


def assert_plain(place: Place, name: str, n: int, p: int, layout: str, dtype: str) -> None:
    """Fail if one of the kernels of that name gives something else than plain NumPy."""
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
            terms = sizes_of_terms(name, exact)
            wanted = run(name, Plain(), exact)
            for i, (got, want) in enumerate(zip(run(name, k, given), wanted, strict=True)):
                assert gn.backend_of(got) == place.backend
                # An update may cancel: it rounds in units of what it was, 1 or so.
                largest = np.nan_to_num(np.abs(want)).max(initial=1.0 if name == "update" else 0.0)
                units = TOLERANCE_OF_TERMS * terms[i] if terms else TOLERANCE * largest
                compare(gn.to_numpy(got), np.asarray(want), dtype, units)


def sizes_of_terms(name: str, exact: list[Any]) -> list[Any]:
    """Return, for each result of a kernel whose terms may cancel, the sum of their sizes."""
    if name in LINEAR:
        sizes = [converted(x, lambda x: abs(x) if x.dtype.kind == "f" else x) for x in exact]
        return run(name, Plain(), sizes)
    return run(name, Sizes(), exact) if hasattr(Sizes, name) else []


def compare(got: Any, want: Any, dtype: str, units: Any) -> None:
    """Fail if a result is farther than so many units in the last place from what is wanted."""
    assert got.dtype == (dtype if want.dtype.kind == "f" else want.dtype)
    assert got.shape == want.shape
    info = np.finfo(dtype)
    near = units * float(info.eps) + float(info.tiny)
    np.testing.assert_allclose(got / near, want / near, rtol=0, atol=1.0)


@pytest.mark.parametrize(
    "name",
    [
        "activation_backward",
        "bias_activation",
        "bias_activation_backward",
        "dropout",
        "loss",
        "update",
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
        blocks, arrays = k.copy_to_blocks([place.array(x) for x in given])
        with place.backend.scope():
            for block in blocks:
                block[...] = block + 1.0
        for got, x in zip(arrays, given, strict=True):
            assert_array_equal(gn.to_numpy(got), x + 1, strict=True)
        in_one = type(k).copy_to_blocks is not Kernels.copy_to_blocks
        assert len(blocks) == (1 if in_one else len(given))


@pytest.mark.parametrize("classes", [2, 33, 256, 257, 1000, 50_000])
def test_softmax_of_few_and_of_many_classes(place: Place, classes: int) -> None:
    rng = np.random.default_rng(0)
    logits = 5 * rng.standard_normal((3, classes)).astype("float32")
    labels = np.array([0, classes - 1, classes // 2])
    soft = rng.dirichlet(np.ones(classes), 3).astype("float32")
    k, own, loss = kernels(place.array(logits)), Plain(), gn.SoftmaxCrossEntropy()
    for target, summed in itertools.product((labels, soft), (False, True)):
        got = k.loss(loss, place.array(logits), place.array(target), 0.5, summed=summed)
        want = own.loss(loss, logits.astype("float64"), target, 0.5, summed=summed)
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
        parts = [each for each in kind.__mro__ if each is kind or not issubclass(each, Kernels)]
        parts.remove(object)
        own = {name: item for part in parts for name, item in vars(part).items()}
        return {name for name, item in own.items() if callable(item) and name[0] != "_"}

    def test_every_kernel_is_tested(self) -> None:
        names = self.public(Kernels) - {"keep_memory", "threads", "convolution_workspace"}
        assert names == self.public(Plain)
        assert names == set(calls(np.random.default_rng(0), 1, 1))

    def test_a_library_overrides_and_adds_nothing(self) -> None:
        for kind in self.overrides():
            shared = {name for name in self.public(kind) if not name.startswith("fused_")}
            assert shared <= self.public(Kernels), kind
            for name in shared:
                ours, theirs = (inspect.signature(getattr(k, name)) for k in (kind, Kernels))
                assert list(ours.parameters) == list(theirs.parameters), (kind, name)

    def test_a_fused_form_serves_a_class_that_names_it(self) -> None:
        named = {item.kernel for item in vars(gn).values() if hasattr(item, "kernel")}
        for kind in self.overrides():
            for name in self.public(kind):
                if name.startswith("fused_"):
                    assert name.removeprefix("fused_") in named


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
        native = importlib.import_module("gpunn.kernels.native")

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
