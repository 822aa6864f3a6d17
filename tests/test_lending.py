"""What code that is not gpunn's gets of a loader's data: its own, or what refuses writing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse

import gpunn as gn
from gpunn.data.lending import is_ours
from gpunn.kernels import kernels
from tests.conftest import Place

N = 6
X = np.arange(2.0 * N, dtype="float32").reshape(N, 2)
Y = np.arange(N) % 2
W = np.linspace(1.0, 2.0, N, dtype="float32")
SIZES = pytest.mark.parametrize("batch_size", [2, 4, N])


def take_one(x: Any) -> Any:
    x -= 1
    return x


def counted(name: str, function: Callable[..., Any], calls: list[str]) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        calls.append(name)
        return function(*arguments)

    return run


def works_or_is_refused(function: Callable[[], object]) -> None:
    try:
        function()
    except ValueError as error:
        assert "read-only" in str(error)  # noqa: PT017


def all_x(batches: Any) -> Any:
    return np.concatenate([gn.to_numpy(batch.x) for batch in batches])


def there(place: Place, x: Any) -> Any:
    """Return a copy of an array, on the backend."""
    return place.backend.asarray(np.array(x))


class Greedy(gn.Layer):
    """A layer that breaks the rule: it writes to what it is given."""

    def forward(self, x: Any, tape: Any = None) -> Any:
        if tape is not None:
            tape.push(self)
        x -= 1
        return x

    def backward(self, grad: Any, tape: Any) -> Any:
        tape.pop(self)
        return grad


class GreedyMetric(gn.Metric):
    """A metric that writes to both of its arguments."""

    def measure(self, prediction: Any, target: Any) -> Any:
        target -= 1
        prediction -= 1
        return (prediction[0, 0],)


class GreedyLoss(gn.MeanSquaredError):
    """A loss that writes to the targets."""

    def match(self, prediction: Any, target: Any) -> Any:
        target -= 1
        return super().match(prediction, target)


class TestTransform:
    @SIZES
    @pytest.mark.parametrize("shuffle", [True, False, "blocks"])
    def test_each_epoch_sees_the_data_as_they_were(
        self, place: Place, resident: bool, shuffle: Any, batch_size: int
    ) -> None:
        x, y, w = there(place, X), there(place, Y), there(place, W)
        loader = gn.Loader(
            x, y, batch_size=batch_size, shuffle=shuffle, transform=take_one, sample_weight=w,
            backend=place.backend, resident=resident,
        )  # fmt: skip
        for batches in (loader, loader, loader.in_order(), loader.in_order(), loader):
            assert sorted(all_x(batches).ravel().tolist()) == list(range(-1, 2 * N - 1))
        assert gn.to_numpy(loader.first_row().x).tolist() == [[-1, 0]]
        assert gn.to_numpy(x).tolist() == X.tolist()

    def test_a_file_is_not_written_to(self, tmp_path: Path, resident: bool) -> None:
        np.save(tmp_path / "x.npy", X)
        x = np.load(tmp_path / "x.npy", mmap_mode="r+")
        loader = gn.Loader(
            x, batch_size=4, shuffle=False, transform=take_one, resident=resident, backend="numpy"
        )
        assert [all_x(loader)[0, 0] for _ in range(3)] == [-1.0] * 3
        x.flush()
        assert np.load(tmp_path / "x.npy").tolist() == X.tolist()

    def test_nor_is_a_sparse_matrix(self, place: Place) -> None:
        x = sparse.csr_array(X)
        loader = gn.Loader(
            x, Y, batch_size=4, shuffle=False, transform=take_one, backend=place.backend
        )
        assert [all_x(loader)[0, 0] for _ in range(3)] == [-1.0] * 3
        assert x.toarray().tolist() == X.tolist()

    def test_the_model_may_be_any(self, place: Place, resident: bool) -> None:
        """The batches go to gpunn's own layers alone, but to the transform first."""
        x = there(place, X)
        loader = gn.Loader(
            x, batch_size=4, shuffle=False, transform=take_one, resident=resident,
            backend=place.backend,
        )  # fmt: skip
        trainer = gn.Trainer(*parts(place, gn.Identity()))
        wanted = gn.to_numpy(trainer.predict(loader)).tolist()
        assert gn.to_numpy(trainer.predict(loader)).tolist() == wanted
        assert gn.to_numpy(x).tolist() == X.tolist()


