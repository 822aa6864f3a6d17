"""Captured steps with products in bfloat16: factors that are kept rounded, and never stale."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from numpy.testing import assert_array_equal

import gpunn as gn
from bench import gpu_costs
from gpunn.program.factors import Factor, factors_of
from gpunn.program.values import Operation, Recording, Value
from tests.conftest import get_place
from tests.runs import RUNS, Block, Run, assert_same_bits, both, one_by_one

cupy: Any = None

RUN = Run(
    blocks=(Block("dense", 9, "relu"), Block("twice", 6, "tanh"), Block("dense", 6, "gelu")),
    optimizer="momentum",
    n=70,
    batch_size=4,
    dtype="float32",
    backend="cupy",
    epochs=3,
)
#: Ways to train: which arrays the optimizer updates, one by one or in blocks.
WAYS: dict[str, dict[str, Any]] = {
    "one block": {},
    "blocks by decay": {"weight_decay": 0.1, "clip_norm": 0.1},
    "Adam": {"optimizer": "adam"},
    "Nesterov": {"optimizer": "nesterov", "clip_value": 0.02},
    "frozen layers": {"frozen": 3},
    "frozen, with decay": {"frozen": 1, "weight_decay": 0.1},
    "a residual": {"blocks": (Block("residual", inner=(Block("dense", 5, "tanh"),)),)},
    "streamed": {"data": "streamed"},
}


@pytest.fixture
def _gpu() -> None:
    global cupy  # noqa: PLW0603
    get_place("cupy")  # or skip
    cupy = importlib.import_module("cupy")
    if cupy.cuda.runtime.is_hip or int(cupy.cuda.Device().compute_capability) < 80:
        pytest.skip("bfloat16 needs CUDA and compute capability 8.0")


def rounding() -> Any:
    return importlib.import_module("gpunn.kernels.cupy_rounding")


def assert_same(captured: Any, readable: Any) -> None:
    """Compare what two runs have left, bit for bit."""
    assert captured[0].why_not_recorded == ""
    assert readable[0].why_not_recorded
    assert_same_bits(captured, readable)
    assert_array_equal(captured[1]["loss"], readable[1]["loss"])  # NaN is as good as NaN


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestTheReadableLoopIsTheReference:
    @given(run=RUNS)
    @settings(max_examples=40)
    def test_whatever_is_trained(self, run: Run) -> None:
        with gn.use(backend="cupy", products="bfloat16"):
            assert_same(*both(replace(run, backend="cupy", dtype="float32", epochs=3)))

    @pytest.mark.parametrize("way", WAYS)
    def test_each_way(self, way: str) -> None:
        with gn.use(backend="cupy", products="bfloat16"):
            assert_same(*both(replace(RUN, **WAYS[way])))

    def test_many_stretches_an_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        runner = importlib.import_module("gpunn.program.cuda")
        monkeypatch.setattr(runner, "_STEPS_AT_ONCE", 5)
        with gn.use(backend="cupy", products="bfloat16"):
            assert_same(*both(RUN))

    def test_an_update_that_writes_no_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """As may be the kernel of another optimizer."""
        kernels = importlib.import_module("gpunn.kernels.cupy_")
        launch = kernels.launch_update
        monkeypatch.setattr(
            kernels,
            "launch_update",
            lambda rule, update: launch(rule, update._replace(copies=None)),
        )
        with gn.use(backend="cupy", products="bfloat16"):
            assert_same(*both(RUN))


def halve(values: list[Any]) -> None:
    """Change weights in place, as anybody may."""
    for value in values:
        value[...] *= 0.5


def replaced(parameters: list[gn.Parameter]) -> None:
    for parameter in parameters:
        parameter.value = parameter.value * 0.5


CHANGES: dict[str, Callable[[list[gn.Parameter]], None]] = {
    "in place": lambda parameters: halve([p.value for p in parameters]),
    "another array": replaced,
}


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestAChangedWeightIsSeen:
    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("frozen", [False, True])
    @pytest.mark.parametrize("when", ["in a callback", "between two fits"])
    def test_it_is(self, when: str, frozen: bool, change: str) -> None:
        run = replace(RUN, frozen=2, blocks=(Block("dense", 9, "relu"),))

        def train(*, changed: bool) -> Any:
            trainer, loader = run.trainer(), run.loader()
            parameters = list(trainer.model.parameters())[:: 1 if frozen else -1][:1]
            assert (parameters[0] in trainer.optimizer.parameters) != frozen

            def act(*_: Any) -> None:
                if changed:
                    CHANGES[change](parameters)

            callbacks = [act] if when == "in a callback" else []
            trainer.fit(loader, 2, callbacks=callbacks, progress=False)
            act()
            return trainer, trainer.fit(loader, 2, progress=False)

        with gn.use(backend="cupy", products="bfloat16"):
            captured, unchanged = train(changed=True), train(changed=False)
            with one_by_one():
                assert_same(captured, train(changed=True))
        assert captured[1]["loss"] != unchanged[1]["loss"]


@pytest.mark.gpu
@pytest.mark.emulated
@pytest.mark.usefixtures("_gpu")
class TestTheBudget:
    def test_each_factor_is_rounded_once_a_step(self) -> None:
        """The inputs of three layers, and three gradients; both were read twice, as were weights.

        Weights are rounded by the update, and once an epoch: the blocks of an optimizer at once.
        """
        stats = importlib.import_module("cudasim").stats
        with gn.use(backend="cupy", products="bfloat16"):
            loader = gpu_costs.captured_step(reading=stats)
        for before, after in zip(loader.epochs[0], loader.epochs[0][1:], strict=False):
            assert after["kernels"]["round_factors"] - before["kernels"]["round_factors"] == 6
            assert after["graph_nodes"] - before["graph_nodes"] == 25
        ends, starts = loader.epochs[0][-1], loader.epochs[1][0]
        assert starts["kernels"]["round_factors"] - ends["kernels"]["round_factors"] == 1

    def test_the_memory_that_it_takes(self) -> None:
        """Two bytes for each number in a weight's block, and for what factors are kept."""
        copies = rounding().WeightCopies
        weights = [cupy.ones(n, "float32") for n in (1000, 500, 10)]
        pool = cupy.cuda.MemoryPool()
        read = [rounding().Span.of(x) for x in (weights[0][10:20], weights[2])]
        with cupy.cuda.using_allocator(pool.malloc):
            made = copies(weights, read)
        assert pool.used_bytes() == 2048 + 512
        assert made.start_of(weights[0])
        assert made.start_of(weights[2])
        assert not made.start_of(weights[1])
        assert made.start_of(weights[0][8:]) == made.start_of(weights[0]) + 16


