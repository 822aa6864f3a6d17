"""The activation of each ONNX operator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gpunn.nn import activation as plain
from gpunn.nn import activation_hard as hard
from gpunn.nn import activation_smooth as smooth
from gpunn.nn.dropout import Dropout

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpunn.files.onnx.chain import Chain
    from gpunn.files.onnx.nodes import Node
    from gpunn.nn.layer import Layer


def _activation(make: Callable[[Node], Layer], inputs: int = 1) -> Callable[[Chain, Node], None]:
    def read(chain: Chain, node: Node) -> None:
        chain.check_inputs(node, inputs)
        chain.add(make(node), chain.shape)

    return read


def _over_last(make: Callable[[], Layer]) -> Callable[[Chain, Node], None]:
    def read(chain: Chain, node: Node) -> None:
        axis = node.take("axis", -1)
        if not chain.is_last(axis):
            raise node.refused(f"axis is {axis}, and only the channel axis can be read")
        chain.add(make(), chain.shape)

    return read


def _gelu(node: Node) -> Layer:
    how = node.take("approximate", "none")
    if how not in ("none", "tanh"):
        raise node.refused(f"approximate is {how!r:.99}")
    return plain.GELU(approximate=how == "tanh")


def _hard_sigmoid(node: Node) -> Layer:
    alpha, beta = node.take("alpha", 0.2), node.take("beta", 0.5)
    if np.float32(alpha) != np.float32(1 / 6) or beta != 0.5:
        raise node.refused(f"alpha and beta are {alpha} and {beta}, and gpunn has 1/6 and 1/2")
    return hard.Hardsigmoid()


def _softshrink(node: Node) -> Layer:
    limit, bias = node.take("lambd", 0.5), node.take("bias", 0.0)
    if limit != bias:
        raise node.refused(f"lambd and bias are {limit} and {bias}, and must be equal in gpunn")
    return hard.Softshrink(limit)


def _clip(chain: Chain, node: Node) -> None:
    chain.check_inputs(node, 3)
    lowest, highest = (float(chain.constant(node, i, 0)) for i in (1, 2))
    if (lowest, highest) == (0.0, 6.0):
        chain.add(hard.ReLU6(), chain.shape)
    elif -lowest == highest:
        chain.add(hard.Hardtanh(highest), chain.shape)
    else:
        raise node.refused(f"its limits are {lowest} and {highest}; gpunn has 0 and 6, or -l and l")


def _dropout(chain: Chain, node: Node) -> None:
    """Read dropout, which has no effect outside training."""
    chain.check_inputs(node, 2)
    node.take("seed", 0)
    rate = chain.constant(node, 1, 0) if len(node.inputs) > 1 else np.float32(0.5)
    chain.add(Dropout(float(rate)), chain.shape)


#: The function that reads each operator.
ACTIVATION_READERS: dict[str, Callable[[Chain, Node], None]] = {
    "Sigmoid": _activation(lambda _: plain.Sigmoid()),
    "Tanh": _activation(lambda _: plain.Tanh()),
    "Relu": _activation(lambda _: plain.ReLU()),
    "Softplus": _activation(lambda _: plain.Softplus()),
    "Mish": _activation(lambda _: smooth.Mish()),
    "Selu": _activation(lambda _: smooth.SELU()),
    "Softsign": _activation(lambda _: smooth.Softsign()),
    "HardSwish": _activation(lambda _: hard.Hardswish()),
    "LeakyRelu": _activation(lambda node: plain.LeakyReLU(node.take("alpha", 0.01))),
    "Elu": _activation(lambda node: plain.ELU(node.take("alpha", 1.0))),
    "Celu": _activation(lambda node: smooth.CELU(node.take("alpha", 1.0))),
    "Gelu": _activation(_gelu),
    "HardSigmoid": _activation(_hard_sigmoid),
    "Shrink": _activation(_softshrink),
    "Softmax": _over_last(plain.Softmax),
    "LogSoftmax": _over_last(plain.LogSoftmax),
    "Clip": _clip,
    "Dropout": _dropout,
}