class TestBatches:
    @SIZES
    def test_writing_to_them_does_not_reach_the_data(
        self, place: Place, resident: bool, batch_size: int
    ) -> None:
        given = [there(place, part) for part in (X, Y, W)]
        loader = gn.Loader(
            given[0], given[1], sample_weight=given[2], batch_size=batch_size, shuffle=False,
            backend=place.backend, resident=resident,
        )  # fmt: skip
        for batches in (loader, loader.in_order(), [loader.first_row()]):
            for batch in batches:
                for part in batch:
                    works_or_is_refused(lambda part=part: take_one(part))
        for part, before in zip(given, (X, Y, W), strict=True):
            assert gn.to_numpy(part).tolist() == before.tolist()
        assert all_x(loader).tolist() == X.tolist()

    def test_on_numpy_they_are_still_no_copies(self) -> None:
        loader = gn.Loader(X, Y, batch_size=2, shuffle=False, backend="numpy")
        assert all(np.shares_memory(batch.x, X) for batch in loader)
        assert X.flags.writeable

    def test_shuffled_ones_are_yours(self, place: Place, resident: bool) -> None:
        x = there(place, X)
        loader = gn.Loader(x, batch_size=2, backend=place.backend, resident=resident, rng=0)
        for batch in loader:
            take_one(batch.x)
        assert gn.to_numpy(x).tolist() == X.tolist()

    def test_what_is_stored_refuses_writing(self, resident: bool) -> None:
        x, y, w = X.copy(), Y.copy(), W.copy()
        loader = gn.Loader(x, y, sample_weight=w, batch_size=2, resident=resident, backend="numpy")
        for part in (*loader.stored, loader.targets):
            with pytest.raises(ValueError, match="read-only"):
                part[...] = 0
        assert (x.tolist(), y.tolist(), w.tolist()) == (X.tolist(), Y.tolist(), W.tolist())


def parts(place: Place, *layers: gn.Layer, loss: gn.Loss | None = None) -> Any:
    """Return a model, a loss and an optimizer."""
    model = gn.Sequential(*layers, gn.Dense(2, 1, rng=0)).to(place.backend)
    return model, loss or gn.MeanSquaredError(), gn.SGD(model.parameters(), 0.01)


GREEDY: dict[str, Callable[[Place], gn.Trainer]] = {
    "layer": lambda place: gn.Trainer(*parts(place, Greedy())),
    "nested layer": lambda place: gn.Trainer(
        *parts(place, gn.Sequential(gn.Residual(gn.Sequential(Greedy()))))
    ),
    "metric": lambda place: gn.Trainer(*parts(place), metrics=[GreedyMetric()]),
    "loss": lambda place: gn.Trainer(*parts(place, loss=GreedyLoss())),
}


class TestOwnParts:
    @pytest.mark.parametrize("make", GREEDY.values(), ids=GREEDY)
    def test_what_writes_to_its_input_does_not_reach_the_data(
        self, place: Place, make: Any, resident: bool
    ) -> None:
        x, y = there(place, X), there(place, W)
        loader = gn.Loader(
            x, y, batch_size=2, shuffle=False, backend=place.backend, resident=resident
        )
        trainer = make(place)
        for run in (
            lambda: trainer.fit(loader, 2, progress=False),
            lambda: trainer.evaluate(loader),
            lambda: trainer.predict(loader),
        ):
            works_or_is_refused(run)
        assert gn.to_numpy(x).tolist() == X.tolist()
        assert gn.to_numpy(y).tolist() == W.tolist()
        assert all_x(loader).tolist() == X.tolist()

    def test_a_metric_does_not_change_what_the_next_one_sees(self, place: Place) -> None:
        loader = gn.Loader(X, W, batch_size=3, backend=place.backend, rng=0)
        values = []
        for metrics in (["mae"], [GreedyMetric(), "mae"]):
            trainer = gn.Trainer(*parts(place), metrics=metrics)
            try:
                values.append(trainer.evaluate(loader)["mae"])
            except ValueError as error:
                assert "read-only" in str(error)  # noqa: PT017
        assert len(set(values)) == 1

    def test_whose_a_layer_is(self) -> None:
        ours = gn.Sequential(gn.Residual(gn.Dense(2, 2, "tanh")), gn.Dropout(0.5))
        assert is_ours(ours)
        assert is_ours(gn.SoftmaxCrossEntropy())
        assert not is_ours(Greedy())
        assert not is_ours(GreedyLoss())
        assert not is_ours(gn.Sequential(ours, gn.Residual(Greedy())))


