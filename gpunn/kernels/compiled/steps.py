"""Steps of a perceptron, many of them in one compiled call: each a whole of backpropagation.

The readable twin is `gpunn.step.learn` over `Dense` layers; `bench/estimators.py` and
`bench/peers.py` show what this gains. On several threads all of them run `run_steps`, side by
side. Of each batch a thread takes a share of the rows, from gathering them to the gradients G with
respect to the layers' sums; and when all threads have come so far, a share of each layer's
weights: the rows of :math:`X^T G` that belong to some inputs, and their update.

Arrays are known by where they begin: a function that took them as such would pass some seventy
numbers to the next one, and take several times as long to compile.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpunn._typing import Array
from gpunn.kernels.compiled import loops
from gpunn.kernels.compiled.blas import ROOM, matrix, product, transpose
from gpunn.kernels.compiled.native import array_at, compiled, count_up, inlined, itemsize, read

#: Losses.
SOFTMAX, BINARY, SQUARED = range(3)

#: A layer: its sizes, its activation, whether it has a bias and what decays; and where arrays
#: begin. `..._state_1` and `..._state_2` are what an optimizer keeps beside a value; where it keeps
#: less, the value itself: somewhere that may be read, though nothing comes of it.
LAYER = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("inputs", "outputs", "activation", "has_bias", "weight_decays", "bias_decays"),
            *("weight", "weight_grad", "weight_state_1", "weight_state_2"),
            *("bias", "bias_state_1", "bias_state_2"),
            *("output", "grad"),
        )
    ]
)

#: All else that the steps of a call go by. Arrays are of the weights' dtype if nothing else is
#: said; the address of one that does not apply is 0.
#:
#: Data, of `n_samples` and `features`: `x` (n_samples, features); `labels` (n_samples,), of int64,
#: or `target` (n_samples, K); `weight` (n_samples,); `order`, the rows in the order of their turns,
#: of int64.
#:
#: Turns: from `start` to `stop`, `batch_size` in each of `steps`. For each step the learning rate
#: `rates` and weight decay `decays`, of float64.
#:
#: Written, of float64: `costs` and `penalties` (steps, threads), each thread's part of J and of
#: half the decay times the sum of squares; `totals` (steps,), the sum of a batch's weights. And
#: `made`, one int64, the number of steps made.
#:
#: Room: a batch's `own_x`, `own_labels`, `own_target`, `own_weight`; `upstream` (batch, widest),
#: the gradient with respect to the output of a layer, of which the `widest` has so many; `sums`
#: (threads, layers, widest), each thread's part of the biases' gradients; `outputs` (turns, K), the
#: network's, if they are wanted; `products`, room for those of each thread; `meeting`, two of
#: int64: how many threads have come to a meeting so far, and whether they are to wait no longer.
#:
#: The rule: which `loss`; its `mean` or the sum; `adam` or SGD, whose momentum is `beta_1`.
PLAN = np.dtype(
    [
        (name, np.int64)
        for name in (
            *("n_samples", "features", "widest"),
            *("x", "labels", "target", "weight", "order"),
            *("start", "stop", "batch_size", "steps", "rates", "decays"),
            *("costs", "penalties", "totals", "made"),
            *("own_x", "own_labels", "own_target", "own_weight"),
            *("upstream", "sums", "outputs", "products", "meeting"),
            *("loss", "mean", "adam", "nesterov"),
        )
    ]
    + [(name, np.float64) for name in ("beta_1", "beta_2", "epsilon")]
)


class Share(NamedTuple):
    """What a thread has of a step: the rows `first` to `last` of the batch's `n`.

    Attributes
    ----------
    thread, threads : int
        Which of how many.
    step : int
    start : int
        The turn of the batch's first row.
    n, first, last : int
    """

    thread: int
    threads: int
    step: int
    start: int
    n: int
    first: int
    last: int


@compiled
def run_steps(thread: int, threads: int, plans: Array, layers: Array, one: Any) -> None:
    """Run the steps, as one of `threads` that all do.

    Parameters
    ----------
    thread, threads : int
        Which of how many.
    plans : array of PLAN (1,)
    layers : array of LAYER
    one : float32 or float64
        1, in the dtype of the weights.
    """
    plan = plans[0]
    costs = _floats(plan.costs, plan.steps * threads)
    penalties = _floats(plan.penalties, plan.steps * threads)
    meetings = 0
    for step in range(plan.steps):
        start = plan.start + step * plan.batch_size
        n = min(plan.batch_size, plan.stop - start)
        first, last = n * thread // threads, n * (thread + 1) // threads
        share = Share(thread, threads, step, start, n, first, last)
        _gather(share, plan, layers, one)
        outputs = _forward(share, plan, layers, one)
        costs[step * threads + thread] = _lose(share, plan, layers, outputs, one)
        _backward(share, plan, layers, outputs, one)
        meetings += threads
        if not _meet(plan.meeting, meetings, threads):
            return
        penalties[step * threads + thread] = _update(share, plan, layers, one)
        meetings += threads
        if not _meet(plan.meeting, meetings, threads):
            return
        _integers(plan.made, 1)[0] = step + 1  # each thread writes the same


@compiled
def _integers(place: int, n: int) -> Array:
    """Return the integers at an address."""
    return array_at(place, (n,), np.int64(0))


@compiled
def _floats(place: int, n: int) -> Array:
    """Return the numbers of double precision at an address."""
    return array_at(place, (n,), np.float64(0))


@compiled
def _meet(meeting: int, wanted: int, threads: int) -> bool:
    """Wait until `wanted` have come, all counted from the start; return False if there is no use.

    A thread that waits keeps its processor: the wait is short, and a sleep would take longer.
    """
    if threads == 1:
        return True
    count_up(meeting)
    while read(meeting) < wanted:
        if read(meeting + 8) != 0:
            return False
    return True


@inlined
def _rows(share: Share, plan: Any) -> Array:
    """Return the rows of the batch, if there is an order, else an empty array."""
    n = share.n if plan.order else 0
    return _integers(plan.order + 8 * share.start, n)


@inlined
def _gather(share: Share, plan: Any, layers: Array, one: Any) -> None:
    """Copy the thread's rows of the batch."""
    rows = _rows(share, plan)
    classes = layers[-1].outputs
    for i in range(share.first, share.last):
        row = rows[i] if rows.size else share.start + i
        if rows.size:
            _copy(plan.x, row, plan.own_x, i, plan.features, one)
        if plan.labels:
            labels = _integers(plan.labels, plan.n_samples)
            _integers(plan.own_labels, share.n)[i] = labels[row]
        if plan.target:
            _copy(plan.target, row, plan.own_target, i, classes, one)
        if plan.weight:
            _copy(plan.weight, row, plan.own_weight, i, 1, one)


