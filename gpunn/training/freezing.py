"""Training part of a model: which parameters an optimizer holds, and which are frozen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

from gpunn.errors import GradientError, SettingError
from gpunn.kernels import kernels
from gpunn.nn.containers import Residual, Sequential
from gpunn.nn.dense import Dense
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Held, Parameter
from gpunn.nn.tree import children
from gpunn.optim.base import Optimizer

#: Containers that stop the backward pass when a layer returns None, as no gradient is needed.
_STOP_AT_NONE = (Sequential, Residual, Dense)


class Part:
    """The part of a model that an optimizer trains.

    Parameters
    ----------
    model : Layer
    optimizer : Optimizer

    Attributes
    ----------
    model : weakref to Layer
        The whole model.
    wanted : frozenset of Parameter or None
        The parameters whose gradients the tape computes; None means all.
    frozen : list of Parameter
        The parameters of the model that the optimizer does not hold.
    held : list of Parameter or Buffer
        All parameters and buffers of the model.
    owners : list or None
        The layers that wrote on the tape in the last `train_step`; they reveal added or removed
        layers.
    input_grad : bool
        Whether the gradient of the model's input is computed: a layer that writes nothing on the
        tape may need it.
    """

    __slots__ = ("frozen", "held", "input_grad", "model", "owners", "wanted")

    def __init__(self, model: Layer, optimizer: Optimizer) -> None:
        self.model = ref(model)
        self.owners: list[Any] | None = None
        self.input_grad = False
        trained = frozenset(optimizer.parameters)
        parameters = model.parameters()
        self.held: list[Held] = [*parameters, *model.buffers()]
        self.frozen = [parameter for parameter in parameters if parameter not in trained]
        if parameters and len(self.frozen) == len(parameters):
            kind = type(optimizer).__name__
            raise SettingError(
                "the optimizer holds none of the model's parameters; build it on them, "
                f"{kind}(model.parameters())"
            )
        # A user's own container may not accept None from its layers: compute all gradients then.
        partial = self.frozen and all(map(_stops_at_none, _layers(model)))
        self.wanted = trained if partial else None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Return a context that restores the frozen parameters' gradients at its end."""
        kept: list[Any] = []
        try:
            for parameter in self.frozen:
                kept.append(parameter.set_aside())  # noqa: PERF401 (after an interrupt, `kept` is complete)
            yield
        finally:
            for parameter, state in zip(self.frozen, kept, strict=False):
                parameter.put_back(state)

    def check_grads(self, optimizer: Optimizer) -> None:
        """Check that each layer on the tape gave its trained parameters a gradient."""
        trained = set(optimizer.parameters)
        for owner in self.owners or ():
            for name, value in vars(owner).items() if isinstance(owner, Layer) else ():
                if isinstance(value, Parameter) and value in trained and value.grad is None:
                    raise GradientError(
                        f"{owner!r}: backward left {name}.grad unset, so it would never be "
                        f"trained; call self.{name}.add_grad(...), or build the optimizer "
                        "without it"
                    )


def part_of(model: Layer, optimizer: Optimizer) -> Part:
    """Return the part of the model that the optimizer trains; store it on the optimizer.

    Every training loop, including a handwritten one, starts here, so this also prepares the memory.
    """
    optimizer.part = part = Part(model, optimizer)
    kernels(optimizer.parameters[0].value).keep_memory()
    return part


def _stops_at_none(layer: Layer) -> bool:
    return type(layer) in _STOP_AT_NONE or next(_layers(layer, {id(layer)}), None) is None


def _layers(value: Any, seen: set[int] | None = None) -> Iterator[Layer]:
    """Yield all layers in a value, each once."""
    seen = set() if seen is None else seen
    if isinstance(value, Layer) and id(value) not in seen:
        yield value
    seen.add(id(value))
    for _, item in children(value):
        if isinstance(item, (Layer, list, tuple, dict)) and id(item) not in seen:
            yield from _layers(item, seen)
