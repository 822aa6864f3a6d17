"""Running out of memory: a step that can be tried again, and advice that is right.

Allocators and pools with a limit stand for a full device, so that a large one runs out, too.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import gpunn as gn
from gpunn.arrays.facts import is_out_of_memory
from gpunn.errors import DeviceMemoryError
from tests.conftest import Place, get_place

MEBI = 2**20
Dense = gn.Dense

NETWORKS: dict[str, Callable[[], gn.Layer]] = {
    "dropout": lambda: gn.Sequential(
        Dense(20, 64, "relu", rng=0), gn.Dropout(0.5), Dense(64, 3, rng=1)
    ),
    "wide": lambda: gn.Sequential(
        Dense(1, 300, "gelu", rng=0), Dense(300, 300, "silu", rng=1), Dense(300, 2, rng=2)
    ),
    "narrow": lambda: Dense(3, 2, rng=0),
    "deep": lambda: gn.Sequential(
        *(Dense(16, 16, "tanh", rng=i) for i in range(12)), Dense(16, 5, rng=0)
    ),
    "residual": lambda: gn.Sequential(
        *(gn.Residual(Dense(32, 32, "elu", rng=i)) for i in range(4)), Dense(32, 10, rng=0)
    ),
    "many classes": lambda: Dense(5, 500, rng=0),
}


@contextmanager
def limited(n_bytes: int, allocator: Any = None) -> Iterator[Any]:
    """Take all of CuPy's memory from a pool that gives out this much more; yield the pool."""
    cupy = pytest.importorskip("cupy")
    pool = cupy.cuda.MemoryPool(allocator)
    with cupy.cuda.using_allocator(pool.malloc):
        pool.set_limit(size=n_bytes)
        yield pool


class Allocator:
    """An allocator that has no pool, and fails at one of its calls."""

    def __init__(self) -> None:
        self.calls, self.fails_at = 0, -1
        self.cuda = pytest.importorskip("cupy").cuda

    def __call__(self, size: int) -> Any:
        self.calls += 1
        if self.calls - 1 == self.fails_at:
            raise self.cuda.runtime.CUDARuntimeError(2)  # cudaErrorMemoryAllocation
        return self.cuda.memory._malloc(size)


class Step:
    """A step on a batch, from the same beginning each time."""

    def __init__(self, place: gn.Backend, optimizer: Callable[..., gn.Optimizer]) -> None:
        self.model = NETWORKS["dropout"]().to(place)
        self.optimizer = optimizer(self.model.parameters())
        self.loss = gn.SoftmaxCrossEntropy(class_weight=[1, 2, 3])
        self.rng = np.random.default_rng(5)
        rng = np.random.default_rng(0)
        self.x = place.asarray(rng.standard_normal((8, 20)), "float32")
        self.y = place.asarray(rng.integers(0, 3, 8))
        self.weight = place.asarray(rng.random(8), "float32")
        self()
        gradient = gn.Tape(rng=1)  # that of an earlier batch, which the next step includes
        self.loss(self.model(self.x, gradient), self.y, gradient)
        self.model.backward(self.loss.backward(gradient), gradient)

    def __call__(self) -> None:
        batch = self.x, self.y, self.weight
        gn.train_step(self.model, self.loss, self.optimizer, *batch, rng=self.rng)

    def state(self) -> list[Any]:
        """Return all that a step changes, on the host."""
        grads = [p.grad for p in self.model.parameters()]
        states = [x for kind in self.optimizer._states for x in kind]
        arrays = [*(p.value for p in self.model.parameters()), *states]
        arrays += [grad for grad in grads if grad is not None]
        counts = [self.optimizer.steps, self.rng.bit_generator.state["state"]["state"]]
        return [*counts, *(gn.to_numpy(x).copy() for x in arrays)]


def assert_equal(found: list[Any], wanted: list[Any]) -> None:
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(a, b)


OPTIMIZERS: dict[str, Callable[..., gn.Optimizer]] = {
    "sgd": lambda parameters: gn.SGD(parameters, 0.1, momentum=0.9),
    "adam": lambda parameters: gn.Adam(parameters, 0.1, clip_norm=1.0, weight_decay=0.01),
}


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_step_that_any_allocation_ends_can_be_tried_again(optimizer: Any) -> None:
    cupy = pytest.importorskip("cupy")
    place = gn.get_backend("cupy")
    reference = Step(place, optimizer)
    reference()
    wanted = reference.state()
    for call in range(1000):
        step, allocator = Step(place, optimizer), Allocator()
        before = step.state()
        allocator.fails_at = call
        with cupy.cuda.using_allocator(allocator):
            try:
                step()
                break
            except DeviceMemoryError as error:
                message = str(error)
            assert "cupy:0 is out of memory" in message
            assert_equal(step.state(), before)
            step()  # the allocator fails once
        assert_equal(step.state(), wanted)
    assert call > 10  # else nothing has failed