class TestPredict:
    @pytest.mark.parametrize("layer", [gn.Identity(), gn.Flatten(), gn.Dropout(0.5)])
    @pytest.mark.parametrize("batch_size", [2, N])
    def test_what_it_returns_is_the_callers(
        self, place: Place, layer: gn.Layer, batch_size: int
    ) -> None:
        x = there(place, X)
        trainer = gn.Trainer(*parts(place))
        trainer.model = layer
        loader = gn.Loader(x, batch_size=batch_size, backend=place.backend)
        for given in (x, loader):
            for predict in (trainer.predict, trainer.predict_proba):
                outputs = take_one(predict(given))
                assert gn.to_numpy(outputs).tolist() == (X - 1).tolist()
        assert gn.to_numpy(x).tolist() == X.tolist()
        assert all_x(loader.in_order()).tolist() == X.tolist()


@pytest.mark.gpu
def test_rows_on_a_gpu_are_not_copied_for_our_own_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    cupy = pytest.importorskip("cupy")
    place = Place(gn.get_backend("cupy"))
    x = cupy.asarray(X)
    seen = []
    forward = gn.Dense.forward

    def watch(self: Any, x: Any, tape: Any = None) -> Any:
        seen.append(x.data.ptr)
        return forward(self, x, tape)

    monkeypatch.setattr(gn.Dense, "forward", watch)
    loader = gn.Loader(x, W, batch_size=2, shuffle=False)
    trainer = gn.Trainer(*parts(place), metrics=["mae"])
    for run in (
        lambda: trainer.fit(loader, 1, progress=False),
        lambda: trainer.evaluate(loader),
        lambda: trainer.predict(loader),
    ):
        seen.clear()
        run()
        assert seen[-3:] == [x.data.ptr + 16 * i for i in range(3)]


class TestCompiled:
    @pytest.fixture
    def served(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """Return the names of the loops that run from here on."""
        pytest.importorskip("numba")
        from gpunn.kernels import loops  # noqa: PLC0415

        names: list[str] = []
        for name in ("shift", "binary_cross_entropy", "squared_error", "drop"):
            monkeypatch.setattr(loops, name, counted(name, getattr(loops, name), names))
        return names

    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    def test_loops_serve_what_refuses_writing(self, served: list[str], dtype: str) -> None:
        k = kernels(X)
        z = X.astype(dtype)
        labels, target = Y.copy(), (z > 3).astype(dtype)
        results = []
        for _ in range(2):
            results.append(
                [
                    k.loss(gn.SoftmaxCrossEntropy(), z, labels, 0.5, summed=True),
                    k.loss(gn.BinaryCrossEntropy(), z, target, 0.5, summed=True),
                    k.loss(gn.MeanSquaredError(), z, target, 0.5, summed=True),
                    k.dropout(target, 1, 0.5),
                ]
            )
            for part in (labels, target):
                part.flags.writeable = False
        assert served == ["shift", "binary_cross_entropy", "squared_error", "drop"] * 2
        for writable, frozen in zip(*results, strict=True):
            for a, b in zip(writable, frozen, strict=True):
                np.testing.assert_array_equal(a, b)
