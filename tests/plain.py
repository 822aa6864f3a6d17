"""Each kernel in plain NumPy, which the others are compared with."""

from __future__ import annotations

from typing import Any

import array_api_compat.numpy as xp64
import numpy as np

import gpunn as gn
from gpunn.kernels.random import splitmix64
from gpunn.kernels.update import Update
from gpunn.optim.gradient_sum import GradientSum
from tests.norm_calls import PlainNorms
from tests.plain_losses import one_hot, plain_loss
from tests.sequence_calls import PlainSequences
from tests.window_calls import PlainWindows


class Plain(PlainNorms, PlainSequences, PlainWindows):
    """Each kernel, as plain as can be, in float64."""

    def product(self, x: Any, y: Any) -> Any:
        return x @ y

    def convert(self, x: Any, dtype: Any) -> Any:
        return x.astype(dtype)

    def stack(self, arrays: Any) -> Any:
        return np.stack(arrays)

    def total(self, x: Any) -> Any:
        return x.sum()

    def copy_to_blocks(self, arrays: Any) -> Any:
        return None, arrays

    def activation(self, x: Any, formula: Any) -> Any:
        return formula.function(xp64, x)

    def bias_activation(self, z: Any, bias: Any, formula: Any) -> Any:
        z = z if bias is None else z + bias
        h = formula.function(xp64, z)
        return h, h if formula.saves_output else z

    def activation_backward(self, grad: Any, saved: Any, formula: Any) -> Any:
        return formula.gradient(xp64, grad, saved)

    def bias_activation_backward(self, grad: Any, saved: Any, formula: Any) -> Any:
        grad = formula.gradient(xp64, grad, saved)
        return grad, grad.sum(axis=0)

    def column_sums(self, x: Any) -> Any:
        return x.sum(axis=0)

    def dropout(self, x: Any, key: int, rate: float) -> Any:
        kept = splitmix64(np, key, x.size, None) / 2.0**64 >= rate
        mask = np.where(kept, 1 / (1 - rate), 0.0).reshape(x.shape)
        return x * mask, mask

    def one_hot(self, labels: Any, like: Any) -> Any:
        return one_hot(labels, like)

    def add(self, x: Any, y: Any) -> Any:
        return x + y

    def multiply(self, x: Any, y: Any) -> Any:
        return x * y

    def accumulate(self, total: Any, x: Any) -> None:
        total[...] = total + x

    def reshape(self, x: Any, shape: Any) -> Any:
        return x.reshape(shape)

    def class_mass(self, target: Any, class_weight: Any) -> Any:
        if target.ndim == 2:
            return (target * class_weight).sum(axis=1)
        last = len(class_weight) - 1
        return np.array([class_weight[min(max(label, 0), last)] for label in target.tolist()])

    def count_labels(self, labels: Any, ignored: int, like: Any) -> Any:
        counts = [sum(label != ignored for label in row) for row in labels.tolist()]
        return np.array(counts, like.dtype).reshape(len(labels))

    def total_mass(self, weight: Any, mass: Any) -> Any:
        return sum(
            (1 if weight is None else weight[i]) * (1 if mass is None else mass[i])
            for i in range(len(mass if weight is None else weight))
        ) + np.float64(0)

    def mean_scale(self, weight: Any, mass: Any) -> Any:
        return (1.0 if weight is None else weight) / (self.total_mass(weight, mass) or 1.0)

    def loss(self, formula: Any, prediction: Any, target: Any, scale: Any, summed: bool) -> Any:
        return plain_loss(formula, prediction, target, scale, summed)

    def sum_of_squares(self, arrays: Any) -> Any:
        return sum((x**2).sum() for x in arrays)

    def gradient_norm(self, grads: Any) -> Any:
        return np.linalg.norm(np.concatenate([grad.ravel() for grad in grads]))

    def _regularised(self, update: Update) -> Any:
        values, grads, _, decays = update.slots
        if limit := update.clip_value:
            grads = [np.clip(grad, -limit, limit) for grad in grads]
        if limit := update.clip_norm:
            norm = self.gradient_norm(grads)
            grads = [grad * (min(norm, limit) / norm if norm else 1.0) for grad in grads]
        decays = [update.decay_factor * decay for decay in decays]
        lists = list(zip(values, grads, decays, strict=True))
        if not update.decoupled:
            return [grad + decay * value for value, grad, decay in lists]
        for value, _, decay in lists:
            value[...] = value - decay * value
        return grads

    def update(self, rule: Any, update: Update) -> None:
        steps = {
            gn.SGD: self._descend,
            gn.Adam: self._descend_by_moments,
            GradientSum: self._add_up,
        }
        step = steps.get(type(rule), self._descend_by_squares)
        for i, g in enumerate(self._regularised(update)):
            states = [state[i] for state in update.slots.states]
            step(rule, update.slots.values[i], g, states, update.step_size)

    def _descend(self, rule: Any, value: Any, grad: Any, states: Any, step_size: float) -> None:
        step = -step_size * grad
        if states:
            states[0][...] = rule.momentum * states[0] + step
            step = rule.momentum * states[0] + step if rule.nesterov else states[0]
        value[...] = value + step

    def _descend_by_moments(
        self, rule: Any, value: Any, g: Any, states: Any, step_size: float
    ) -> None:
        m, v = states
        m[...] = rule.beta_1 * m + (1 - rule.beta_1) * g
        v[...] = rule.beta_2 * v + (1 - rule.beta_2) * g**2
        value[...] = value - step_size * m / (v**0.5 + rule.epsilon)

    def _add_up(self, rule: Any, value: Any, g: Any, states: Any, step_size: float) -> None:
        states[0][...] = states[0] + step_size * g

    def _descend_by_squares(
        self, rule: Any, value: Any, g: Any, states: Any, step_size: float
    ) -> None:
        kept, new = (rule.beta, 1 - rule.beta) if type(rule) is gn.RMSprop else (1, 1)
        states[0][...] = kept * states[0] + new * g**2
        step = g / (states[0] ** 0.5 + rule.epsilon)
        if len(states) > 1:
            states[1][...] = step = rule.momentum * states[1] + step
        value[...] = value - step_size * step

    def clip(self, x: Any, lowest: float, highest: float) -> Any:
        return np.clip(x, lowest, highest)

    def gather(self, arrays: Any, indices: Any) -> Any:
        return [
            np.stack([x[i] for i in indices.tolist()]) if len(indices) else x[:0] for x in arrays
        ]