class Failing(gn.Layer):
    """The identity, which fails in one of its methods."""

    def __init__(self) -> None:
        self.fails: tuple[str, BaseException] | None = None

    def forward(self, x: Any, tape: gn.Tape | None = None) -> Any:
        self.fail("forward")
        if tape is not None:
            tape.push(self)
        return x

    def backward(self, grad: Any, tape: gn.Tape) -> Any:
        self.fail("backward")
        tape.pop(self)
        return grad

    def fail(self, name: str) -> None:
        if self.fails is not None and self.fails[0] == name:
            raise self.fails[1]


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("name", ["forward", "backward"])
@pytest.mark.parametrize("error", [MemoryError, ValueError, TypeError, KeyboardInterrupt])
def test_a_step_that_a_layer_ends_can_be_tried_again(
    optimizer: Any, name: str, error: type[BaseException], place: Place
) -> None:
    reference = Step(place.backend, optimizer)
    reference()
    step, failing = Step(place.backend, optimizer), Failing()
    assert isinstance(step.model, gn.Sequential)
    step.model.layers.insert(2, failing)
    before = step.state()
    failing.fails = name, error()
    with pytest.raises(error):
        step()
    assert_equal(step.state(), before)
    failing.fails = None
    step()
    assert_equal(step.state(), reference.state())


class HalfDone(gn.Optimizer):
    """An optimizer that fails after its first parameter, at its second step."""

    error: type[Exception] = ValueError

    def update(self, xp: Any, value: Any, grad: Any, states: Any, step_size: float) -> None:
        value -= step_size * grad
        if self.steps:
            raise self.error("no more")


def test_an_update_that_fails_says_what_it_leaves(place: Place) -> None:
    step = Step(place.backend, lambda parameters: HalfDone(parameters, 0.1))
    with pytest.raises(ValueError, match="no more") as caught:
        step()
    if sys.version_info >= (3, 11):  # earlier exceptions take no notes
        assert "may be half updated" in "".join(caught.value.__notes__)
    HalfDone.error = MemoryError
    try:
        with pytest.raises(DeviceMemoryError, match="parameters and states may be half updated"):
            step()
    finally:
        HalfDone.error = ValueError


@pytest.mark.gpu
@pytest.mark.parametrize("free", [2 * MEBI, 12 * MEBI])
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "soft targets"])
@pytest.mark.parametrize("products", ["float32", "bfloat16"])
def test_the_batch_that_is_advised_fits(
    make: Callable[[], Any], free: int, soft: bool, products: Any
) -> None:
    cupy = pytest.importorskip("cupy")
    with limited(0) as pool, gn.use("cupy", products=products):
        model = make().to("cupy")
        optimizer, loss = gn.Adam(model.parameters(), 0.1), gn.SoftmaxCrossEntropy()
        features = len(model.parameters()[0].value)
        classes = model.output_shape(features)[0]
        step_bytes = 4 * (features + classes)

        def step(n: int) -> None:
            x = cupy.ones((n, features), "f4")
            y = cupy.full((n, classes), 1 / classes, "f4") if soft else cupy.zeros(n, "i4")
            gn.train_step(model, loss, optimizer, x, y, cupy.ones(n, "f4"), rng=0)

        def failing() -> str:
            n = free // step_bytes // 8
            while True:  # larger and larger batches, so that the pool holds blocks of many sizes
                try:
                    step(n)
                except DeviceMemoryError as error:
                    return str(error)
                n += n // 3 + 1

        step(2)
        pool.free_all_blocks()
        pool.set_limit(size=pool.total_bytes() + free)
        message = failing()
        assert re.search(r"[\d,]+ bytes were requested, [\d,]+ bytes are free", message)
        found = re.search(r"a batch of at most (\d+) fits", message)
        assert found, message
        assert int(found[1]) >= 50
        step(int(found[1]))


ALLOCATORS = ["pool", "managed pool", "asynchronous pool", "no pool"]


