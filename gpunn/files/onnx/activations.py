"""The ONNX operators of each activation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gpunn.nn import activation as plain
from gpunn.nn import activation_hard as hard
from gpunn.nn import activation_smooth as smooth

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpunn.files.onnx.graph import Graph

#: Activations that are one operator without settings.
SIMPLE: dict[type[plain.Activation], str] = {
    plain.Sigmoid: "Sigmoid",
    plain.Tanh: "Tanh",
    plain.ReLU: "Relu",
    plain.Softplus: "Softplus",
    smooth.SELU: "Selu",
    smooth.Mish: "Mish",
    smooth.Softsign: "Softsign",
    hard.Hardswish: "HardSwish",
}

#: Activations that are one operator, with the function that returns its attributes.
WITH_SETTINGS: dict[type[plain.Activation], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    plain.LeakyReLU: ("LeakyRelu", lambda f: {"alpha": f.negative_slope}),
    plain.ELU: ("Elu", lambda f: {"alpha": f.alpha}),
    plain.GELU: ("Gelu", lambda f: {"approximate": "tanh" if f.approximate else "none"}),
    plain.Softmax: ("Softmax", lambda _: {"axis": -1}),
    plain.LogSoftmax: ("LogSoftmax", lambda _: {"axis": -1}),
    smooth.CELU: ("Celu", lambda f: {"alpha": f.alpha}),
    hard.Hardsigmoid: ("HardSigmoid", lambda _: {"alpha": 1.0 / 6.0, "beta": 0.5}),
    hard.Softshrink: ("Shrink", lambda f: {"lambd": f.limit, "bias": f.limit}),
}


def _clip(graph: Graph, name: str, lowest: float, highest: float) -> str:
    return graph.node("Clip", name, graph.constant(lowest), graph.constant(highest))


def _log_sigmoid(graph: Graph, name: str) -> str:
    return graph.node("Neg", graph.node("Softplus", graph.node("Neg", name)))


#: Activations that need several operators or constants.
COMPOSED: dict[type[plain.Activation], Callable[[Graph, str, Any], str]] = {
    plain.Identity: lambda _, name, __: name,
    plain.SiLU: lambda graph, name, _: graph.node("Mul", name, graph.node("Sigmoid", name)),
    smooth.LogSigmoid: lambda graph, name, _: _log_sigmoid(graph, name),
    hard.Hardtanh: lambda graph, name, f: _clip(graph, name, -f.limit, f.limit),
    hard.ReLU6: lambda graph, name, _: _clip(graph, name, 0.0, 6.0),
}


def write_activation(graph: Graph, name: str, activation: plain.Activation) -> str | None:
    """Add an activation's operators; return the output's name, or None if ONNX lacks it."""
    kind = type(activation)
    if kind in SIMPLE:
        return graph.node(SIMPLE[kind], name)
    if kind in WITH_SETTINGS:
        operator, settings = WITH_SETTINGS[kind]
        return graph.node(operator, name, **settings(activation))
    return COMPOSED[kind](graph, name, activation) if kind in COMPOSED else None