def batch(*shape: int, storage: Value | None = None) -> Value:
    return Value(shape, np.dtype("float32"), by_sample=True, storage=storage)


class TestWhatARecordingSays:
    def test_the_same_numbers_until_they_are_written_to(self) -> None:
        x, weight = batch(4, 3), np.ones((3, 3))
        z = batch(4, 3)
        h = batch(4, 3, storage=z)
        again = batch(4, 3, storage=z)
        steps = [
            Operation("product", (x, weight), (z,)),
            Operation("bias_activation", (z, None), (h,)),
            Operation("product", (h, weight), (batch(4, 3),)),
            Operation("product_over_batch", (x, h), (np.ones((3, 3)),)),
            Operation("add", (h, h), (again,)),
            Operation("product_over_batch", (x, again), (np.ones((3, 3)),)),
        ]
        found = factors_of(Recording(steps))
        first, second, third, last = found
        assert first[0] == third[0] == last[0] == Factor(12, (x, 0))
        assert second[0] == third[1] != last[1]
        assert first[1] == second[1] == Factor(9, None)


@pytest.mark.gpu
@pytest.mark.usefixtures("_gpu")
class TestKeptFactors:
    def make(self, contents: list[Any]) -> Any:
        return rounding().KeptFactors(rounding().WeightCopies([], []), contents)

    def test_it_is_kept_as_long_as_it_is_read(self) -> None:
        x, y, z = (cupy.full(8, value, "float32") for value in (1, 2, 3))
        rounded = self.make([("x", "y"), ("z", "x"), ("z", "y")])
        pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(pool.malloc):
            first = rounded(x, y)[1:]
            second = rounded(z, x)[1:]
            assert second[1] == first[0]
            assert pool.used_bytes() == 2 * 512  # x is not read again
            third = rounded(z, y)[1:]
            assert third == (second[0], first[1])
            assert pool.used_bytes() == 0

    def test_other_memory_has_other_numbers(self) -> None:
        """Whatever is said of it."""
        x, y = cupy.ones(8, "float32"), cupy.full(8, 2, "float32")
        rounded = self.make([("x", "y"), ("y", "x"), (None, None)])
        held = [rounded(x, y), rounded(x, y), rounded(x, y), rounded(x, y)]
        assert len({start for _, *starts in held for start in starts}) == 8

    def test_a_factor_by_itself(self) -> None:
        x = cupy.full(8, 1.00390625, "float32")
        held, left, right = self.make([("x", "x")])(x, x)
        assert left == right
        assert cupy.asnumpy(held[0]).tolist() == [0x3F80] * 8

    def test_products_that_no_recording_knows(self) -> None:
        """Nothing is kept then: a kernel may make products of its own."""
        capture = importlib.import_module("gpunn.program.capture")
        seen = []

        def none(recording: Any) -> list[Any]:
            found = factors_of(recording)
            seen.append(found.pop())
            return found

        with pytest.MonkeyPatch.context() as patch, gn.use(backend="cupy", products="bfloat16"):
            patch.setattr(capture, "factors_of", none)
            kept = []
            make = capture.KeptFactors
            patch.setattr(
                capture, "KeptFactors", lambda *parts: kept.append(parts[1]) or make(*parts)
            )
            captured = RUN.run()
        assert seen
        assert kept
        assert not any(kept)
        with gn.use(backend="cupy", products="bfloat16"), one_by_one():
            assert_same(captured, RUN.run())