@compiled
def _copy(source: int, row: int, target: int, own: int, columns: int, one: Any) -> None:
    """Copy a row of a matrix into another one."""
    given = array_at(source, (row + 1, columns), one)
    taken = array_at(target, (own + 1, columns), one)
    for j in range(columns):
        taken[own, j] = given[row, j]


@inlined
def _batch(share: Share, plan: Any, one: Any) -> int:
    """Return where the batch's features begin: without an order, among the data."""
    if plan.order:
        return plan.own_x
    return plan.x + share.start * plan.features * itemsize(one)


@inlined
def _forward(share: Share, plan: Any, layers: Array, one: Any) -> int:
    """Compute h = f(x W + b) of each layer for the thread's rows; return where the last begins."""
    rows = share.last - share.first
    x = _batch(share, plan, one) + share.first * plan.features * itemsize(one)
    for i in range(layers.size):
        layer = layers[i]
        inputs, outputs = layer.inputs, layer.outputs
        h = layer.output + share.first * outputs * itemsize(one)
        if i == layers.size - 1 and plan.outputs:
            turn = share.start - plan.start + share.first
            h = plan.outputs + turn * outputs * itemsize(one)
        a, b, c = matrix(x, inputs), matrix(layer.weight, outputs), matrix(h, outputs)
        product((rows, outputs, inputs), a, b, c, _room(share, plan), one)
        z = array_at(h, (rows, outputs), one)
        loops.add_bias(z, array_at(layer.bias, (outputs,), one), layer.activation == loops.RELU)
        loops.activate(layer.activation, array_at(h, (rows * outputs,), one))
        x = h
    return x