@contextmanager
def full(kind: str, n_bytes: int) -> Iterator[None]:
    """Make CuPy's memory run out after `n_bytes`, by an allocator of that kind."""
    cuda = pytest.importorskip("cupy").cuda
    if kind == "no pool":
        taken = 0

        def malloc(size: int) -> Any:
            nonlocal taken
            taken += size
            if taken > n_bytes:
                raise cuda.runtime.CUDARuntimeError(2)
            return cuda.memory._malloc(size)

        with cuda.using_allocator(malloc):
            yield
    elif kind == "asynchronous pool":
        if not cuda.Device().attributes["MemoryPoolsSupported"]:
            pytest.skip("this device has no asynchronous allocation")
        pool = cuda.MemoryAsyncPool()
        before = pool.get_limit()
        pool.set_limit(size=pool.used_bytes() + n_bytes)
        try:
            with cuda.using_allocator(pool.malloc):
                yield
        finally:
            pool.set_limit(size=before)
    else:
        source = cuda.malloc_managed if kind == "managed pool" else None
        with limited(n_bytes, source):
            yield


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ALLOCATORS)
def test_every_kind_of_allocator_may_run_out(kind: str) -> None:
    step = Step(gn.get_backend("cupy"), OPTIMIZERS["sgd"])
    before, x = step.state(), gn.get_backend("cupy").asarray(np.ones((20, 20), "f4"))
    with full(kind, 4096):
        with pytest.raises(DeviceMemoryError, match=r"[\d,]+ bytes are free"):
            step()
        with pytest.raises(DeviceMemoryError, match=r"in a pass over 20 samples: cupy:0 is out of"):
            step.model(x)
    assert_equal(step.state(), before)


def test_errors_that_say_out_of_memory() -> None:
    def error(name: str, status: int) -> Exception:
        made = type(name, (RuntimeError,), {})(name)
        made.status = status
        return made

    assert is_out_of_memory(MemoryError())
    for name, status in (("CUDARuntimeError", 2), ("CUDADriverError", 2), ("CUBLASError", 3)):
        assert is_out_of_memory(error(name, status))
        assert not is_out_of_memory(error(name, 700))
    assert not is_out_of_memory(RuntimeError("out of luck"))


