"""Normalisation within each sample: layer norm, RMS norm and group norm."""

from __future__ import annotations

import math
from typing import ClassVar

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, get_backend
from gpunn.arrays.capacity import room_for
from gpunn.arrays.checks import float_dtype, number, whole_number
from gpunn.arrays.settings import checked
from gpunn.errors import SettingError
from gpunn.kernels import kernels
from gpunn.kernels.norm import RowNorm
from gpunn.nn.channels import check_channels
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Parameter
from gpunn.nn.tape import Tape


class Norm(Layer):
    """The base of all norms: a gain and a bias per channel; channels are the last axis.

    Weight decay applies to neither.
    """

    _has_bias: ClassVar[bool] = True

    epsilon: float = checked(number, "(0, inf)")

    def __init__(
        self, channels: int, epsilon: float, dtype: str, backend: str | Backend | None
    ) -> None:
        self.epsilon = epsilon
        place, dtype = get_backend(backend), float_dtype(repr(self), dtype)
        with room_for(repr(self), place, (channels,)):
            gain = place.full((channels,), 1.0, dtype)
            bias = place.full((channels,), 0.0, dtype) if self._has_bias else None
        self.gain = Parameter(gain, decay=False)
        self.bias = None if bias is None else Parameter(bias, decay=False)

    @property
    def in_features(self) -> int:
        """The number of channels of the input."""
        channels: int = self.gain.value.shape[0]
        return channels

    def _wanted_parameters(self, tape: Tape) -> list[Parameter]:
        """Return the parameters whose gradients are computed: none, the gain, or both."""
        both = [self.gain] if self.bias is None else [self.gain, self.bias]
        return both if any(map(tape.wants, both)) else []

    @staticmethod
    def _add_gradients(tape: Tape, parameters: list[Parameter], grads: list[Array]) -> None:
        for parameter, grad in zip(parameters, grads, strict=True):
            if tape.wants(parameter):
                parameter.add_grad(grad)


class _RowNorm(Norm):
    """A norm over each sample, or each position of a sample, separately."""

    def _norm(self, x: Array) -> RowNorm:
        raise NotImplementedError

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return y."""
        check_channels(self, x, self.gain.value, self.in_features)
        bias = None if self.bias is None else self.bias.value
        norm = self._norm(x)
        y, statistics = kernels(x).row_norm(x, self.gain.value, bias, norm)
        if tape is not None:
            tape.push(self, x, statistics, norm)
        return y

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx; add to the gradients of gain and bias, if the tape wants them."""
        x, statistics, norm = tape.pop(self)
        parameters, through = self._wanted_parameters(tape), tape.wants_grad
        into = [p.grad_buffer if tape.wants(p) else None for p in parameters]
        grad_x, grads = kernels(grad).row_norm_backward(
            grad, x, statistics, self.gain.value, norm, into, through=through
        )
        self._add_gradients(tape, parameters, grads)
        return grad_x


