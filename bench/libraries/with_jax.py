"""JAX on the CPU, with the whole step compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from workloads import Workload, data, weights


def prepare(work: Workload, steps: int) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    x, y = (jnp.asarray(np.asarray(part)) for part in data(work))
    state = _start(work)
    if work.predict:
        predict = jax.jit(partial(_forward, work))

        def run_predict() -> None:
            for _ in range(work.repeats):
                predict(state[0], x).block_until_ready()

        return run_predict, lambda: predict(state[0], x)[:10].ravel().tolist()

    step = jax.jit(partial(_step, work), donate_argnums=0)
    rng = np.random.default_rng(0)
    held = [state]

    def run() -> None:
        for _ in range(work.repeats):
            order = rng.permutation(len(x))
            costs = []
            for start in range(0, len(x), work.batch_size):
                batch = order[start : start + work.batch_size]
                held[0], cost = step(held[0], x, y, batch)
                costs.append(cost)
            float(jnp.stack(costs).mean())

    def losses() -> list[float]:
        own = _start(work)
        first = data(work, work.batch_size)
        rows = np.arange(work.batch_size)
        found = []
        for _ in range(steps):
            own, cost = step(own, *first, rows)
            found.append(float(cost))
        return found

    return run, losses


def _start(work: Workload) -> tuple[Any, Any]:
    params = [(jnp.asarray(w), jnp.zeros(w.shape[1])) for w in weights(work)]
    return params, jax.tree.map(jnp.zeros_like, params)


def _forward(work: Workload, params: Any, x: jax.Array) -> jax.Array:
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[work.activation]
    for weight, bias in params[:-1]:
        x = activation(x @ weight + bias)
    weight, bias = params[-1]
    return x @ weight + bias


def _cost(work: Workload, params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
    out = _forward(work, params, x)
    if work.task == "classes":
        logs = jax.nn.log_softmax(out)
        return -jnp.take_along_axis(logs, y[:, None], axis=1).mean()
    if work.task == "binary":
        return (jax.nn.softplus(out[:, 0]) - y * out[:, 0]).mean()
    return 0.5 * ((out[:, 0] - y) ** 2).mean()


def _step(
    work: Workload, state: tuple[Any, Any], x: jax.Array, y: jax.Array, batch: jax.Array
) -> tuple[tuple[Any, Any], jax.Array]:
    params, velocities = state
    cost, grads = jax.value_and_grad(partial(_cost, work))(params, x[batch], y[batch])
    velocities = jax.tree.map(
        lambda v, g: work.momentum * v - work.learning_rate * g, velocities, grads
    )
    return (jax.tree.map(jnp.add, params, velocities), velocities), cost


def version() -> str:
    """Return the versions that matter."""
    return f"JAX {jax.__version__}"
