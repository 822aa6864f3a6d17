"""JAX: the whole step compiled, or as "scan" the whole epoch.

Data, an epoch's order and the place in it are on the device, and the costs are added up there, so
that a call for each step sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from workloads import Workload, data, filters, weights

#: What JAX calls the precisions of products.
PRECISIONS = {"float32": "highest", "tf32": "TF32_TF32_F32", "bfloat16": "BF16_BF16_F32"}
BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8


class State(NamedTuple):
    """What a step changes."""

    params: Any
    #: The velocities if there is momentum, or Adam's moments.
    slots: tuple[Any, ...]
    n_updates: jax.Array
    key: jax.Array


def serves(work: Workload, variant: str) -> bool:
    """Return whether this variant can run the workload: predictions have no epochs."""
    if work.block or work.batch_norm:
        return False
    return not (variant and (work.predict or work.source == "host"))


def prepare(
    work: Workload, steps: int, variant: str = "", device: str = "cpu"
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    jax.config.update("jax_default_matmul_precision", PRECISIONS[work.products])
    x, y = map(np.asarray, data(work))
    if work.source != "host":
        x, y = jnp.asarray(x), jnp.asarray(y)
    state = _start(work)
    if work.predict:
        predict = jax.jit(partial(_forward, work))

        def run_predict() -> None:
            for _ in range(work.repeats):
                out = predict(state.params, x)
                if device == "cpu":  # as all others on a CPU, whose calls return results
                    out.block_until_ready()
            out.block_until_ready()

        return run_predict, lambda: predict(state.params, x)[:10].ravel().tolist()

    make_epoch = _scanned if variant else _streamed if work.source == "host" else _step_by_step
    epoch = make_epoch(work, len(x))
    rng = np.random.default_rng(0)
    held = [state]

    def run() -> None:
        for _ in range(work.repeats):
            held[0], cost = epoch(held[0], x, y, rng.permutation(len(x)))
            float(cost)

    def losses() -> list[float]:
        plain = work._replace(dropout=0.0)
        own, step = _start(plain), jax.jit(partial(_step, plain))
        first = [jnp.asarray(part) for part in data(work, work.batch_size)]
        found = []
        for _ in range(steps):
            own, cost = step(own, *first)
            found.append(float(cost))
        return found

    return run, losses


def _step_by_step(work: Workload, n: int) -> Callable[..., tuple[State, jax.Array]]:
    """Return a function for an epoch that calls a compiled step for each batch."""

    @partial(jax.jit, donate_argnums=0, static_argnums=4)
    def step(carry: Any, x: jax.Array, y: jax.Array, order: jax.Array, size: int) -> Any:
        state, at, total = carry
        rows = jax.lax.dynamic_slice_in_dim(order, at, size)
        state, cost = _step(work, state, x[rows], y[rows])
        return state, at + size, total + cost

    sizes = [min(work.batch_size, n - start) for start in range(0, n, work.batch_size)]

    def epoch(state: State, x: Any, y: Any, order: np.ndarray) -> tuple[State, jax.Array]:
        carry, order = (state, jnp.zeros((), jnp.int32), jnp.zeros(())), jnp.asarray(order)
        for size in sizes:
            carry = step(carry, x, y, order, size)
        return carry[0], carry[2] / len(sizes)

    return epoch


def _streamed(work: Workload, n: int) -> Callable[..., tuple[State, jax.Array]]:
    """Return a function for an epoch that sends each batch, and calls a compiled step for it."""
    step = jax.jit(partial(_step, work), donate_argnums=0)

    def epoch(state: State, x: Any, y: Any, order: np.ndarray) -> tuple[State, jax.Array]:
        total, starts = jnp.zeros(()), range(0, n, work.batch_size)
        for start in starts:
            rows = order[start : start + work.batch_size]
            state, cost = step(state, *jax.device_put((x[rows], y[rows])))
            total += cost
        return state, total / len(starts)

    return epoch


def _scanned(work: Workload, n: int) -> Callable[..., tuple[State, jax.Array]]:
    """Return a compiled function for an epoch: a scan over full batches, a step for the rest."""
    n_full, rest = divmod(n, work.batch_size)

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: State, x: Any, y: Any, order: Any) -> tuple[State, jax.Array]:
        batches = order[: n - rest].reshape(n_full, work.batch_size)
        state, costs = jax.lax.scan(
            lambda s, rows: _step(work, s, x[rows], y[rows]), state, batches
        )
        if rest:
            rows = order[n - rest :]
            state, cost = _step(work, state, x[rows], y[rows])
            costs = jnp.append(costs, cost)
        return state, costs.mean()

    return epoch


def _start(work: Workload) -> State:
    given = [*filters(work), *weights(work)]
    params = [(jnp.asarray(w), jnp.zeros(w.shape[-1])) for w in given]
    n_slots = 2 if work.optimizer == "adam" else 1 if work.momentum else 0
    slots = tuple(jax.tree.map(jnp.zeros_like, params) for _ in range(n_slots))
    # The cheapest generator that JAX has on a CPU.
    return State(params, slots, jnp.zeros((), jnp.int32), jax.random.key(0, impl="unsafe_rbg"))


def _forward(work: Workload, params: Any, x: jax.Array, key: jax.Array | None = None) -> jax.Array:
    activation = {"relu": jax.nn.relu, "tanh": jnp.tanh}[work.activation]
    *hidden, (weight, bias) = params
    for w, b in hidden[: len(work.convolutions)]:
        x = _pooled(jax.nn.relu(_convolved(x, w) + b))
    hidden = hidden[len(work.convolutions) :]
    x = x.reshape(len(x), -1)
    if work.blocks:
        (w, b), *inner = hidden
        x = activation(x @ w + b)
        for (w, b), (w_2, b_2) in zip(inner[::2], inner[1::2], strict=True):
            x += activation(x @ w + b) @ w_2 + b_2
    else:
        for w, b in hidden:
            x = activation(x @ w + b)
            if work.dropout and key is not None:
                kept = jax.random.bernoulli(key, 1 - work.dropout, x.shape)
                x = jnp.where(kept, x / (1 - work.dropout), 0)
    return x @ weight + bias


def _convolved(x: jax.Array, w: jax.Array) -> jax.Array:
    order = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=order)


def _pooled(x: jax.Array) -> jax.Array:
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, window, "VALID")


def _cost(work: Workload, params: Any, x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
    out = _forward(work, params, x, key)
    if work.task == "classes":
        logs = jax.nn.log_softmax(out)
        losses = -jnp.take_along_axis(logs, y[:, None], axis=1)[:, 0]
        if work.class_weight is None:
            return losses.mean()
        weight = jnp.asarray(work.class_weight)[y]
        return (weight * losses).sum() / weight.sum()
    if work.task == "binary":
        return (jax.nn.softplus(out[:, 0]) - y * out[:, 0]).mean()
    return 0.5 * ((out[:, 0] - y) ** 2).mean()


def _step(work: Workload, state: State, x: jax.Array, y: jax.Array) -> tuple[State, jax.Array]:
    key, own = jax.random.split(state.key) if work.dropout else (state.key, state.key)
    cost, grads = jax.value_and_grad(partial(_cost, work))(state.params, x, y, own)
    if work.clip_norm is not None:
        squares = sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads))
        shrink = work.clip_norm / jnp.maximum(jnp.sqrt(squares), work.clip_norm)
        grads = jax.tree.map(lambda g: shrink * g, grads)
    n_updates = state.n_updates + 1
    update = _adam if work.optimizer == "adam" else _sgd
    params, slots = update(work, state.params, grads, state.slots, n_updates)
    return State(params, slots, n_updates, key), cost


def _sgd(work: Workload, params: Any, grads: Any, slots: Any, _: jax.Array) -> tuple[Any, Any]:
    if not slots:
        return jax.tree.map(lambda p, g: p - work.learning_rate * g, params, grads), slots
    (velocities,) = slots
    velocities = jax.tree.map(
        lambda v, g: work.momentum * v - work.learning_rate * g, velocities, grads
    )
    return jax.tree.map(jnp.add, params, velocities), (velocities,)


def _adam(work: Workload, params: Any, grads: Any, slots: Any, t: jax.Array) -> tuple[Any, Any]:
    first, second = slots
    first = jax.tree.map(lambda m, g: BETA_1 * m + (1 - BETA_1) * g, first, grads)
    second = jax.tree.map(lambda v, g: BETA_2 * v + (1 - BETA_2) * g * g, second, grads)
    rate = work.learning_rate * jnp.sqrt(1 - BETA_2**t) / (1 - BETA_1**t)
    params = jax.tree.map(
        lambda p, m, v: p - rate * m / (jnp.sqrt(v) + EPSILON), params, first, second
    )
    return params, (first, second)


def version(device: str = "cpu") -> str:
    """Return the versions that matter."""
    if jax.default_backend() != device:
        raise RuntimeError(f"JAX {jax.__version__} runs on {jax.default_backend()} here")
    return f"JAX {jax.__version__}"
