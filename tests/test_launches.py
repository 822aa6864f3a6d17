"""Launches of the CUDA kernels: arguments, threads, streams, and what is kept for the next."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

import gpunn as gn
from gpunn.kernels import cuda, kernels
from gpunn.kernels.rules import Fused
from gpunn.kernels.update import Slots, Update
from gpunn.nn.activation import ReLU
from tests.at_once import in_threads
from tests.conftest import get_place

pytestmark = pytest.mark.gpu
cupy: Any = None


@pytest.fixture(autouse=True)
def _cupy() -> None:
    global cupy  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = pytest.importorskip("cupy")


def draw(n: int, p: int, dtype: str, seed: int = 0) -> Any:
    return cupy.asarray(np.random.default_rng(seed).standard_normal((n, p)).astype(dtype))


class TestThreads:
    def test_a_thread_may_begin_with_a_launch(self) -> None:
        """It has no context of its own before, and no memory has to be asked for."""
        z = draw(8, 8, "float32")
        wanted = np.maximum(gn.to_numpy(z), 0)
        cupy.cuda.Device().synchronize()
        in_threads(lambda _: kernels(z).bias_activation(z, None, ReLU()), 1)
        cupy.cuda.Device().synchronize()
        np.testing.assert_array_equal(gn.to_numpy(z), wanted)

    def test_launches_of_one_kernel_do_not_mix_their_arguments(self) -> None:
        def work(i: int) -> bool:
            stream = cupy.cuda.Stream(non_blocking=True)
            with stream:
                right = []
                for k in range(100):
                    x = cupy.full((4 + i, 4), float(i * 1000 + k), "float32")
                    h = kernels(x).activation(x, ReLU())
                    right.append((h == x).all())
                stream.synchronize()
            return all(bool(each) for each in right)

        assert all(in_threads(work, 4))


PER_THREAD = """
import numpy, threading
import cupy, gpunn as gn
from gpunn.kernels.cuda_kernel import pointer_of
assert pointer_of(cupy.cuda.get_current_stream()) == cupy.cuda.runtime.streamPerThread
# As for CuPy's own kernels: 0 is the thread's own stream.
assert pointer_of(cupy.cuda.Stream.null) == cupy.cuda.runtime.streamPerThread
def step():
    x, y = cupy.ones((8, 4), "float32"), cupy.zeros((8, 2), "float32")
    model = gn.Dense(4, 2, rng=0, backend="cupy")
    optimizer = gn.SGD(model.parameters(), 0.5)
    for _ in range(3):
        cost, _ = gn.train_step(model, gn.MeanSquaredError(), optimizer, x, y)
    found.append(float(cost))
found = []
step()
with cupy.cuda.Stream.null:
    step()
