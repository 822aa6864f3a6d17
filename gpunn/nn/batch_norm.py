"""Normalisation over the batch."""

from __future__ import annotations

import math

from gpunn._typing import Array
from gpunn.arrays.backend import Backend, backend_of
from gpunn.arrays.checks import number, whole_number
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.settings import checked
from gpunn.errors import ShapeError
from gpunn.kernels import kernels
from gpunn.nn.channels import check_channels
from gpunn.nn.norm import Norm
from gpunn.nn.parameter import Buffer
from gpunn.nn.tape import Tape


class BatchNorm(Norm):
    r"""Normalise each of C channels over the batch, and over all positions of its samples.

    .. math:: y = \gamma \hat x + \beta, \quad \hat x = (x - \mu) s,
              \quad s = 1 / \sqrt{\sigma^2 + \epsilon},

    with the mean :math:`\mu` and the population variance :math:`\sigma^2` (divisor n) of the n
    entries of a channel. With :math:`g = \gamma\, \partial J / \partial y` and means over the same
    entries,

    .. math:: \partial J/\partial x = s\,(g - \overline{g} - \hat x\, \overline{g \hat x}), \quad
              \partial J/\partial \gamma = \textstyle\sum \hat x\, \partial J/\partial y, \quad
              \partial J/\partial \beta = \textstyle\sum \partial J/\partial y.

    In training, running statistics follow those of the batches:
    :math:`r \leftarrow (1 - m)\, r + m\, s` with momentum m, where s is the mean, or the variance
    with divisor n - 1. Without a tape, or if its `training` is False, they replace :math:`\mu` and
    :math:`\sigma^2`, which then do not depend on x.

    With several processes, the batch is each process's part, or the whole batch if
    `synchronise_batch_norm` of `gpunn.DataParallel` is set.

    Parameters
    ----------
    features : int
        C, at least 1.
    momentum : float, default 0.1
        m, in [0, 1], as in PyTorch: the share of the new batch. Keras calls 1 - m momentum.
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
    running_mean, running_variance : Buffer
        (C,), at first 0 and 1. They are saved with the model, and are not trained.

    Raises
    ------
    ShapeError, DTypeError, DeviceError
        By `forward`, if `x` does not fit; in training, also if a channel has a single entry, which
        has no meaningful variance.

    Notes
    -----
    A forward pass does not change the running statistics, but stages the new ones on the tape;
    `train_step` and `Trainer` commit them after the update. In a loop of your own, call
    ``tape.commit()`` after ``optimizer.step()``. They follow the batches even if gain and bias are
    frozen.

    *Shapes*: x and y (N, ..., C), with any number of axes between. N may be 0; then the running
    statistics are used.
    *Saves*: x, not a copy, and three numbers for each channel.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal
    covariate shift", ICML 2015.
    """

    records = True

    momentum: float = checked(number, "[0, 1]")

    def __init__(
        self,
        features: int,
        momentum: float = 0.1,
        epsilon: float = 1e-5,
        *,
        dtype: str = "float32",
        backend: str | Backend | None = None,
    ) -> None:
        self.features = whole_number(type(self).__name__, "features", features)
        self.momentum = momentum
        super().__init__(self.features, epsilon, dtype, backend)
        place = backend_of(self.gain.value)
        assert place is not None  # noqa: S101 (parameters hold arrays)
        dtype = dtype_name(self.gain.value)
        self.running_mean = Buffer(place.full((self.features,), 0.0, dtype))
        self.running_variance = Buffer(place.full((self.features,), 1.0, dtype))

    def forward(self, x: Array, tape: Tape | None = None) -> Array:
        """Return y, by the statistics of the batch if the tape is for training."""
        check_channels(self, x, self.gain.value, self.features)
        assert self.bias is not None  # noqa: S101 (`Norm` creates it)
        if tape is not None and tape.training and tape.joint is not None:
            return self._forward_jointly(x, tape)
        k, gain, bias = kernels(x), self.gain.value, self.bias.value
        n = math.prod(x.shape[:-1])
        if tape is None or not tape.training or not n:
            running = self.running_mean.value, self.running_variance.value
            y, statistics = k.fixed_norm(x, gain, bias, running, self.epsilon)
            if tape is not None:
                tape.push(self, x, statistics, True, None)  # noqa: FBT003 (the tape takes values)
            return y
        if n == 1:
            raise ShapeError(
                f"{self!r}: expected more than one entry per channel in training, got x of "
                f"shape {tuple(x.shape)}; drop a last batch of one sample with "
                "Loader(..., drop_last=True), or avoid it with another batch_size"
            )
        y, statistics = k.batch_norm(x, gain, bias, self.epsilon)
        tape.push(self, x, statistics, False, None)  # noqa: FBT003
        tape.stage(self, statistics)
        return y

    def backward(self, grad: Array, tape: Tape) -> Array | None:
        """Return dJ/dx; add to the gradients of gain and bias, if the tape wants them."""
        x, statistics, fixed, total = tape.pop(self)
        if total is not None:
            return self._backward_jointly(grad, x, statistics, total, tape)
        parameters, through = self._wanted_parameters(tape), tape.wants_grad
        into = [p.grad_buffer if tape.wants(p) else None for p in parameters]
        grad_x, grads = kernels(grad).batch_norm_backward(
            grad, x, statistics, self.gain.value, into, fixed=fixed, through=through
        )
        self._add_gradients(tape, parameters, grads)
        return grad_x

    def _forward_jointly(self, x: Array, tape: Tape) -> Array:
        """Return y by the statistics of a batch that is split over several processes."""
        assert self.bias is not None  # noqa: S101 (`Norm` creates it)
        k, gain, bias = kernels(x), self.gain.value, self.bias.value
        mean, variance, total = tape.joint.moments(x)
        unbiased = k.convert(variance * (total / (total - 1)), x.dtype)
        mean, variance = k.convert(mean, x.dtype), k.convert(variance, x.dtype)
        y, statistics = k.fixed_norm(x, gain, bias, (mean, variance), self.epsilon)
        tape.push(self, x, statistics, False, total)  # noqa: FBT003
        tape.stage(self, k.xp.stack([mean, mean, unbiased]))
        return y

    def _backward_jointly(
        self, grad: Array, x: Array, statistics: Array, total: Array, tape: Tape
    ) -> Array | None:
        """Return dJ/dx, and add this process's part of the gradients of gain and bias."""
        assert self.bias is not None  # noqa: S101
        k, gain, through = kernels(grad), self.gain.value, tape.wants_grad
        parameters = [self.gain, self.bias]
        into = [p.grad_buffer if tape.wants(p) else None for p in parameters]
        _, sums = k.batch_norm_backward(grad, x, statistics, gain, into, fixed=True, through=False)
        grad_x = None
        if through:
            means = tape.joint.means(sums, total)
            grad_x = k.joint_norm_backward(grad, x, statistics, gain, means)
        self._add_gradients(tape, parameters, sums)
        return grad_x

    def commit(self, statistics: Array) -> None:
        """Move the running statistics towards those of a batch; see `Tape.commit`."""
        running = self.running_mean.value, self.running_variance.value
        kernels(statistics).track(running, statistics, self.momentum)

    def __repr__(self) -> str:
        """Return the expression that creates this layer."""
        settings = {"momentum": (self.momentum, 0.1), "epsilon": (self.epsilon, 1e-5)}
        shown = "".join(f", {k}={v}" for k, (v, default) in settings.items() if v != default)
        return f"{type(self).__name__}({self.features}{shown})"
