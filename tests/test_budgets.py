"""What training and prediction may ask of a GPU: operations, copies, waits and memory, counted.

The counters are those of an emulator of CUDA; a real device does not count its operations.
`bench/gpu_costs.py` says which counts CUB changes, which CuPy uses on a device.
"""

from __future__ import annotations

import gc
import importlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from bench import gpu_costs
from bench.gpu_costs import STEPS, Watched, costs, operations

pytestmark = [pytest.mark.gpu, pytest.mark.emulated]

# A step of 784-512-256-10, batch 128: what it launches, and what for. The rows of x and y are
# gathered for several steps at once, in a launch of its own.
MNIST_STEP = {
    "bias_activation": 3,  # h = f(z + b)
    "softmax_cross_entropy": 1,  # J, and dJ/dz of the last layer
    "activation_backward_sums": 2,  # dJ/dz and dJ/db of the hidden layers
    "update": 1,  # all six parameters
    # X W of three layers, X^T G of three, G W^T of two, and 1^T G for the last layer's bias
    "cublasGemmEx": 9,
}
# With dropout behind both hidden layers: a mask each, and the gradient times the mask.
DROPOUT_STEP = MNIST_STEP | {"dropout": 2, "cupy_multiply__float32_float32_float32": 2}
# Two a multiplication and addition. G W^T of the first layer would be 2 * 128 * 784 * 512 more.
MNIST_FLOPS = 2 * 128 * (784 * 512 * 2 + 512 * 256 * 3 + 256 * 10 * 3 + 10)

MOST_HOST_US = 230

# A step of a network for images: two convolutions of 3 by 3 with ReLU, a pool behind each, a layer
# of ten neurons. The first convolution has no input gradient.
CNN_STEP = {
    "unroll": 4,  # what the filters meet, for z and for dJ/dW
    "fold": 1,  # dJ/dx
    "bias_activation": 3,
    "max_pool": 2,
    "max_pool_backward": 2,
    "activation_backward": 2,
    "softmax_cross_entropy": 1,
    "update": 1,
    # three forward, three dJ/dW, two dJ/dx, and the three biases' gradients
    "cublasGemmEx": 11,
}

# A step of logistic regression with 30 features, batch 32.
LOGREG_STEP = {
    "bias_activation": 1,
    "cupy_copy__int64_float32": 1,  # the labels, as numbers
    "sigmoid_binary_cross_entropy": 1,
    "update": 1,
    "cublasGemmEx": 3,  # X W, X^T G and 1^T G
}

# A batch of a prediction with the network; its rows are a part of the array, and not copied.
PREDICTION = {"bias_activation": 3, "cublasGemmEx": 3}