thread = threading.Thread(target=step)
thread.start()
thread.join()
assert len(found) == 3 and len(set(found)) == 1, found
"""


def test_per_thread_default_streams() -> None:
    environment = os.environ | {"CUPY_CUDA_PER_THREAD_DEFAULT_STREAM": "1"}
    subprocess.run(  # noqa: S603
        [sys.executable, "-c", PER_THREAD], env=environment, check=True, timeout=300
    )


class TestTheSumOfLosses:
    @pytest.mark.parametrize("dtype", ["float32", "float64"])
    @pytest.mark.parametrize("k", [1, 2, 10, 300])
    @pytest.mark.parametrize("n", [1, 2, 127, 128, 129, 5000])
    def test_is_that_of_each_loss(self, n: int, k: int, dtype: str) -> None:
        z, y = draw(n, k, dtype), draw(n, k, dtype, 1)
        labels = cupy.arange(n) % k
        for loss, target in (
            (gn.SoftmaxCrossEntropy, labels),
            (gn.SoftmaxCrossEntropy, cupy.abs(y)),
            (gn.BinaryCrossEntropy, (y > 0).astype(dtype)),
            (gn.MeanSquaredError, y),
        ):
            total = loss(reduction="sum").forward(z, target)
            each = gn.to_numpy(loss(reduction="none").forward(z, target)).astype("float64")
            assert total.shape == ()
            np.testing.assert_allclose(float(total), each.sum(), rtol=5e-6)

    def test_is_the_same_each_time_also_in_two_streams(self) -> None:
        z, labels = draw(3000, 10, "float32"), cupy.arange(3000) % 10
        loss = gn.SoftmaxCrossEntropy()
        wanted = float(loss.forward(z, labels))
        cupy.cuda.Device().synchronize()
        streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(2)]
        found = []
        for i in range(10):
            with streams[i % 2]:
                found.append(loss.forward(z, labels))
        cupy.cuda.Device().synchronize()
        assert {float(cost) for cost in found} == {wanted}


def test_the_table_of_an_optimizer_keeps_nothing_of_another_one() -> None:
    """A plain step after one with two states must not find them."""
    weights = {}
    for place in ("numpy", "cupy"):
        trained = []
        for make, n in ((gn.Adam, 5), (gn.SGD, 3), (gn.Adam, 2)):
            model = gn.Dense(n, 2, rng=n, backend=place)
            x = model.weight.value[:1, :] @ model.weight.value.T
            optimizer = make(model.parameters(), 0.1)
            tape = gn.Tape()
            model.backward(model.forward(x, tape), tape)
            optimizer.step()
            trained.append(gn.to_numpy(model.weight.value))
        weights[place] = trained
    for ours, wanted in zip(weights["cupy"], weights["numpy"], strict=True):
        np.testing.assert_allclose(ours, wanted, rtol=1e-5, atol=1e-7)


#: SGD with momentum 0.5.
RULE = Fused("sgd", (0.5, 0.0, 0.0), (0,))


@pytest.mark.parametrize("which", ["values", "grads", "states", "decays"])
def test_an_array_that_was_replaced_is_noticed(which: str) -> None:
    """The tables of an update are kept with its arrays."""

    def arrays(start: float) -> list[Any]:
        return [cupy.full(n, start, "float32") for n in (3, 5)]

    slots = Slots(arrays(1.0), arrays(2.0), [arrays(4.0)], [0.0, 0.0])
    update = Update(slots, 0.1, None, None)
    k = kernels(slots.values[0])
    k._update_fused(RULE, update)  # v = 0.5 * 4 - 0.1 * 2, and the value 1 + v
    np.testing.assert_allclose(gn.to_numpy(slots.values[1]), 2.8, rtol=1e-6)
    kept = slots.prepared
    k._update_fused(RULE, update)  # v = 0.5 * 1.8 - 0.1 * 2
    np.testing.assert_allclose(gn.to_numpy(slots.values[1]), 3.5, rtol=1e-6)
    assert slots.prepared is kept
    if which == "values":
        slots.values[1] = cupy.full(5, 10.0, "float32")
    elif which == "grads":
        slots.grads[1] = cupy.full(5, -2.0, "float32")
    elif which == "states":
        slots.states[0][1] = cupy.full(5, 40.0, "float32")
    else:
        slots.decays[1] = 10.0
    k._update_fused(RULE, update)
    wanted = {"values": 10.15, "grads": 4.05, "states": 23.3, "decays": 0.15}
    np.testing.assert_allclose(gn.to_numpy(slots.values[1]), wanted[which], rtol=1e-5)
    np.testing.assert_allclose(gn.to_numpy(slots.values[0]), 3.65, rtol=1e-6)


@pytest.mark.parametrize("file", cuda.VARIANTS)
def test_the_arguments_of_every_kernel_are_known(file: str) -> None:
    from gpunn.kernels.cuda_kernel import argument_codes  # noqa: PLC0415 (imports CuPy)

    text = cuda.source(file)
    names = [part.split("(")[0].split()[-1] for part in text.split("__global__")[1:]]
    assert names
    for name in names:
        codes, has_table = argument_codes(text, name)
        assert len(codes) >= 3
        assert has_table == (file in {"convolution", "data", "optimizer"})
    with pytest.raises(LookupError, match="no kernel missing"):
        argument_codes(text, "missing")


@pytest.mark.parametrize(
    ("parameters", "wanted"),
    [
        ("const float* x, T * y, T *z", (["P", "P", "P"], False)),
        ("const T* __restrict__ x, const long long n", (["P", "q"], False)),
        ("const __grid_constant__ Rows rows, unsigned long long key", (["P", "Q"], True)),
        ("int n, unsigned m, float a, double b", (["i4x", "I4x", "f4x", "d"], False)),
        ("size_t n", None),
        ("Rows rows, Rows more", None),
    ],
)
def test_the_types_that_a_kernel_may_take(parameters: str, wanted: Any) -> None:
    from gpunn.kernels.cuda_kernel import argument_codes  # noqa: PLC0415 (imports CuPy)

    text = f"struct Rows {{ int n; }}; __global__ void f(\n  {parameters}) {{}}"
    if wanted is None:
        with pytest.raises(LookupError, match="f: no argument of type"):
            argument_codes(text, "f")
    else:
        assert argument_codes(text, "f") == wanted