@inlined
def _room(share: Share, plan: Any) -> int:
    """Return the thread's room for products."""
    return plan.products + ROOM * share.thread


@inlined
def _upstream(share: Share, plan: Any, one: Any) -> int:
    """Return where the thread's gradients with respect to a layer's output begin."""
    return plan.upstream + share.first * plan.widest * itemsize(one)


@inlined
def _lose(share: Share, plan: Any, layers: Array, outputs: int, one: Any) -> float:
    """Write the gradient with respect to the thread's outputs; return its part of J."""
    upstream, size, classes = _upstream(share, plan, one), itemsize(one), layers[-1].outputs
    scale = _scale(share, plan, one)
    if not plan.weight:
        return _cost(plan, share.first, share.last, outputs, upstream, classes, scale, one)
    weight = array_at(plan.own_weight, (share.n,), one)
    cost = 0.0
    for i in range(share.first, share.last):
        skipped = (i - share.first) * classes * size
        own = scale * weight[i]
        cost += _cost(plan, i, i + 1, outputs + skipped, upstream + skipped, classes, own, one)
    return cost


@inlined
def _scale(share: Share, plan: Any, one: Any) -> float:
    """Return what multiplies each loss, but for its weight; put down the sum of the weights."""
    total = 0.0
    if plan.weight:
        rows = _rows(share, plan)
        weight = array_at(plan.weight, (plan.n_samples,), one)
        for i in range(share.n):
            total += weight[rows[i] if rows.size else share.start + i]
        _floats(plan.totals, plan.steps)[share.step] = total  # each thread writes the same
        total = total if total != 0.0 else 1.0  # no weight at all: 0 / 1, not 0 / 0
    else:
        total = float(share.n)
    return 1.0 / total if plan.mean else 1.0


@compiled
def _cost(
    plan: Any,
    first: int,
    last: int,
    outputs: int,
    upstream: int,
    classes: int,
    scale: float,
    one: Any,
) -> float:
    """Write the gradient of the losses of some rows times their scale, and return their sum."""
    rows = last - first
    if plan.loss == SOFTMAX:
        labels = _integers(plan.own_labels + 8 * first, rows)
        logits = array_at(outputs, (rows, classes), one)
        grad = array_at(upstream, (rows, classes), one)
        cost = loops.shift(logits, labels, grad)
        loops.exponentiate(array_at(upstream, (rows * classes,), one))
        return loops.softmax(grad, labels, scale, cost)
    prediction = array_at(outputs, (rows * classes,), one)
    target = array_at(plan.own_target + first * classes * itemsize(one), (rows * classes,), one)
    flat = array_at(upstream, (rows * classes,), one)
    if plan.loss == BINARY:
        return loops.binary_cross_entropy(prediction, target, scale, flat)
    return loops.squared_error(prediction, target, scale, flat)


@inlined
def _backward(share: Share, plan: Any, layers: Array, outputs: int, one: Any) -> None:
    """Write G = dJ/dh f'(z) of each layer, for the thread's rows, and the column sums of these.

    The layer below has dJ/dh = G W^T.
    """
    upstream = _upstream(share, plan, one)
    rows = share.last - share.first
    for i in range(layers.size - 1, -1, -1):
        layer = layers[i]
        shape = rows, layer.outputs
        skipped = share.first * layer.outputs * itemsize(one)
        h = outputs if i == layers.size - 1 else layer.output + skipped
        grad = layer.grad + skipped
        loops.times_slope_and_sums(
            layer.activation,
            array_at(upstream, shape, one),
            array_at(h, shape, one),
            array_at(grad, shape, one),
            _sums(plan, share.thread, layers.size, i, layer.outputs, one),
        )
        if i:
            inputs, own = layer.inputs, layer.outputs
            a, b, c = matrix(grad, own), matrix(layer.weight, own), matrix(upstream, inputs)
            product((rows, inputs, own), a, transpose(b), c, _room(share, plan), one)