class _FeatureNorm(_RowNorm):
    """The base of the norms over the features of each position of each sample."""

    _centred: ClassVar[bool] = True

    def __init__(
        self,
        features: int,
        epsilon: float = 1e-5,
        *,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        self.features = whole_number(type(self).__name__, "features", features)
        super().__init__(self.features, epsilon, dtype, backend)

    def _norm(self, x: Array) -> RowNorm:  # noqa: ARG002 (the same for all x)
        return RowNorm(1, 1, centred=self._centred, epsilon=self.epsilon)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"{type(self).__name__}({self.features}{_shown(self.epsilon)})"


class LayerNorm(_FeatureNorm):
    r"""Normalise each position of each sample over its C features.

    .. math:: y = \gamma \hat x + \beta, \quad \hat x = (x - \mu) s,
              \quad s = 1 / \sqrt{\sigma^2 + \epsilon},

    with the mean :math:`\mu` and the population variance :math:`\sigma^2` (divisor C) of the C
    entries. With :math:`g = \gamma\, \partial J / \partial y` and means over the same entries,

    .. math:: \partial J/\partial x = s\,(g - \overline{g} - \hat x\, \overline{g \hat x}), \quad
              \partial J/\partial \gamma = \textstyle\sum \hat x\, \partial J/\partial y, \quad
              \partial J/\partial \beta = \textstyle\sum \partial J/\partial y.

    Parameters
    ----------
    features : int
        C, at least 1.
    epsilon : float, default 1e-5
        Above 0.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters, and so of the input.
    backend : str, Backend or None, default None
        The library and device of the parameters, as for `get_backend`.

    Attributes
    ----------
    gain : Parameter
        gamma (C,), at first 1; weight decay does not apply to it.
    bias : Parameter
        beta (C,), at first 0; likewise.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.

    Notes
    -----
    *Shapes*: x and y (N, ..., C), with any number of axes between; N may be 0.
    *Saves*: x, not a copy, and two numbers for each position.

    References
    ----------
    Ba, Kiros and Hinton, "Layer normalization", arXiv:1607.06450, 2016.
    """

    records = True


class RMSNorm(_FeatureNorm):
    r"""Scale each position of each sample by the root of the mean square of its C features.

    .. math:: y = \gamma \hat x, \quad \hat x = x s,
              \quad s = 1 / \sqrt{\overline{x^2} + \epsilon}.

    With :math:`g = \gamma\, \partial J / \partial y`,

    .. math:: \partial J/\partial x = s\,(g - \hat x\, \overline{g \hat x}), \quad
              \partial J/\partial \gamma = \textstyle\sum \hat x\, \partial J/\partial y.

    Parameters
    ----------
    features : int
        C, at least 1.
    epsilon : float, default 1e-5
        Above 0. PyTorch's default is the dtype's machine epsilon.
    dtype : {"float32", "float64"}, default "float32"
        Of the gain, and so of the input.
    backend : str, Backend or None, default None
        The library and device of the gain, as for `get_backend`.

    Attributes
    ----------
    gain : Parameter
        gamma (C,), at first 1; weight decay does not apply to it.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.

    Notes
    -----
    *Shapes*: x and y (N, ..., C), with any number of axes between; N may be 0.
    *Saves*: x, not a copy, and two numbers for each position.

    References
    ----------
    Zhang and Sennrich, "Root mean square layer normalization", NeurIPS 2019.
    """

    records = True
    _has_bias: ClassVar[bool] = False
    _centred: ClassVar[bool] = False


class GroupNorm(_RowNorm):
    r"""Normalise each sample over its positions and a group of its channels at a time.

    The formulas are those of `LayerNorm`, with the mean and the population variance of all
    positions and C/G neighbouring channels of a sample. One group is layer norm over the whole
    sample, and as many groups as channels are instance norm.

    Parameters
    ----------
    groups : int
        G, a divisor of the number of channels.
    channels : int
        C, at least 1.
    epsilon : float, default 1e-5
        Above 0.
    dtype : {"float32", "float64"}, default "float32"
        Of the parameters, and so of the input.
    backend : str, Backend or None, default None
        The library and device of the parameters, as for `get_backend`.

    Attributes
    ----------
    gain : Parameter
        gamma (C,), at first 1; weight decay does not apply to it.
    bias : Parameter
        beta (C,), at first 0; likewise.

    Raises
    ------
    SettingError
        If `groups` does not divide `channels`.
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit.

    Notes
    -----
    *Shapes*: x and y (N, ..., C), with any number of axes between; N may be 0.
    *Saves*: x, not a copy, and two numbers for each group of each sample.

    References
    ----------
    Wu and He, "Group normalization", ECCV 2018.
    """

    records = True

    def __init__(
        self,
        groups: int,
        channels: int,
        epsilon: float = 1e-5,
        *,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        name = type(self).__name__
        self.groups = whole_number(name, "groups", groups)
        self.channels = whole_number(name, "channels", channels)
        if self.channels % self.groups:
            raise SettingError(
                f"{name}: groups must divide the {self.channels} channels, got {self.groups}"
            )
        super().__init__(self.channels, epsilon, dtype, backend)

    def _norm(self, x: Array) -> RowNorm:
        positions = math.prod(x.shape[1:-1]) or 1
        return RowNorm(positions, self.groups, centred=True, epsilon=self.epsilon)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        return f"{type(self).__name__}({self.groups}, {self.channels}{_shown(self.epsilon)})"


def _shown(epsilon: float) -> str:
    """Return the setting for `repr`; empty if it is the default."""
    return "" if epsilon == 1e-5 else f", epsilon={epsilon}"
