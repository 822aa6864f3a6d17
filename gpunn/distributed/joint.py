"""Statistics of a batch that is split over several ranks."""

from __future__ import annotations

import math

import numpy as np

from gpunn._typing import Array
from gpunn.distributed.communicator import Communicator
from gpunn.errors import ShapeError
from gpunn.kernels import kernels


class JointStatistics:
    r"""Mean and variance per channel over the entries of all ranks.

    Rank r has :math:`n_r \ge 0` entries with mean :math:`\mu_r` and sum :math:`q_r` of squares
    about it. With :math:`n = \sum_r n_r`,

    .. math:: \mu = \frac1n \sum_r n_r \mu_r, \qquad
              \sigma^2 = \frac1n \sum_r \left(q_r + n_r (\mu_r - \mu)^2\right).

    This takes two sums over the ranks, one after the other: a single one, of squares about 0, would
    suffer from cancellation.

    Parameters
    ----------
    communicator : Communicator
    """

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator

    def moments(self, x: Array) -> tuple[Array, Array, Array]:
        """Return mean and variance (C,), and the number of entries (1,), in double precision.

        Parameters
        ----------
        x : array (..., C)
            This rank's entries.

        Raises
        ------
        ShapeError
            If there is one entry in all. On a GPU, nothing waits to check this; the variance is
            NaN.
        """
        k, n = kernels(x), math.prod(x.shape[:-1])
        mean, squares = (k.convert(each, k.xp.float64) for each in k.channel_moments(x))
        sums = k.xp.concat([mean * n, k.xp.full_like(mean[:1], n)])
        self._communicator.allreduce(sums)
        total = sums[-1:]
        if isinstance(total, np.ndarray) and total[0] == 1.0:
            raise ShapeError(
                "BatchNorm: expected more than one entry per channel in training, and all "
                "ranks together have one; drop such a batch with Loader(..., drop_last=True)"
            )
        common = sums[:-1] / total
        squares = squares + n * (mean - common) ** 2
        self._communicator.allreduce(squares)
        return common, squares / total, total

    def means(self, sums: list[Array], total: Array) -> Array:
        """Return the means (S, C) over all ranks from this rank's sums, in the sums' dtype.

        Parameters
        ----------
        sums : list of S arrays (C,)
        total : array (1,)
            The number of entries that `moments` returned.
        """
        k = kernels(total)
        joint = k.convert(k.xp.stack(sums), total.dtype)
        self._communicator.allreduce(joint)
        return k.convert(joint / total, sums[0].dtype)