@inlined
def _sums(plan: Any, thread: int, layers: int, layer: int, outputs: int, one: Any) -> Array:
    """Return the room for a thread's column sums of a layer's G."""
    row = thread * layers + layer
    return array_at(plan.sums + row * plan.widest * itemsize(one), (outputs,), one)


@inlined
def _update(share: Share, plan: Any, layers: Array, one: Any) -> float:
    """Compute the gradients X^T G of the thread's share of weights, and learn from them.

    Return half the weight decay times the sum of squares before that.
    """
    size = itemsize(one)
    thread, threads = share.thread, share.threads
    rate = _floats(plan.rates, plan.steps)[share.step]
    decay = _floats(plan.decays, plan.steps)[share.step]
    squares = 0.0
    x = _batch(share, plan, one)
    for i in range(layers.size):
        layer = layers[i]
        inputs, outputs = layer.inputs, layer.outputs
        first, last = inputs * thread // threads, inputs * (thread + 1) // threads
        own = first * outputs * size
        a, b = matrix(x + first * size, inputs), matrix(layer.grad, outputs)
        c = matrix(layer.weight_grad + own, outputs)
        shape = last - first, outputs, share.n
        product(shape, transpose(a), b, c, _room(share, plan), one)
        squares += _learn(
            (last - first) * outputs,
            layer.weight + own,
            layer.weight_grad + own,
            layer.weight_state_1 + own,
            layer.weight_state_2 + own,
            plan,
            rate,
            decay if layer.weight_decays else 0.0,
            one,
        )
        x = layer.output
        if layer.has_bias:
            first, last = outputs * thread // threads, outputs * (thread + 1) // threads
            own = first * size
            _add_up(plan, threads, layers.size, i, outputs, first, last, one)
            squares += _learn(
                last - first,
                layer.bias + own,
                plan.sums + (i * plan.widest + first) * size,
                layer.bias_state_1 + own,
                layer.bias_state_2 + own,
                plan,
                rate,
                decay if layer.bias_decays else 0.0,
                one,
            )
    return 0.5 * decay * squares


@inlined
def _add_up(
    plan: Any,
    threads: int,
    layers: int,
    layer: int,
    outputs: int,
    first: int,
    last: int,
    one: Any,
) -> None:
    """Add the column sums of all threads to those of the first, from `first` to `last`."""
    sums = _sums(plan, 0, layers, layer, outputs, one)
    for thread in range(1, threads):
        others = _sums(plan, thread, layers, layer, outputs, one)
        for j in range(first, last):
            sums[j] += others[j]


@compiled
def _learn(
    n: int,
    value: int,
    grad: int,
    state_1: int,
    state_2: int,
    plan: Any,
    rate: float,
    decay: float,
    one: Any,
) -> float:
    """Update n numbers at an address; return the sum of their squares before, if they decay."""
    values, grads = array_at(value, (n,), one), array_at(grad, (n,), one)
    first, second = array_at(state_1, (n,), one), array_at(state_2, (n,), one)
    squares = type(one)(0)
    if decay != 0.0:
        for i in range(n):
            squares += values[i] * values[i]
    if plan.adam:
        arrays = values, grads, first, second
        betas = plan.beta_1, plan.beta_2
        loops.descend_by_moments(*arrays, rate, *betas, plan.epsilon, decay, np.inf, 1.0)
    else:
        nesterov = plan.nesterov != 0
        loops.descend(values, grads, first, rate, plan.beta_1, nesterov, decay, np.inf, 1.0)
    return float(squares)
