"""The exponential moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from gpunn._typing import Array, Namespace
from gpunn.arrays.backend import scope_of
from gpunn.arrays.checks import number, whole_number
from gpunn.arrays.memory import copy_of
from gpunn.arrays.settings import checked
from gpunn.arrays.state import check_arrays, check_names, write_arrays
from gpunn.errors import SettingError
from gpunn.kernels import kernels
from gpunn.kernels.declared import Declaration, declare
from gpunn.kernels.update import Slots, Update
from gpunn.optim.base import Optimizer


class WeightAverage:
    r"""The exponential moving average of an optimizer's weights, which often generalises better.

    After step t, with the sum s, which starts at 0, and the average :math:`\bar\theta`,

    .. math::

        s \leftarrow d s + (1 - d) \theta, \qquad
        \bar\theta = \frac{s}{1 - d^t}
        = \frac{\sum_{i=1}^t d^{t-i} \theta_i}{\sum_{i=1}^t d^{t-i}}.

    From now on the average follows every step of the optimizer, in `train_step`, in a loop of your
    own, and in recorded steps. A `Trainer` trains the weights, but uses their average to validate,
    evaluate, predict and keep the best weights. Elsewhere, use ``with average.applied(): ...``, or
    ``average.apply()`` once training is over.

    Parameters
    ----------
    optimizer : Optimizer
        The optimizer whose weights to average; it keeps the sums beside its states. Its parameters'
        values may move to other arrays: read ``parameter.value`` again.
    decay : float, default 0.999
        d, in [0, 1): about :math:`1 / (1 - d)` updates count. A new value may be assigned after
        `restart`.

    Notes
    -----
    Buffers, such as the statistics of `BatchNorm`, are not averaged: the model's own are used.
    Loading or assigning weights does not change the average: call `restart` afterwards. To save the
    average: ``with average.applied(): gn.save(path, model)``.
    PyTorch's `AveragedModel` with `get_ema_multi_avg_fn` begins with the weights of the first
    update, :math:`d^{t-1} \theta_1 + \dots`, which count for a long time; so does Keras's average.
    Here all weights count by their age from the start, so the average is useful after a few
    updates.

    References
    ----------
    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on
    Control and Optimization 30, 1992. Kingma and Ba, "Adam: a method for stochastic optimization",
    ICLR 2015, section 7.2 (the average with bias correction).

    Examples
    --------
    >>> import gpunn as gn
    >>> model = gn.Dense(2, 1, rng=0)
    >>> optimizer = gn.AdamW(model.parameters())
    >>> average = gn.WeightAverage(optimizer, decay=0.99)
    >>> average.updates
    0
    """

    kernel = "average"
    _declared: Declaration
    decay: float = checked(number, "[0, 1)")

    def __init__(self, optimizer: Optimizer, decay: float = 0.999) -> None:
        if not isinstance(optimizer, Optimizer):
            raise SettingError(
                f"WeightAverage: expected an optimizer, got {type(optimizer).__name__}; "
                "call WeightAverage(optimizer), since an average follows its steps"
            )
        if optimizer.average is not None:
            raise SettingError(
                "WeightAverage: the optimizer already has an average: see optimizer.average"
            )
        self.decay = decay
        self._optimizer, self._start = optimizer, optimizer.steps
        optimizer.keep_average(self)

    @property
    def updates(self) -> int:
        """The number t of steps that the average has followed."""
        return self._optimizer.steps - self._start

    def update(
        self,
        xp: Namespace,  # noqa: ARG002
        value: Array,
        grad: Array,
        states: list[Array],  # noqa: ARG002
        step_size: float,
    ) -> None:
        """Move a sum, `value`, towards the weight, `grad`: s += (1 - d)(theta - s).

        In this form an average is an update rule, and can use the kernels of updates.
        """
        value += step_size * (grad - value)

    def follow(self, slots: Slots) -> None:
        """Move the sums, given as values, towards the weights, given as gradients."""
        update = Update(slots, 1.0 - self.decay, None, None)
        kernels(slots.values[0]).update(self, update)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the weights are their average; its exit restores them.

        Do not train in it. It keeps a copy of the weights. Before the first update it has no
        effect.
        """
        values = [parameter.value for parameter in self._optimizer.parameters]
        kept = [copy_of(value) for value in values] if self.updates else []
        try:
            self.apply()
            yield
        finally:
            if kept:
                _write(values, kept)

    def apply(self) -> None:
        """Replace the weights, in place, by their average; no effect before the first update."""
        if not self.updates:
            return
        scale = 1.0 / (1.0 - self.decay**self.updates)
        optimizer = self._optimizer
        values = [parameter.value for parameter in optimizer.parameters]
        _write(values, optimizer.averages(), scale)

    def restart(self) -> None:
        """Forget all updates so far."""
        self._optimizer.clear_averages()
        self._start = self._optimizer.steps

    def state_dict(self) -> dict[str, Any]:
        """Return the decay, the number of updates and the sums; part of the optimizer's state."""
        return {"decay": self.decay, "updates": self.updates, "sums": self._named_sums()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state, after the optimizer's own: updates are counted from its steps."""
        check_names("WeightAverage", state, ("decay", "updates", "sums"))
        check_arrays("WeightAverage", state["sums"], self._named_sums())
        updates = whole_number("WeightAverage", "updates", state["updates"], 0)
        self.decay = state["decay"]
        self._start = self._optimizer.steps - updates
        write_arrays(state["sums"], self._named_sums())

    def _named_sums(self) -> dict[str, Array]:
        return {str(i): x for i, x in enumerate(self._optimizer.averages())}

    def __repr__(self) -> str:
        """Return the decay."""
        return f"WeightAverage({type(self._optimizer).__name__}(...), decay={self.decay!r})"


WeightAverage._declared = declare(WeightAverage, ("update", "follow"))


def averaged(optimizer: Optimizer) -> AbstractContextManager[None]:
    """Return a context in which the weights are their average, if the optimizer has one."""
    average: WeightAverage | None = optimizer.average
    return nullcontext() if average is None else average.applied()


def _write(values: list[Array], others: list[Array], scale: Any = None) -> None:
    """Overwrite values with arrays, times a scale if given."""
    for value, other in zip(values, others, strict=True):
        with scope_of(value):
            value[...] = other if scale is None else scale * other
