"""CuPy by hand, as its own users write a perceptron without kernels of their own; on a CPU, NumPy.

Every operation is a call, as in the formulas. What it costs against gpunn is what fused kernels and
captured steps save.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from workloads import Workload, data, weights

LIBRARIES = {"cpu": "numpy", "gpu": "cupy"}


def serves(work: Workload, variant: str) -> bool:
    """Return whether what is written here can run a workload."""
    plain = not (work.blocks or work.dropout or work.clip_norm or work.class_weight)
    plain = plain and not (work.block or work.image)
    simple = work.task != "numbers" and work.activation == "relu" and work.optimizer == "sgd"
    return plain and simple and work.products == "float32"


def prepare(
    work: Workload, steps: int, variant: str = "", device: str = "cpu"
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    xp = importlib.import_module(LIBRARIES[device])
    network = _Network(xp, work)
    place = xp if work.source == "resident" else np  # where the data are, and their order
    x, y = (place.asarray(part) for part in data(work))
    if work.predict:

        def run_predict() -> None:
            for _ in range(work.repeats):
                network.outputs(x)
            if device == "gpu":
                xp.cuda.Device().synchronize()

        return run_predict, lambda: network.outputs(x)[:10].ravel().tolist()

    def run() -> None:
        for _ in range(work.repeats):
            costs, rows = [], place.random.permutation(len(x))
            for start in range(0, len(x), work.batch_size):
                batch = rows[start : start + work.batch_size]
                costs.append(network.step(xp.asarray(x[batch]), xp.asarray(y[batch])))
            float(xp.stack(costs).mean())

    def losses() -> list[float]:
        own = _Network(xp, work)
        batch = [xp.asarray(part) for part in data(work, work.batch_size)]
        return [float(own.step(*batch)) for _ in range(steps)]

    return run, losses


class _Network:
    """A perceptron, its weights and the velocities of its weights."""

    def __init__(self, xp: Any, work: Workload) -> None:
        self._xp, self._work = xp, work
        given = [xp.asarray(weight) for weight in weights(work)]
        self._weights = given
        self._biases = [xp.zeros(weight.shape[1], xp.float32) for weight in given]
        self._velocities = [xp.zeros_like(p) for p in (*self._weights, *self._biases)]

    def outputs(self, x: Any) -> Any:
        """Return the last layer's outputs."""
        return self._forward(x)[-1]

    def step(self, x: Any, y: Any) -> Any:
        """Train on a batch, and return its cost."""
        h = self._forward(x)
        cost, grad = (self._binary if self._work.task == "binary" else self._classes)(h[-1], y)
        of_weights, of_biases = [], []
        for i in reversed(range(len(self._weights))):
            of_weights.insert(0, h[i].T @ grad)
            of_biases.insert(0, grad.sum(axis=0))
            if i:
                grad = (grad @ self._weights[i].T) * (h[i] > 0)
        self._update([*of_weights, *of_biases])
        return cost

    def _forward(self, x: Any) -> list[Any]:
        h = [x]
        for weight, bias in zip(self._weights[:-1], self._biases[:-1], strict=True):
            h.append(self._xp.maximum(h[-1] @ weight + bias, 0))
        return [*h, h[-1] @ self._weights[-1] + self._biases[-1]]

    def _classes(self, z: Any, y: Any) -> tuple[Any, Any]:
        """Return softmax's cross-entropy, and its gradient."""
        xp, rows = self._xp, self._xp.arange(len(z))
        z = z - z.max(axis=1, keepdims=True)
        powers = xp.exp(z)
        sums = powers.sum(axis=1, keepdims=True)
        cost = (xp.log(sums[:, 0]) - z[rows, y]).mean()
        grad = powers / sums
        grad[rows, y] -= 1
        return cost, grad / len(z)

    def _binary(self, z: Any, y: Any) -> tuple[Any, Any]:
        """Return the sigmoid's binary cross-entropy, and its gradient."""
        xp, y = self._xp, y.astype(z.dtype)[:, None]
        cost = (xp.logaddexp(z, xp.zeros_like(z)) - y * z).mean()
        return cost, (1 / (1 + xp.exp(-z)) - y) / len(z)

    def _update(self, grads: list[Any]) -> None:
        rate, momentum = self._work.learning_rate, self._work.momentum
        parameters = (*self._weights, *self._biases)
        for p, v, g in zip(parameters, self._velocities, grads, strict=True):
            # In place, on what the lists hold.
            if momentum:
                v[...] = momentum * v - rate * g
                p[...] += v
            else:
                p[...] -= rate * g


def version(device: str = "cpu") -> str:
    """Return the versions that matter."""
    library = LIBRARIES[device]
    return f"{library} {importlib.import_module(library).__version__}, by hand"
