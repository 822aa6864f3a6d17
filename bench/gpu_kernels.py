"""Each CUDA kernel against the bandwidth of the device, and against its generic twin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from gpu_timing import Clock, device_time
from timing import Spread

# isort: split
import gpu_costs
import numpy as np

import gpunn as gn
from gpunn.kernels import Kernels, kernels
from gpunn.kernels.cell import Cell
from gpunn.kernels.update import Slots, Update

SIDE = 4096  # rows and columns of the largest arrays
REPEATS = 20  # calls in one measurement
CLOSE = 1e-4  # of the largest entry: how near a kernel and its generic twin must be, in float32


class Case(NamedTuple):
    """A call that launches CUDA kernels.

    Attributes
    ----------
    launches : tuple of str
        The kernels, by name.
    call : function
        Calls a method of the given `Kernels`; returns the arrays that it wrote.
    moved : int
        The bytes that have to be read and written.
    """

    launches: tuple[str, ...]
    call: Callable[[Kernels], list[Any]]
    moved: int


Draw = Callable[..., Any]


def cases(cupy: Any, side: int = SIDE) -> dict[str, Case]:
    """Return a case for each CUDA kernel, and for each of its ways through memory."""
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> Any:
        return cupy.asarray(rng.standard_normal(shape, dtype=np.float32))

    return (
        _layer_cases(draw, side)
        | _loss_cases(draw, cupy, side)
        | _update_cases(draw, side)
        | _row_cases(draw, cupy, side)
    )


def _layer_cases(draw: Draw, side: int) -> dict[str, Case]:
    x, grad, bias = draw(side, side), draw(side, side), draw(side)
    owned = [draw(side, side) for _ in range(2)]  # by bias_activation, which writes there
    few, several = draw(128, 512), draw(min(side, 1024), 4096)
    relu, tanh, gelu = gn.ReLU(), gn.Tanh(), gn.GELU()
    n = x.nbytes
    return {
        "bias_activation, relu": Case(
            ("bias_activation",), lambda k: [*k.bias_activation(owned[0], bias, relu)], 2 * n
        ),
        "bias_activation, gelu": Case(
            ("bias_activation",), lambda k: [*k.bias_activation(owned[1], bias, gelu)], 3 * n
        ),
        "activation": Case(("activation",), lambda k: [k.activation(x, tanh)], 2 * n),
        "activation_backward": Case(
            ("activation_backward",), lambda k: [k.activation_backward(grad, x, tanh)], 3 * n
        ),
        "its sums, 128 x 512": Case(
            ("activation_backward_sums",),
            lambda k: [*k.bias_activation_backward(few, few, relu)],
            2 * few.nbytes,
        ),
        "its sums, 1024 x 4096": Case(
            ("activation_backward_sums",),
            lambda k: [*k.bias_activation_backward(several, several, relu)],
            2 * several.nbytes,
        ),
        "dropout": Case(("dropout",), lambda k: [*k.dropout(x, 1, 0.5)], 3 * n),
    }


def _loss_cases(draw: Draw, cupy: Any, side: int) -> dict[str, Case]:
    logits, soft = draw(side, 1000), abs(draw(side, 1000)) % 1
    labels = cupy.asarray(np.random.default_rng(1).integers(0, 1000, side))
    m = logits.nbytes

    def loss(formula: gn.Loss, target: Any) -> Callable[[Kernels], list[Any]]:
        return lambda k: [*k.loss(formula, logits, target, 1.0, summed=False)]

    return {
        "cross-entropy, labels": Case(
            ("softmax_cross_entropy",), loss(gn.SoftmaxCrossEntropy(), labels), 2 * m
        ),
        "cross-entropy, soft": Case(
            ("softmax_cross_entropy",), loss(gn.SoftmaxCrossEntropy(), soft), 3 * m
        ),
        "binary cross-entropy": Case(
            ("sigmoid_binary_cross_entropy",), loss(gn.BinaryCrossEntropy(), soft), 3 * m
        ),
        "squared error": Case(("squared_error",), loss(gn.MeanSquaredError(), soft), 3 * m),
    }


def _update_cases(draw: Draw, side: int) -> dict[str, Case]:
    def update(rule: Any, states: int, clip_norm: float | None) -> Callable[[Kernels], list[Any]]:
        values, grads, *kept = ([draw(side // 4, side // 4) for _ in range(16)] for _ in range(4))
        kept = [[v * v for v in state] for state in kept[:states]]
        settings = Update(
            Slots(values, grads, kept, [0.0] * 16), 0.1, clip_norm, None, rule.epsilon
        )

        def call(k: Kernels) -> list[Any]:
            k.update(rule, settings)
            return [array for each in (values, *kept) for array in each]

        return call

    n = 4 * side * side
    parameter = [gn.Parameter(np.zeros(1))]  # only the rules are used
    sgd, adam = gn.SGD(parameter, momentum=0.9), gn.Adam(parameter)
    return {
        "sgd": Case(("update",), update(sgd, 1, None), 5 * n),
        "sgd with clip_norm": Case(("squared_norm", "update"), update(sgd, 1, 1.0), 6 * n),
        "adam": Case(("update",), update(adam, 2, None), 7 * n),
    }


def _row_cases(draw: Draw, cupy: Any, side: int) -> dict[str, Case]:
    from gpunn.kernels import cupy_rounding, cupy_step  # noqa: PLC0415 (they import CuPy)

    x, grad = draw(side, side), draw(side, side)
    random = np.random.default_rng(1)
    labels = cupy.asarray(random.integers(0, 1000, side))
    order = cupy.asarray(random.permutation(side))
    n = x.nbytes
    there, first = cupy.zeros_like(x), Cell(cupy.zeros(1, np.int64))

    def copy(k: Kernels) -> list[Any]:
        if type(k) is Kernels:
            there[...] = x
        else:
            cupy_step.copy_rows(x, there, first)
        return [there]

    def rounded(k: Kernels) -> list[Any]:
        """Round two factors to bfloat16; return the upper halves of their bits."""
        if type(k) is not Kernels:
            return [cupy_rounding.round_factors(x, grad)[0]]
        bits = cupy.concatenate((x.ravel(), grad.ravel())).view(np.uint32)
        return [((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)]

    return {
        "copy_rows": Case(("copy_rows",), copy, 2 * n),
        "round_factors": Case(("round_factors",), rounded, 3 * n),
        "gather": Case(("gather",), lambda k: k.gather([x, labels], order), 2 * n),
        "gather, 16 bytes": Case(("gather",), lambda k: k.gather([x], order), 2 * n),
    }


def check(cupy: Any, side: int = SIDE) -> None:
    """Fail unless each case launches its kernels alone and gives what its generic twin does."""
    own = kernels(cupy.empty(0))
    # Calls may write to their arrays, so the twins have their own.
    twins = cases(cupy, side)
    for name, case in cases(cupy, side).items():
        before = gpu_costs.read() if gpu_costs.counting() else {}
        results = case.call(own)
        if before:
            launched = gpu_costs.operations(before, gpu_costs.read(), "kernels")
            assert launched == dict.fromkeys(case.launches, 1), (name, launched)
        for got, want in zip(results, twins[name].call(Kernels(own.xp)), strict=True):
            error, largest = float(abs(got - want).max()), float(abs(want).max())
            assert error <= CLOSE * largest, (name, error, largest)


def report(cupy: Any, clock: Clock, rounds: int, peak: float, side: int = SIDE) -> dict[str, Any]:
    """Time each case and its generic twin on the device; print and return the rows.

    Shares are of `peak`, the bytes per second of a large copy. A small case may exceed it: its
    arrays stay in the cache.
    """
    print(f"\n{'kernel':22}{'us':>30}{'GB/s':>10}{'share':>8}{'generic':>9}")
    own = kernels(cupy.empty(0))
    rows = {}
    for name, case in cases(cupy, side).items():
        ours, plain = (
            device_time(clock, lambda k=k, case=case: case.call(k), rounds, REPEATS)
            for k in (own, Kernels(own.xp))
        )
        rate = case.moved / ours.median
        rows[name] = {"s": ours, "generic_s": plain, "bytes_per_s": rate, "share": rate / peak}
        times = Spread(*(1e6 * t for t in ours))
        factor = plain.median / ours.median
        print(f"{name:22}{times!s:>30}{rate / 1e9:>10.4g}{rate / peak:>8.1%}{factor:>9.3g}")
    return rows