@pytest.mark.gpu
class TestWhoRunsOut:
    @pytest.fixture(autouse=True)
    def _cupy(self) -> None:
        get_place("cupy")

    def test_a_layer_that_is_made(self) -> None:
        with (
            limited(MEBI),
            pytest.raises(
                DeviceMemoryError,
                match=r"Dense\(1000, 1000\): cupy:0 is out of memory; [48],000,\d+ bytes were "
                r"requested, [\d,]+ bytes are free; make it smaller",
            ),
        ):
            Dense(1000, 1000, rng=0, backend="cupy")

    def test_a_model_that_moves(self) -> None:
        model = gn.Sequential(Dense(10, 100, rng=0), Dense(100, 10_000, rng=0))
        before = [p.value for p in model.parameters()]
        with (
            limited(MEBI),
            pytest.raises(DeviceMemoryError, match=r"\.to: cupy:0 is out of memory; 4,000,\d+"),
        ):
            model.to("cupy")
        assert all(p.value is value for p, value in zip(model.parameters(), before, strict=True))

    def test_an_optimizer_that_is_made(self) -> None:
        model = Dense(100, 1000, rng=0, backend="cupy")
        value = model.weight.value
        with (
            limited(MEBI),
            pytest.raises(DeviceMemoryError, match="Adam, of its blocks: cupy:0 is out of memory"),
        ):
            gn.Adam(model.parameters())
        assert model.weight.value is value

    def test_an_optimizer_that_moves(self) -> None:
        model = gn.Sequential(Dense(100, 500, rng=0), Dense(500, 100, rng=0))
        optimizer = gn.Adam(model.parameters())
        before = [p.value for p in model.parameters()]
        with (
            limited(MEBI),
            pytest.raises(DeviceMemoryError, match=r"Adam\.to: cupy:0 is out of memory"),
        ):
            optimizer.to("cupy")
        assert all(p.value is value for p, value in zip(model.parameters(), before, strict=True))
        optimizer.check_places()
        x = np.ones((2, 100), "f4")
        gn.train_step(model, gn.MeanSquaredError(), optimizer, x, x)

    def test_an_optimizer_whose_weight_decay_begins(self) -> None:
        model = Dense(100, 1000, rng=0, backend="cupy")
        optimizer = gn.SGD(model.parameters())
        with limited(1024), pytest.raises(MemoryError):
            optimizer.weight_decay = 0.1
        assert optimizer.weight_decay == 0.0
        assert optimizer.penalty() is None

    def test_a_file_that_is_loaded(self, tmp_path: Path) -> None:
        model = gn.Sequential(Dense(10, 100, rng=0), Dense(100, 1000, rng=0))
        gn.save(tmp_path / "model.safetensors", model)
        other = gn.Sequential(Dense(10, 100, rng=1), Dense(100, 1000, rng=1)).to("cupy")
        before = [gn.to_numpy(p.value) for p in other.parameters()]
        for share in (0.5, 1.5):  # the values themselves do not fit, or the copies of the old ones
            with (
                limited(int(share * 410_000)),
                pytest.raises(DeviceMemoryError, match=r"load, of .*weight: cupy:0 is out of"),
            ):
                gn.load(tmp_path / "model.safetensors", other)
            assert_equal([gn.to_numpy(p.value) for p in other.parameters()], before)

    def test_a_prediction_and_an_evaluation(self) -> None:
        model = Dense(4, 2000, rng=0, backend="cupy")
        loss, optimizer = gn.MeanSquaredError(), gn.SGD(model.parameters())
        trainer = gn.Trainer(model, loss, optimizer)
        x, y = np.ones((500, 4), "f4"), np.ones((500, 2000), "f4")
        with limited(MEBI):
            with pytest.raises(
                DeviceMemoryError, match=r"in a pass over 500 samples: cupy:0 is .*smaller batches"
            ):
                trainer.predict(x)
            with pytest.raises(
                DeviceMemoryError, match=r"outputs of all samples: .*of fewer samples"
            ):
                trainer.predict(x[:100], batch_size=50)
            assert trainer.predict(x[:40], batch_size=20).shape == (40, 2000)
            loader = gn.Loader(x, y, batch_size=100, backend="cupy", resident=False)
            for loader.batch_size in (100, 40):
                with pytest.raises(
                    DeviceMemoryError, match=r"evaluation: .* take a batch_size below"
                ):
                    trainer.evaluate(loader)
            loader.batch_size = 10
            assert trainer.evaluate(loader)["loss"] > 0


@pytest.mark.gpu
class TestEstimators:
    """They take fewer rows at a time by themselves."""

    #: They stop once the loss has not fallen by so much in an epoch: after the second one.
    stops: ClassVar[dict[str, Any]] = {
        "tol": 10.0,
        "n_iter_no_change": 1,
        "random_state": 0,
        "backend": "cupy",
    }

    def test_a_prediction(self) -> None:
        estimators = pytest.importorskip("gpunn.estimators", reason="needs scikit-learn")
        x = np.random.default_rng(0).standard_normal((3000, 4)).astype("f4")
        model = estimators.MLPRegressor(hidden_layer_sizes=(500,), **self.stops)
        model.fit(x[:64], x[:64, 0])
        wanted = model.predict(x)
        with limited(3 * MEBI):
            np.testing.assert_allclose(model.predict(x), wanted, rtol=1e-5, atol=1e-6)

    def test_a_prediction_of_which_not_even_one_row_fits(self) -> None:
        estimators = pytest.importorskip("gpunn.estimators", reason="needs scikit-learn")
        x = np.ones((20, 4), "f4")
        model = estimators.MLPRegressor(hidden_layer_sizes=(5000,), **self.stops)
        model.fit(x + np.arange(20)[:, None], x[:, 0])
        with limited(8192), pytest.raises(DeviceMemoryError, match="in a pass over 1 samples"):
            model.predict(x)

    def test_the_evaluation_of_held_out_data(self) -> None:
        estimators = pytest.importorskip("gpunn.estimators", reason="needs scikit-learn")
        x = np.random.default_rng(0).standard_normal((3000, 4)).astype("f4")

        def fitted() -> Any:
            network = estimators.MLPRegressor(
                hidden_layer_sizes=(500,),
                batch_size=50,
                early_stopping=True,
                validation_fraction=0.9,
                **self.stops,
            )
            return network.fit(x, x[:, 0])

        wanted = fitted().validation_scores_
        with limited(3 * MEBI):
            np.testing.assert_allclose(fitted().validation_scores_, wanted, rtol=1e-5)
