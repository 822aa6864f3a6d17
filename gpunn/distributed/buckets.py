"""Buckets of gradients that are summed over processes during the backward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.facts import size_of
from gpunn.distributed.communicator import Communicator, StartedSum
from gpunn.errors import SettingError
from gpunn.kernels import kernels
from gpunn.nn.parameter import Parameter
from gpunn.optim.base import Optimizer


class Bucket(NamedTuple):
    """Adjacent parameters, and the memory of their gradients.

    Attributes
    ----------
    members : list of int
        The numbers of the parameters.
    grads : array
        A slice of the optimizer's block of gradients.
    """

    members: list[int]
    grads: Array


class Buckets:
    """Sums an optimizer's gradients over all ranks in buckets, each in place.

    The buckets are cut from the optimizer's blocks, last parameter first, since the backward pass
    ends with the first one. So they are the same on all ranks, and always start in the same order:
    a bucket starts once its gradients are complete and all earlier buckets have started. The
    remainder of a block is too small for a bucket.

    A gradient counts as complete after as many contributions as it had in any earlier step: a
    parameter shared by several layers gets several. If there are fewer this time, the bucket starts
    after the backward pass. A contribution that arrives after its bucket has started is an error.

    Parameters
    ----------
    optimizer : Optimizer
    communicator : Communicator
    size_bytes : int
        The least size of a bucket.

    Attributes
    ----------
    all : list of Bucket
    rest : list of array
        The first part of each block, with the gradients that are in no bucket; may be empty.
    """

    def __init__(self, optimizer: Optimizer, communicator: Communicator, size_bytes: int) -> None:
        self._optimizer, self._communicator = optimizer, communicator
        self._blocks = optimizer.blocks().grads
        self.all: list[Bucket] = []
        self.rest: list[Array] = []
        for block, starts in optimizer.grad_blocks():
            buckets, rest = _cut(block, starts, size_bytes)
            self.all += buckets
            self.rest.append(rest)
        self.all.sort(key=lambda bucket: -bucket.members[0])
        #: From parameter to bucket, for the parameters that are in one.
        self._bucket_of = {i: k for k, bucket in enumerate(self.all) for i in bucket.members}
        self._numbers = {optimizer.parameters[i]: i for i in self._bucket_of}
        self._usual = dict.fromkeys(self._bucket_of, 0)
        self._seen: dict[int, int] = {}
        self._missing: list[int] = []
        self._sums: list[StartedSum] = []
        self._is_open = False

    @property
    def under_way(self) -> bool:
        """Whether a sum has been started, or a backward pass that may start one is running."""
        return self._is_open or bool(self._sums)

    @property
    def members(self) -> Collection[int]:
        """The numbers of the parameters that are in a bucket."""
        return self._bucket_of.keys()

    def arrays(self) -> list[Array]:
        """Return the gradients of each bucket."""
        return [bucket.grads for bucket in self.all]

    def are_current(self) -> bool:
        """Return whether the optimizer still has the blocks that the buckets were cut from."""
        return self._optimizer.blocks().grads is self._blocks

    def open(self) -> None:
        """Begin the last backward pass of a step, after which all gradients are complete."""
        self._is_open = True
        self._seen = dict.fromkeys(self._bucket_of, 0)
        self._missing = [sum(self._usual[i] or 1 for i in each.members) for each in self.all]
        for parameter in self._numbers:
            parameter.listener = self._count_contribution

    def start(self, scale: Any = None, *, in_place: bool) -> None:
        """Start the sum of the next bucket, after multiplying its gradients by `scale`.

        The gradients are in the block already if `in_place`; otherwise the parameters hold them.
        """
        bucket = self.all[len(self._sums)]
        with scope_of(bucket.grads):
            if not in_place:
                self._optimizer.gather_grads(bucket.members)
            if scale is not None:
                kernels(bucket.grads).xp.multiply(bucket.grads, scale, out=bucket.grads)
            self._begin_sum(bucket)

    def start_all(self, scale: Any, *, in_place: bool) -> None:
        """Start the remaining buckets: the backward pass is over."""
        if self._is_open:
            self._close()
            for i, n in self._seen.items():
                self._usual[i] = max(self._usual[i], n)
        while len(self._sums) < len(self.all):
            self.start(scale, in_place=in_place)

    def start_failed(self) -> None:
        """Start the remaining buckets, filled with NaN: the backward pass has failed."""
        self._close()
        for bucket in self.all[len(self._sums) :]:
            with scope_of(bucket.grads):
                bucket.grads[...] = float("nan")
                self._begin_sum(bucket)

    def wait(self) -> None:
        """Wait for all sums."""
        sums, self._sums = self._sums, []
        for each in sums:
            each.wait()

    def forget(self) -> None:
        """Drop all started sums without waiting; the next step starts afresh."""
        self._sums = []

    def _begin_sum(self, bucket: Bucket) -> None:
        for earlier in self._sums[-1:]:
            earlier.advance()
        self._sums.append(self._communicator.start_allreduce(bucket.grads))

    def _count_contribution(self, parameter: Parameter) -> None:
        """Count a contribution to a gradient, and start the buckets that are complete."""
        i = self._numbers[parameter]
        self._seen[i] += 1
        k = self._bucket_of[i]
        if k < len(self._sums):
            raise SettingError(
                f"DataParallel: parameter {i} of the optimizer has {self._seen[i]} contributions "
                f"to its gradient in this step, and had {self._usual[i]} before, so its sum has "
                "already begun; if the model changes from step to step, use DataParallel(..., "
                "bucket_bytes=None)"
            )
        if self._seen[i] <= self._usual[i]:
            self._missing[k] -= 1
        while len(self._sums) < len(self.all) and not self._missing[len(self._sums)]:
            self.start(in_place=False)

    def _close(self) -> None:
        self._is_open = False
        for parameter in self._numbers:
            parameter.listener = None


def _cut(block: Array, starts: Mapping[int, int], size_bytes: int) -> tuple[list[Bucket], Array]:
    """Return the buckets of a block, and the remainder at its beginning.

    `starts` maps each parameter, in order, to the offset of its gradient.
    """
    itemsize = size_of(block[:1])
    buckets: list[Bucket] = []
    members: list[int] = []
    stop = int(block.shape[0])
    for i, start in reversed([*starts.items()]):
        members.insert(0, i)
        if (stop - start) * itemsize >= size_bytes:
            buckets.append(Bucket(members, block[start:stop]))
            members, stop = [], start
    return buckets, block[:stop]
