"""Data-parallel training: each process takes a part of every batch, and all make one update."""

from __future__ import annotations

from contextlib import suppress
from itertools import accumulate
from typing import Any
from zlib import crc32

import numpy as np

from gpunn._typing import Array
from gpunn.arrays.backend import backend_of, scope_of
from gpunn.arrays.checks import flag, whole_number
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.state import attributes_of
from gpunn.distributed.agreement import check_alike, versions
from gpunn.distributed.buckets import Buckets
from gpunn.distributed.communicator import Communicator
from gpunn.distributed.engines import get_communicator
from gpunn.distributed.joint import JointStatistics
from gpunn.errors import DistributedError, SettingError
from gpunn.kernels import kernels
from gpunn.nn.tape import Tape
from gpunn.optim.base import Optimizer
from gpunn.optim.state import ELSEWHERE


class DataParallel:
    r"""Let several processes train one model, each on its part of every batch.

    Rank r has the gradient :math:`g_r` of a mean that divides by :math:`W_r`: its number of
    samples, or the sum of their weights. The update takes

    .. math:: g = \frac{\sum_r W_r\, g_r}{\sum_r W_r},

    which is the gradient of one process that has all samples, however unequal the parts are.
    Gradients are clipped after that. All of them, and the sum of weights, are one array, which is
    summed over the ranks once for each update; those of a large network may be several, which are
    summed while the backward pass goes on (see `bucket_bytes`).

    From now on every step of the optimizer is one of all ranks, in `train_step`, in a `Trainer`,
    and in a loop of your own that calls `average`. On a single process nothing changes.

    Parameters
    ----------
    optimizer : Optimizer
        Built on every rank alike. The values of its parameters, and its states, become those of
        rank 0.
    communicator : Communicator, optional
        By default ``gn.get_communicator("auto")``.
    compress : bool, default False
        Whether gradients are sent as float16, in half of the bytes. A power of two, the same on all
        ranks, moves the largest to about 2^14; each entry then keeps 11 bits, and those below 2^-28
        of the largest are lost bit by bit. A step sends two numbers first.
    bucket_bytes : int or None, default None
        The least size of a part of the gradients that is summed by itself, as soon as the backward
        pass has completed it: the last layers first. What is smaller is summed at the end. A few
        million pay where sums go on without the processor, as NCCL's do; with MPI on the cores that
        compute, they do not. None: one sum, after the backward pass. So it is with `compress` and
        `synchronise_batch_norm`, too.
    synchronise_batch_norm : bool, default False
        Whether `gpunn.BatchNorm` normalises by the statistics of the whole batch, as one process
        does, in `train_step` and `Trainer`. That takes two sums over the ranks for each such layer
        in the forward pass, and one in the backward pass; steps are not recorded then.

    Attributes
    ----------
    communicator : Communicator

    Raises
    ------
    SettingError
        If `optimizer` is none, or is parallel already.
    DistributedError
        If the optimizers of the ranks differ.

    Notes
    -----
    *BatchNorm* normalises by the statistics of each rank's part of a batch, not by those of the
    whole batch, unless `synchronise_batch_norm` is set. In a loop of your own that calls `average`
    it is always each rank's part. Its running statistics are averaged over the ranks before they
    are used: for validation, in checkpoints, and at the end of an epoch.
    *Dropout* draws another mask on each rank.
    *Steps* are recorded: on NumPy the sum is one of their operations; on a GPU it comes between two
    graphs, that of the passes and that of the update.

    Examples
    --------
    >>> import gpunn as gn
    >>> communicator = gn.get_communicator()  # of `mpiexec -n 4 python train.py`
    >>> model = gn.Dense(3, 2, rng=0)
    >>> optimizer = gn.SGD(model.parameters())
    >>> parallel = gn.DataParallel(optimizer, communicator)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        communicator: Communicator | None = None,
        *,
        compress: bool = False,
        bucket_bytes: int | None = None,
        synchronise_batch_norm: bool = False,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise SettingError(
                f"DataParallel: expected an optimizer, got {type(optimizer).__name__}; say "
                "DataParallel(optimizer, communicator)"
            )
        if communicator is None:
            communicator = get_communicator()
        if not isinstance(communicator, Communicator):
            raise SettingError(
                "DataParallel: expected a communicator, such as gn.get_communicator(), got "
                f"{type(communicator).__name__}"
            )
        if optimizer.parallel is not None:
            raise SettingError("DataParallel: the optimizer is parallel: see optimizer.parallel")
        self.communicator = communicator
        self._compress = flag("DataParallel", "compress", compress)
        if bucket_bytes is not None:
            bucket_bytes = whole_number("DataParallel", "bucket_bytes", bucket_bytes)
        synchronise = flag("DataParallel", "synchronise_batch_norm", synchronise_batch_norm)
        self._joint = JointStatistics(communicator) if synchronise else None
        # A rank that fails and goes on with buckets does not take part in the sums of statistics.
        self._bucket_bytes = None if self._compress or synchronise else bucket_bytes
        self._kept_buckets: Buckets | None = None
        self._optimizer = optimizer
        self._messages: dict[tuple[str, str, int], Array] = {}
        #: The parameters, by number, that have a gradient on some rank; None before the first step.
        self._trained: list[int] | None = None
        self._averaged = False
        if communicator.size > 1:
            settings = {
                "compress": str(compress),
                "bucket_bytes": str(bucket_bytes),
                "synchronise_batch_norm": str(synchronise),
            }
            facts = _facts(optimizer) | settings
            check_alike("DataParallel", communicator, facts)
            slots = optimizer.blocks()
            for array in [*slots.values, *(x for kind in slots.states for x in kind)]:
                communicator.broadcast(array)
            optimizer.parallel = self

    def prepare(self, tape: Tape) -> None:
        """Let layers know which rank this is, and with whom statistics are shared."""
        tape.stream, tape.joint = self.communicator.rank, self._joint

    def average(self, weight: float | Array = 1.0) -> None:
        """Average the gradients over all ranks, for ``optimizer.step()``, which comes next.

        `train_step` and `Trainer` do it themselves.

        Parameters
        ----------
        weight : float or array, default 1.0
            W, what this rank's gradient counts for: its number of samples, or the sum of their
            weights; 0-d on the device.
        """
        if self.communicator.size > 1:
            self.sum(weight, scale=weight)

    def sum(self, total: Any, scale: Any = None) -> None:
        """Sum the gradients over all ranks, and divide them by the sum of the totals.

        Parameters
        ----------
        total : float, array or None
            What this rank's gradients count for; None leaves the sum as it is, without a division.
        scale : float or array, optional
            A factor of this rank's gradients.
        """
        optimizer, buckets = self._optimizer, self.buckets()
        present = [i for i, each in enumerate(optimizer.parameters) if each.grad is not None]
        if buckets is not None:
            buckets.start_all(scale, in_place=False)
        trained = self._agreed(present)
        if unknown := set(present).difference(trained):
            raise self._another_step(min(unknown))
        in_buckets = () if buckets is None else buckets.members
        others = (i for i in range(len(optimizer.parameters)) if i not in in_buckets)
        optimizer.gather_grads(others)
        self._exchange(buckets, total, scale)
        optimizer.take_grads(trained)
        self._averaged = True

    def sum_in_place(self, total: float | None, present: list[int]) -> None:
        """Do so for gradients that a recorded step has left in their places, means by `total`.

        Parameters
        ----------
        total : float or None
        present : list of int
            The parameters that have a gradient.
        """
        buckets = self.buckets()
        if buckets is not None:
            buckets.start_all(total, in_place=True)
        if difference := set(present) ^ set(self._agreed(present)):
            raise self._another_step(min(difference))
        self._exchange(buckets, total, total)

    def buckets(self) -> Buckets | None:
        """Return the parts of the gradients that are summed by themselves; None if none are."""
        if self._bucket_bytes is None:
            return None
        if self._kept_buckets is None or not self._kept_buckets.fit():
            self._kept_buckets = Buckets(self._optimizer, self.communicator, self._bucket_bytes)
        return self._kept_buckets if self._kept_buckets.all else None

    def open(self) -> None:
        """Begin a backward pass, at the end of which all gradients are complete; `sum` comes next.

        If it fails, `abandon` does.
        """
        buckets = self.buckets()
        if buckets is not None:
            buckets.open()

    def abandon(self) -> None:
        """Take part in the sums of a step that has failed here, so that it fails on all ranks.

        The others have started sums, or will. They get what is no number, and raise.
        """
        buckets = self._kept_buckets
        if buckets is None or not buckets.under_way:
            return
        try:
            with suppress(Exception):  # the error that has brought us here says more
                buckets.start_failed()
                self._exchange(buckets, float("nan"), float("nan"))
        finally:
            buckets.forget()

    def _exchange(self, buckets: Buckets | None, total: Any, scale: Any) -> None:
        """Sum the gradients, in buckets that have been started and in what is left, and divide."""
        grads = self._optimizer.blocks().grads if buckets is None else buckets.rest
        if buckets is not None:
            buckets.wait()
        for name, members in _by_dtype(grads).items():
            with scope_of(members[0]):
                message = self._message(name, members)
                parts = list(zip(_parts(message, members), members, strict=True))
                xp = kernels(message).xp  # NumPy's or CuPy's: they have `out`
                for part, grad in parts:
                    xp.multiply(grad, 1.0 if scale is None else scale, out=part)
                message[-1] = 0.0 if total is None else total
                self._send(message)
                if buckets is not None:
                    self._check_sum(message[-1])
                    parts += [(x, x) for x in buckets.arrays() if x.dtype == message.dtype]
                divisor = message[-1:]
                divisor += xp.astype(divisor == 0, message.dtype)
                for part, grad in parts:
                    xp.divide(part, 1.0 if total is None else divisor, out=grad)

    def _check_sum(self, total: Any) -> None:
        """Refuse a step that another rank has abandoned; on a device, all becomes NaN."""
        if isinstance(total, np.floating) and np.isnan(total):
            raise DistributedError(
                f"rank {self.communicator.rank} of {self.communicator.size}: another rank has "
                "failed in the backward pass of this step, and says why"
            )

    def _send(self, message: Array) -> None:
        """Sum gradients, and the number at their end, over the ranks; in 16 bits if it is said."""
        if not self._compress:
            self.communicator.allreduce(message)
            return
        xp = kernels(message).xp
        grads = message[:-1]
        numbers = xp.stack([xp.max(xp.abs(grads)), message[-1]])
        self.communicator.allreduce(numbers)
        bound = xp.clip(numbers[:1], 2.0**-100, None)  # no sum of any ranks is larger
        factor = xp.exp2(14.0 - xp.ceil(xp.log2(bound)))
        grads *= factor
        half = xp.astype(grads, xp.float16)
        self.communicator.allreduce(half)
        xp.divide(half, factor, out=grads)
        message[-1:] = numbers[1:]

    def check_averaged(self) -> None:
        """Refuse an update by the gradients of this rank alone.

        Raises
        ------
        SettingError
            If `average` was not called since the last update.
        """
        if not self._averaged:
            raise SettingError(
                f"{type(self._optimizer).__name__}.step: the gradients are those of rank "
                f"{self.communicator.rank} alone; call gn.train_step, or parallel.average(n) "
                "before the step, with n the number of its samples"
            )
        self._averaged = False

    def _agreed(self, present: list[int]) -> list[int]:
        """Return the parameters that have a gradient on some rank, as the first step found."""
        if self._trained is None:
            counts = np.zeros(len(self._optimizer.parameters), np.int64)
            counts[present] = 1
            self.communicator.allreduce(counts)
            self._trained = np.flatnonzero(counts).tolist()
        return self._trained

    def _another_step(self, i: int) -> SettingError:
        return SettingError(
            f"DataParallel: parameter {i} of the optimizer has a gradient in some steps and none "
            "in others; if the model has changed, build the optimizer and DataParallel anew"
        )

    def _message(self, name: str, members: list[Array]) -> Array:
        """Return an array for some blocks and one number, for all steps the same."""
        key = name, str(backend_of(members[0])), 1 + sum(member.size for member in members)
        if key not in self._messages:
            xp = kernels(members[0]).xp
            self._messages[key] = xp.empty(key[2], dtype=members[0].dtype)
        return self._messages[key]

    def __repr__(self) -> str:
        """Return the optimizer and the communicator."""
        return f"DataParallel({self._optimizer!r}, {self.communicator!r})"


def _by_dtype(arrays: list[Array]) -> dict[str, list[Array]]:
    groups: dict[str, list[Array]] = {}
    for array in arrays:
        groups.setdefault(dtype_name(array), []).append(array)
    return groups


def _parts(message: Array, members: list[Array]) -> list[Array]:
    """Return the places in a message for some blocks."""
    stops = list(accumulate(member.size for member in members))
    pairs = zip([0, *stops], stops, strict=False)
    return [message[start:stop] for start, stop in pairs]


def _facts(optimizer: Optimizer) -> dict[str, str]:
    """Return what has to be the same on all ranks, by name."""
    kinds = [(dtype_name(p.value), tuple(p.value.shape)) for p in optimizer.parameters]
    shapes = ", ".join(f"{name}{shape}" for name, shape in kinds[:8])
    more = f" and {len(kinds) - 8} more, {crc32(str(kinds).encode()):08x}" if len(kinds) > 8 else ""
    settings = attributes_of(optimizer, known=ELSEWHERE)
    return versions() | {
        "parameters": shapes + more,
        "optimizer": repr(optimizer),
        "its settings": str(settings),
    }
