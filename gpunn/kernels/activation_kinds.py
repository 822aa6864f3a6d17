"""The table of elementwise activations that compiled code implements.

To add one, write its formula in `gpunn/nn/activation*.py`, add its row here, and write the loops
(`loops.py` or `loops_activation.py`) and the CUDA functions (`cuda/activation.cu`).
"""

from __future__ import annotations

from typing import NamedTuple


class Kind(NamedTuple):
    """An activation in compiled code.

    Attributes
    ----------
    code : int
        Its number in the loops.
    parameter : str or None
        The attribute of its class that is passed to the loops and the CUDA functions.
    cuda : str
        The name of its functions in activation.cu, if it differs from the kernel's.
    """

    code: int
    parameter: str | None = None
    cuda: str = ""


#: By kernel name. For the first three, the gradient and its column sums are one pass.
KINDS: dict[str, Kind] = {
    "relu": Kind(0),
    "tanh": Kind(1, cuda="tanh_"),
    "sigmoid": Kind(2),
    "identity": Kind(3),
    "leaky_relu": Kind(4, "negative_slope"),
    "elu": Kind(5, "alpha"),
    "silu": Kind(6),
    "gelu": Kind(7, "approximate"),  # on the CPU, the tanh form is "gelu_tanh"
    "softplus": Kind(9),
    "selu": Kind(10),
    "celu": Kind(11, "alpha"),
    "mish": Kind(12),
    "softsign": Kind(13),
    "log_sigmoid": Kind(14),
    "hardtanh": Kind(15, "limit"),
    "relu6": Kind(16),
    "hardsigmoid": Kind(17),
    "hardswish": Kind(18),
    "softshrink": Kind(19, "limit"),
}
