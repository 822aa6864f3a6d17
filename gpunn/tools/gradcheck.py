"""Check gradients against finite differences."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of, scope_of
from gpunn.arrays.capacity import memory_for
from gpunn.arrays.checks import number, shown, whole_number
from gpunn.arrays.exchange import named_numpy, to_numpy
from gpunn.arrays.facts import is_kind
from gpunn.errors import DTypeError, GradientError, SettingError
from gpunn.losses.base import Loss
from gpunn.nn.init import as_generator
from gpunn.nn.layer import Layer, as_instance
from gpunn.nn.tape import Tape
from gpunn.nn.tree import entrance

#: Entries far smaller than the largest of their array are compared relative to this share of it,
#: since finite differences are not more precise.
_FLOOR = 1e-3

#: The rounding error allowed for in a difference of J, in units in the last place of J.
_ROUNDINGS = 4.0


@dataclass(frozen=True)
class GradientReport:
    """The agreement of backward with finite differences.

    Attributes
    ----------
    error : float
        The largest relative error.
    worst : str
        The entry with that error, such as ``"layers.0.weight[3, 1]"``; ``"x[...]"`` is the input.
    backward, numeric : float
        The gradient of that entry by backward, and by finite differences.
    by_name : dict of str to float
        The largest relative error of each array.
    checked : int
        The number of entries compared.
    """

    error: float = 0.0
    worst: str = ""
    backward: float = 0.0
    numeric: float = 0.0
    by_name: dict[str, float] = field(default_factory=dict)
    checked: int = 0

    def __str__(self) -> str:
        """Return the worst entry, then one line per array."""
        where = (
            f" at {self.worst}: backward gives {self.backward:.10g}, "
            f"finite differences {self.numeric:.10g}"
            if self.worst
            else ""
        )
        worst = f"largest relative error {self.error:.2e}{where} ({self.checked} entries checked)"
        lines = [worst]
        lines += [f"  {name}: {error:.2e}" for name, error in self.by_name.items()]
        return "\n".join(lines)


def check_gradients(
    function: Layer | Loss,
    x: Any,
    target: Any = None,
    *,
    loss: Loss | None = None,
    sample_weight: Any = None,
    tolerance: float = 1e-6,
    step: float = 1e-5,
    max_entries: int = 100,
    rng: Any = 0,
) -> GradientReport:
    r"""Compare backward with central differences, in float64.

    Each entry :math:`\theta_i` of the input and of every parameter is checked against

    .. math:: \frac{J(\theta + s e_i) - J(\theta - s e_i)}{2 s}

    with relative error :math:`|a - n| / \max(|a|, |n|, 10^{-3} m)`, where m is the largest entry of
    the array's gradient; the rounding error of J, a few units in its last place divided by s, is
    allowed for. The check runs on a float64 copy of the model.

    Parameters
    ----------
    function : Layer or Loss
        A layer, a whole model, or a loss. For a layer without `loss`, J is the sum of the outputs
        with random weights.
    x : array
        The input of the layer, or the prediction passed to the loss. Integer inputs are not
        checked: they have no gradient.
    target : array, optional
        For a loss.
    loss : Loss, optional
        Applied to the output of a layer or model; J is then its value for `target`.
    sample_weight : array, optional
        For the loss.
    tolerance : float, default 1e-6
        The largest relative error that passes.
    step : float, default 1e-5
        s. Where the function has a kink within s of a value (ReLU at zero), a difference is to be
        expected.
    max_entries : int, default 100
        The largest number of entries checked in each array; drawn at random if it has more.
    rng : None, int or numpy.random.Generator, default 0
        For the weights, the entries and dropout.

    Returns
    -------
    GradientReport
        The worst entry by name, and the error of each array.

    Raises
    ------
    GradientError
        If an error is above `tolerance`; its message is the report.

    Examples
    --------
    >>> import numpy as np, gpunn as gn
    >>> report = gn.check_gradients(gn.Dense(3, 2, "tanh", rng=0), np.eye(3))
    >>> report.error < 1e-6
    True
    """
    name = "check_gradients"
    place = _check_arguments(name, function, x, target, loss)
    tolerance = number(name, "tolerance", tolerance, "[0, inf)")
    step = number(name, "step", step, "(0, inf)")
    max_entries = whole_number(name, "max_entries", max_entries)
    generator = as_generator(rng, name)
    with scope_of(x):
        check = _Check(function, loss, place, x, target, sample_weight, generator)
        report = check.report(step, max_entries)
    if not report.error <= tolerance:
        raise GradientError(f"check_gradients: {function!r}: {report}")
    return report


def _check_arguments(name: str, function: Any, x: Any, target: Any, loss: Any) -> Backend:
    """Check the arguments; return the backend of x."""
    if isinstance(function, type) and issubclass(function, (Layer, Loss)):
        raise SettingError(f"{name}: expected a layer or a loss, got {as_instance(function)}")
    if not isinstance(function, (Layer, Loss)):
        raise SettingError(f"{name}: expected a layer or a loss, got {shown(function)}")
    if not isinstance(loss, Loss | None):
        raise SettingError(f"{name}: loss must be a Loss or None, got {shown(loss)}")
    if (isinstance(function, Loss) or loss is not None) and target is None:
        raise SettingError(f"{name}: a loss needs a target")
    place = backend_of(x)
    if place is None:
        raise DTypeError(f"{name}: expected an array as x, got {type(x).__name__}")
    return place


def _numbers(name: str, place: Backend, x: Any, dtype: str | None = None) -> Array:
    """Return an argument as an array on the backend of x; floating-point becomes float64."""
    array = x if backend_of(x) is not None else named_numpy("check_gradients", name, x)
    home = backend_of(array)
    assert home is not None  # noqa: S101 (it is an array now)
    if not is_kind(home.xp, array.dtype, ("bool", "integral", "real floating")):
        raise DTypeError(f"check_gradients: {name} must hold real numbers, got {array.dtype}")
    if dtype is None and is_kind(home.xp, array.dtype, "real floating"):
        dtype = "float64"
    with memory_for(f"check_gradients, of {name}", place, "make it smaller"):
        return place.asarray(array, dtype)


class _Check:
    """The function under test: J as a function of named float64 arrays."""

    def __init__(  # noqa: PLR0917
        self,
        function: Layer | Loss,
        loss: Loss | None,
        place: Backend,
        x: Array,
        target: Array | None,
        sample_weight: Array | None,
        generator: Any,
    ) -> None:
        self.place, self.generator = place, generator
        self.layer = None
        if isinstance(function, Layer):
            self.layer = copy.deepcopy(function).to(place, dtype="float64")
        self.loss = function if isinstance(function, Loss) else loss
        #: Integers have no gradient.
        self.has_grad = not (self.layer is not None and entrance(self.layer).takes_integers)
        dtype = "float64" if self.has_grad else "int64"
        self.x = place.xp.asarray(_numbers("x", place, x, dtype), copy=True)
        self.seed = int(generator.integers(2**63))
        self.target = None if target is None else _numbers("target", place, target)
        self.weight = None
        if sample_weight is not None:
            self.weight = _numbers("sample_weight", place, sample_weight, "float64")
        self.cotangent: Array | None = None  # weights of the outputs in J

    def cost(self, tape: Tape | None = None) -> Array:
        """Return J, on a tape with the same seed each time, so that dropout is a fixed function."""
        tape = tape if tape is not None else Tape(rng=self.seed)
        output = self.x if self.layer is None else self.layer.forward(self.x, tape)
        if self.loss is not None:
            output = self.loss.forward(output, self.target, tape, self.weight)
        if output.ndim == 0:
            return output
        if self.cotangent is None:
            drawn = self.generator.uniform(0.5, 1.5, tuple(output.shape))
            self.cotangent = self.place.asarray(drawn, "float64")
        return self.place.xp.sum(output * self.cotangent)

    def backward(self) -> dict[str, Array]:
        """Return the gradients by name, as computed by backward."""
        tape = Tape(rng=self.seed)
        self.cost(tape)
        grad = self.cotangent
        if self.loss is not None:
            grad = self.loss.backward(tape, grad)
        grads = {}
        if self.layer is not None:
            grad = self.layer.backward(grad, tape)
            if grad is None and self.has_grad:
                raise GradientError(f"{self.layer!r}: backward returned no gradient of x")
            for name, parameter in self.layer.named_parameters().items():
                zeros = self.place.xp.zeros_like(parameter.value)
                grads[name] = zeros if parameter.grad is None else parameter.grad
        if len(tape):
            raise GradientError(f"backward left entries on the tape: {tape!r}")
        return {"x": grad, **grads} if self.has_grad else grads

    def values(self) -> dict[str, Array]:
        """Return the arrays by name, for changes in place."""
        held = {} if self.layer is None else self.layer.named_parameters()
        values = {name: parameter.value for name, parameter in held.items()}
        return {"x": self.x, **values} if self.has_grad else values

    def report(self, step: float, max_entries: int) -> GradientReport:
        """Compare all arrays."""
        grads = self.backward()
        worst, by_name, checked = GradientReport(), {}, 0
        noise = _ROUNDINGS * 2.0**-52 * abs(float(self.cost())) / step
        for name, value in self.values().items():
            grad = to_numpy(grads[name])
            if grad.shape != tuple(value.shape):
                raise GradientError(
                    f"backward gives the gradient of {name} the shape {grad.shape}, "
                    f"expected {tuple(value.shape)}"
                )
            entries = list(self._entries(grad.shape, max_entries))
            numeric = {i: self._difference(value, i, step) for i in entries}
            largest = max(
                (abs(n) for n in (*numeric.values(), *grad.ravel().tolist())), default=0.0
            )
            by_name[name] = 0.0
            for i, n in numeric.items():
                error = _relative(float(grad[i]), n, _FLOOR * largest, noise)
                by_name[name] = max(by_name[name], error)
                if error > worst.error:
                    where = f"{name}[{', '.join(map(str, i))}]"
                    worst = GradientReport(error, where, float(grad[i]), n)
            checked += len(entries)
        return GradientReport(
            worst.error, worst.worst, worst.backward, worst.numeric, by_name, checked
        )

    def _difference(self, value: Array, index: tuple[int, ...], step: float) -> float:
        """Return the central difference of J for one entry, which is restored bit for bit."""
        before = float(value[index])
        costs = []
        for moved in (before + step, before - step):
            value[index] = moved
            costs.append(float(self.cost()))
        value[index] = before
        return (costs[0] - costs[1]) / (2.0 * step)

    def _entries(self, shape: tuple[int, ...], most: int) -> Iterator[tuple[int, ...]]:
        size = math.prod(shape)
        chosen = range(size) if size <= most else self.generator.permutation(size)[:most].tolist()
        for flat in chosen:
            index = []
            for length in reversed(shape):
                flat, place = divmod(flat, length)  # noqa: PLW2901
                index.append(place)
            yield tuple(reversed(index))


def _relative(a: float, n: float, floor: float, noise: float) -> float:
    if not (math.isfinite(a) and math.isfinite(n)):
        return math.inf
    return max(0.0, abs(a - n) - noise) / max(abs(a), abs(n), floor, 1e-12)
