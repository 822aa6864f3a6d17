"""Statistics of a batch whose parts are on several ranks."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array
from gpunn.distributed.communicator import Communicator
from gpunn.errors import ShapeError
from gpunn.kernels import kernels


class JointStatistics:
    r"""Mean and variance over all ranks, of channels of which each rank has its entries.

    Rank r has :math:`n_r` entries with the mean :math:`\mu_r` and the sum :math:`q_r` of squares
    about it; it may have none. With :math:`n = \sum_r n_r`,

    .. math:: \mu = \frac1n \sum_r n_r \mu_r, \qquad
              \sigma^2 = \frac1n \sum_r \left(q_r + n_r (\mu_r - \mu)^2\right).

    Two sums over the ranks, one after the other: a single one, of squares about 0, would cancel.

    Parameters
    ----------
    communicator : Communicator
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator

    def moments(self, x: Array) -> tuple[Array, Array, Array]:
        """Return mean and variance (C,), and the number of entries (1,), of double precision.

        Parameters
        ----------
        x : array (..., C)
            This rank's entries.

        Raises
        ------
        ShapeError
            If there is one entry in all; on a GPU, which is not waited for, the variance is NaN.
        """
        k, n = kernels(x), math.prod(x.shape[:-1])
        mean, squares = (k.convert(each, k.xp.float64) for each in k.channel_moments(x))
        sums = k.xp.concat([mean * n, k.xp.full_like(mean[:1], n)])
        self._communicator.allreduce(sums)
        total = sums[-1:]
        if isinstance(total, np.ndarray) and total[0] == 1.0:
            raise ShapeError(
                "BatchNorm: expected more than one entry for each channel in training, and all "
                "ranks together have one; leave it out by Loader(..., drop_last=True)"
            )
        common = sums[:-1] / total
        squares = squares + n * (mean - common) ** 2
        self._communicator.allreduce(squares)
        return common, squares / total, total

    def means(self, sums: list[Array], total: Array) -> Array:
        """Return sums over this rank's entries as means over all: (S, C), of the same dtype.

        Parameters
        ----------
        sums : list of S arrays (C,)
        total : array (1,)
            What `moments` has returned.
        """
        k = kernels(total)
        joint = k.convert(k.xp.stack(sums), total.dtype)
        self._communicator.allreduce(joint)
        return k.convert(joint / total, sums[0].dtype)