def every_step(loader: Watched) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield the readings before and after each step between the first and the last batch."""
    for readings in loader.epochs:
        yield from pairwise(readings[1:])


def ran(before: dict[str, Any], after: dict[str, Any]) -> Counter[str]:
    """Return the operations between two readings."""
    return operations(before, after, "kernels") + operations(before, after, "library_calls")


def assert_nothing_waits_or_crosses(loader: Watched) -> None:
    assert loader.epochs
    for readings in loader.epochs:
        assert len(readings) > 2
        between = costs(readings[1], readings[-1])
        assert (between.syncs, between.h2d_bytes, between.d2h_bytes) == (0, 0, 0)
        for way in ("h2d", "d2h", "p2p"):
            assert readings[-1][f"{way}_copies"] == readings[1][f"{way}_copies"]


@contextmanager
def fresh_memory() -> Iterator[Any]:
    """Let the block have a memory pool of its own; yield it."""
    cupy = importlib.import_module("cupy")
    gc.collect()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        yield pool


@pytest.mark.parametrize(
    ("workload", "table", "budget", "gathers"),
    [
        (gpu_costs.mnist_step, MNIST_STEP, 20, 3),  # 401 kB a batch, up to 2 MiB at once
        (gpu_costs.adam_step, MNIST_STEP, 20, 3),
        (gpu_costs.logreg_step, LOGREG_STEP, 10, 0),  # one for the whole epoch, before its 1st step
        (gpu_costs.dropout_step, DROPOUT_STEP, 22, 3),
        (gpu_costs.cnn_step, CNN_STEP, 40, 0),
        (gpu_costs.predict, PREDICTION, 6, 0),
    ],
    ids=["mnist", "adam", "logreg", "dropout", "cnn", "predict"],
)
class TestTheBudget:
    def test_every_step_runs_these_operations_and_no_others(
        self, workload: Callable[[], Watched], table: dict[str, int], budget: int, gathers: int
    ) -> None:
        loader = workload()
        steps = list(every_step(loader))
        assert len(steps) == 3 * (STEPS - 1)
        gathered = 0
        for before, after in steps:
            found = ran(before, after)
            gathered += (more := found.pop("gather", 0))
            assert found == table
            counted = costs(before, after)
            assert counted.device_operations == sum(table.values()) + more <= budget
            assert (counted.memsets, counted.copies) == (0, 0)
        assert gathered == gathers
        # What the program prints.
        mean = sum(table.values()) + gathers / len(steps)
        assert gpu_costs.step_costs(loader).device_operations == pytest.approx(mean)

    def test_nothing_waits_or_crosses(
        self, workload: Callable[[], Watched], table: dict[str, int], budget: int, gathers: int
    ) -> None:
        assert_nothing_waits_or_crosses(workload())


class TestAnEpoch:
    def test_its_order_goes_up_once(self) -> None:
        loader = gpu_costs.mnist_step()
        for readings in loader.epochs:
            before, first = readings[:2]
            assert first["h2d_copies"] - before["h2d_copies"] == 1
            assert first["h2d_bytes"] - before["h2d_bytes"] == loader.n_samples * 8
            assert ran(before, first) == MNIST_STEP | {"gather": 1}

    def test_it_is_read_once(self) -> None:
        loader = gpu_costs.mnist_step()
        after, following = loader.epochs[0][-1], loader.epochs[1][0]
        between = costs(after, following)
        assert (between.syncs, between.d2h_bytes) == (1, STEPS * 4)  # the losses, in float32

    def test_the_first_layer_has_no_input_gradient(self) -> None:
        for before, after in every_step(gpu_costs.mnist_step()):
            assert flops(after) - flops(before) == MNIST_FLOPS


class TestCapturedSteps:
    @pytest.mark.parametrize(
        "workload", [gpu_costs.captured_step, gpu_costs.captured_cnn_step], ids=["mnist", "cnn"]
    )
    def test_a_step_is_one_launch_and_nothing_else(self, workload: Callable[[], Any]) -> None:
        loader = workload()
        assert len(loader.epochs) == gpu_costs.EPOCHS
        for readings in loader.epochs:
            assert len(readings) == STEPS + 1
            for before, after in pairwise(readings):
                counted = costs(before, after)
                assert counted.graph_launches == counted.device_operations == 1
                assert (counted.syncs, counted.device_allocs) == (0, 0)
                assert (counted.h2d_bytes, counted.d2h_bytes) == (0, 0)

    def test_it_takes_the_host_15_us_at_most(self) -> None:
        """About 4 us on a quiet machine."""
        assert least_host_us(gpu_costs.captured_step, enough=15) <= 15


class TestTheHost:
    def test_a_step_takes_it_little_time(self) -> None:
        """130 us on a quiet machine; what this allows is for a busy one, and still less than 240.

        That is what a step took when `cupy.dot` and `cupy.RawKernel` made it.
        """
        assert least_host_us(gpu_costs.mnist_step, enough=MOST_HOST_US) < MOST_HOST_US


def least_host_us(workload: Callable[..., Any], enough: float) -> float:
    """Return the least of some measurements, or the first that is below `enough`."""
    least = math.inf
    for _ in range(4):
        least = min(least, gpu_costs.host_us(workload, steps=30, epochs=3))
        if least < enough:
            break
    return least


def flops(reading: dict[str, Any]) -> float:
    return sum(call["flops"] for call in reading["library_calls"].values())


LABELS = np.arange(50) % 3
SOFT = np.eye(3)[LABELS]
WEIGHTS = np.linspace(0, 1, 50)


class Case:
    """A way to train: a small network, with those layers inside, and its data."""

    def __init__(
        self,
        *layers: gn.Layer,
        last: str | None = None,
        loss: gn.Loss | None = None,
        targets: Any = LABELS,
        weights: Any = None,
        metrics: tuple[str | gn.Metric, ...] = (),
        dtype: str = "float32",
        make: type[gn.Optimizer] = gn.SGD,
        **settings: Any,
    ) -> None:
        model = gn.Sequential(
            gn.Dense(8, 16, "relu", rng=1), *layers, gn.Dense(16, 3, last, rng=2)
        ).to("cupy", dtype=dtype)
        optimizer = make(model.parameters(), **({"learning_rate": 0.01} | settings))
        loss = loss or gn.SoftmaxCrossEntropy()
        self.trainer = gn.Trainer(model, loss, optimizer, metrics=metrics, rng=0)
        x = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
        # 50 samples make six batches of eight, and one of two.
        self.data = Watched(
            x, targets, batch_size=8, sample_weight=weights, backend="cupy", dtype=dtype, rng=0
        )


CASES: dict[str, Callable[[], Case]] = {
    "plain": Case,
    "float64": lambda: Case(dtype="float64"),
    "dropout": lambda: Case(gn.Dropout(0.5)),
    "residual": lambda: Case(gn.Residual(gn.Dense(16, 16, "tanh", rng=3))),
    "softmax inside": lambda: Case(gn.Softmax()),
    "decay and clip_norm": lambda: Case(momentum=0.9, weight_decay=0.1, clip_norm=1.0),
    "Nesterov and clip_value": lambda: Case(momentum=0.9, nesterov=True, clip_value=0.1),
    "Adam": lambda: Case(make=gn.Adam),
    "Adam, decay and clip_norm": lambda: Case(make=gn.Adam, weight_decay=0.1, clip_norm=1.0),
    "a schedule": lambda: Case(learning_rate=gn.Cosine(0.1, steps=100)),
    "class weights": lambda: Case(loss=gn.SoftmaxCrossEntropy(class_weight=[1, 2, 3])),
    "sample weights": lambda: Case(weights=WEIGHTS),
    "both weights": lambda: Case(
        loss=gn.SoftmaxCrossEntropy(class_weight=[1, 2, 3]), weights=WEIGHTS
    ),
    "label smoothing": lambda: Case(loss=gn.SoftmaxCrossEntropy(label_smoothing=0.1)),
    "soft targets": lambda: Case(targets=SOFT),
    "sum": lambda: Case(loss=gn.SoftmaxCrossEntropy(reduction="sum")),
    "binary cross-entropy": lambda: Case(
        loss=gn.BinaryCrossEntropy(), targets=SOFT, weights=WEIGHTS, metrics=("binary_accuracy",)
    ),
    "squared error": lambda: Case(loss=gn.MeanSquaredError(), targets=SOFT, metrics=("r2", "mae")),
    "metrics": lambda: Case(metrics=("accuracy", gn.TopK(2))),
    "probabilities": lambda: Case(last="softmax", loss=gn.CrossEntropy()),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
class TestWhateverIsAskedFor:
    """Some of these run more operations; none of them waits."""

    def test_nothing_waits_or_crosses(self, case: Callable[[], Case]) -> None:
        made = case()
        made.trainer.fit(made.data, 2, progress=False)
        made.trainer.evaluate(made.data)
        made.trainer.predict(made.data)
        assert len(made.data.epochs) == 4
        assert_nothing_waits_or_crosses(made.data)

    def test_a_second_epoch_allocates_nothing(self, case: Callable[[], Case]) -> None:
        with fresh_memory():
            made = case()
            made.trainer.fit(made.data, 2, progress=False)
        _, second = made.data.epochs
        assert second[0]["device_allocs"] == second[-1]["device_allocs"]


def allocations(workload: Callable[[], Watched]) -> int:
    """Return how often memory was allocated after the first epoch, with an empty pool at first."""
    with fresh_memory() as pool:
        first, *_, last = workload().epochs
        assert pool.total_bytes() > 0  # else there was nothing to see
    return int(last[-1]["device_allocs"] - first[-1]["device_allocs"])


class TestMemory:
    def test_training_allocates_nothing_after_the_first_epoch(self) -> None:
        assert allocations(gpu_costs.mnist_step) == 0

    def test_a_second_prediction_allocates_nothing(self) -> None:
        with fresh_memory():
            first, *_, last = gpu_costs.predict().epochs
        assert first[-1]["device_allocs"] == last[-1]["device_allocs"] > 0

    @pytest.mark.parametrize("name", ["plain", "dropout", "metrics"])
    def test_1000_steps_leave_the_pool_where_10_left_it(self, name: str) -> None:
        with fresh_memory() as pool:
            made = CASES[name]()
            made.data.batch_size = 5
            made.trainer.fit(made.data, 1, progress=False)
            then = pool.total_bytes(), pool.used_bytes()
            made.trainer.fit(made.data, 100, progress=False)
            assert sum(len(readings) - 1 for readings in made.data.epochs) == 1010
            assert (pool.total_bytes(), pool.used_bytes()) == then
