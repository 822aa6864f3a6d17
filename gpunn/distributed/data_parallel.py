"""Data-parallel training: processes share every batch and make the same update."""

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
    r"""Train one model on several processes, each on its part of every batch.

    Rank r has the gradient :math:`g_r` of a mean that divides by :math:`W_r`: its number of
    samples, or the sum of their weights. The update takes

    .. math:: g = \frac{\sum_r W_r\, g_r}{\sum_r W_r},

    which is the gradient of a single process with all samples, however unequal the parts are.
    Gradients are clipped after that. All gradients and the sum of weights form one array, which is
    summed over the ranks once per update; those of a large network may be split into several, which
    are summed during the backward pass (see `bucket_bytes`).

    From now on all ranks take every step of the optimizer together, in `train_step`, in a
    `Trainer`, and in a loop of your own that calls `average`. On a single process nothing changes.

    Parameters
    ----------
    optimizer : Optimizer
        Built the same way on every rank. The values of its parameters, and its state, become those
        of rank 0.
    communicator : Communicator, optional
        By default ``gn.get_communicator("auto")``.
    compress : bool, default False
        Whether gradients are sent as float16, in half the bytes. They are scaled by a power of two,
        the same on all ranks, that brings the largest to about 2^14; each entry then keeps 11 bits,
        and entries below 2^-28 of the largest lose them one by one. Each step sends two numbers
        first.
    bucket_bytes : int or None, default None
        The least size of a part of the gradients that is summed separately, as soon as the backward
        pass has completed it: the last layers first. The rest is summed at the end. A few million
        pay off where sums run without the processor, as NCCL's do, but not with MPI on the cores
        that compute. None: one sum, after the backward pass, as always with `compress` or
        `synchronise_batch_norm`.
    synchronise_batch_norm : bool, default False
        Whether `gpunn.BatchNorm` normalises by the statistics of the whole batch, as on one
        process, in `train_step` and `Trainer`. This takes two sums over the ranks per such layer in
        the forward pass, and one in the backward pass; steps are then not recorded.

    Attributes
    ----------
    communicator : Communicator

    Raises
    ------
    SettingError
        If `optimizer` is not an optimizer, or is parallel already.
    DistributedError
        If the optimizers of the ranks differ.

    Notes
    -----
    *BatchNorm* normalises by the statistics of each rank's part of a batch, not by those of the
    whole batch, unless `synchronise_batch_norm` is set; in a loop of your own that calls `average`,
    always by those of each rank's part. Its running statistics are averaged over the ranks before
    they are used: for validation, in checkpoints, and at the end of an epoch.
    *Dropout* draws a different mask on each rank.
    *Steps* are recorded: on NumPy the sum is one of their operations; on a GPU it runs between two
    graphs, one of the forward and backward passes and one of the update.

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
                f"DataParallel: expected an optimizer, got {type(optimizer).__name__}; call "
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
            raise SettingError(
                "DataParallel: the optimizer is parallel already: see optimizer.parallel"
            )
        self.communicator = communicator
        self._compress = flag("DataParallel", "compress", compress)
        if bucket_bytes is not None:
            bucket_bytes = whole_number("DataParallel", "bucket_bytes", bucket_bytes)
        synchronise = flag("DataParallel", "synchronise_batch_norm", synchronise_batch_norm)
        self._joint = JointStatistics(communicator) if synchronise else None
        # A rank that has failed still takes part in the sums of buckets, but not of statistics.
        self._bucket_bytes = None if self._compress or synchronise else bucket_bytes
        self._kept_buckets: Buckets | None = None
        self._optimizer = optimizer
        self._messages: dict[tuple[str, str, int], Array] = {}
        #: Numbers of the parameters with a gradient on some rank; None before the first step.
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
        """Give the tape this rank's number, and the means of sharing statistics."""
        tape.stream, tape.joint = self.communicator.rank, self._joint

    def average(self, weight: float | Array = 1.0) -> None:
        """Average the gradients over all ranks, just before ``optimizer.step()``.

        `train_step` and `Trainer` call this themselves.

        Parameters
        ----------
        weight : float or array, default 1.0
            W, the weight of this rank's gradient: its number of samples, or the sum of their
            weights; a 0-d array on the device.
        """
        if self.communicator.size > 1:
            self.sum(weight, scale=weight)

    def sum(self, total: Any, scale: Any = None) -> None:
        """Sum the gradients over all ranks, and divide them by the sum of the totals.

        Parameters
        ----------
        total : float, array or None
            The weight of this rank's gradients; None: the sum is not divided.
        scale : float or array, optional
            A factor by which this rank's gradients are multiplied.
        """
        optimizer, buckets = self._optimizer, self.buckets()
        present = [i for i, p in enumerate(optimizer.parameters) if p.grad is not None]
        if buckets is not None:
            buckets.start_all(scale, in_place=False)
        trained = self._trained_on_any_rank(present)
        if unknown := set(present).difference(trained):
            raise self._inconsistent_step(min(unknown))
        in_buckets = () if buckets is None else buckets.members
        others = (i for i in range(len(optimizer.parameters)) if i not in in_buckets)
        optimizer.gather_grads(others)
        self._exchange(buckets, total, scale)
        optimizer.take_grads(trained)
        self._averaged = True

    def sum_in_place(self, total: float | None, present: list[int]) -> None:
        """Do the same for the gradients of a recorded step, which are in their blocks already.

        Parameters
        ----------
        total : float or None
            The number that the gradients, which are means, were divided by.
        present : list of int
            The numbers of the parameters that have a gradient.
        """
        buckets = self.buckets()
        if buckets is not None:
            buckets.start_all(total, in_place=True)
        if difference := set(present) ^ set(self._trained_on_any_rank(present)):
            raise self._inconsistent_step(min(difference))
        self._exchange(buckets, total, total)

    def buckets(self) -> Buckets | None:
        """Return the buckets of gradients that are summed separately; None if there are none."""
        if self._bucket_bytes is None:
            return None
        if self._kept_buckets is None or not self._kept_buckets.are_current():
            self._kept_buckets = Buckets(self._optimizer, self.communicator, self._bucket_bytes)
        return self._kept_buckets if self._kept_buckets.all else None

    def open(self) -> None:
        """Begin the last backward pass of a step, which completes all gradients.

        Call `sum` after it, or `abandon` if it fails.
        """
        buckets = self.buckets()
        if buckets is not None:
            buckets.open()

    def abandon(self) -> None:
        """Take part in the sums of a step that has failed here, so that it fails on all ranks.

        The others have started sums, or will. They receive NaN, and raise.
        """
        buckets = self._kept_buckets
        if buckets is None or not buckets.under_way:
            return
        try:
            with suppress(Exception):  # the error that led here says more
                buckets.start_failed()
                self._exchange(buckets, float("nan"), float("nan"))
        finally:
            buckets.forget()

    def _exchange(self, buckets: Buckets | None, total: Any, scale: Any) -> None:
        """Wait for the started buckets, sum the remaining gradients, and divide."""
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
        """Refuse a step that another rank has abandoned; on a device, all gradients become NaN."""
        if isinstance(total, np.floating) and np.isnan(total):
            raise DistributedError(
                f"rank {self.communicator.rank} of {self.communicator.size}: another rank has "
                "failed in the backward pass of this step, and reports why"
            )

    def _send(self, message: Array) -> None:
        """Sum gradients, and the number after them, over the ranks; in 16 bits if compressed."""
        if not self._compress:
            self.communicator.allreduce(message)
            return
        xp = kernels(message).xp
        grads = message[:-1]
        numbers = xp.stack([xp.max(xp.abs(grads)), message[-1]])
        self.communicator.allreduce(numbers)
        bound = xp.clip(numbers[:1], 2.0**-100, None)  # no partial sum over ranks is larger
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
                "before the step, with n the number of samples on this rank"
            )
        self._averaged = False

    def _trained_on_any_rank(self, present: list[int]) -> list[int]:
        """Return the parameters that had a gradient on some rank in the first step."""
        if self._trained is None:
            counts = np.zeros(len(self._optimizer.parameters), np.int64)
            counts[present] = 1
            self.communicator.allreduce(counts)
            self._trained = np.flatnonzero(counts).tolist()
        return self._trained

    def _inconsistent_step(self, i: int) -> SettingError:
        return SettingError(
            f"DataParallel: parameter {i} of the optimizer has a gradient in some steps and none "
            "in others; if the model has changed, build the optimizer and DataParallel anew"
        )

    def _message(self, name: str, members: list[Array]) -> Array:
        """Return the array, reused in every step, for some blocks and one number."""
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
    """Return the slices of a message that hold some blocks."""
    stops = list(accumulate(member.size for member in members))
    pairs = zip([0, *stops], stops, strict=False)
    return [message[start:stop] for start, stop in pairs]


def _facts(optimizer: Optimizer) -> dict[str, str]:
    """Return the facts, by name, that must be the same on all ranks."""
    kinds = [(dtype_name(p.value), tuple(p.value.shape)) for p in optimizer.parameters]
    shapes = ", ".join(f"{name}{shape}" for name, shape in kinds[:8])
    more = f" and {len(kinds) - 8} more, {crc32(str(kinds).encode()):08x}" if len(kinds) > 8 else ""
    settings = attributes_of(optimizer, known=ELSEWHERE)
    return versions() | {
        "parameters": shapes + more,
        "optimizer": repr(optimizer),
        "its settings": str(settings),
    }
