"""Loaders for arrays passed to a trainer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from gpunn._typing import RNG
from gpunn.arrays.facts import dtype_name
from gpunn.data.loader import Loader
from gpunn.nn.layer import Layer, first_parameter
from gpunn.nn.tree import entrance
from gpunn.training.arguments import check_data

#: Data for `evaluate` and `validation`: a loader, or arrays (x, y) or (x, y, sample_weight).
Data: TypeAlias = "Loader | Sequence[Any]"


def as_loader(owner: str, data: Data, model: Layer, rng: RNG, communicator: Any = None) -> Loader:
    """Return a given loader unchanged, or a loader of arrays, shared among the processes."""
    if isinstance(data, Loader):
        return data
    check_data(owner, data)
    x, y, *weight = data
    loader = loader_of(model, rng, x, y, sample_weight=weight[0] if weight else None)
    loader.share_among(communicator)
    return loader


def loader_of(
    model: Layer, rng: RNG, x: Any, y: Any = None, *, batch_size: int = 1024, **settings: Any
) -> Loader:
    """Return a loader of all data in stored order, with the model's device and dtype.

    Nothing is drawn from `rng`; it is passed only to save the time of creating a generator.
    """
    first = first_parameter(model)
    loader = Loader(
        x,
        y,
        batch_size=None,
        shuffle=False,
        backend=model.backend,
        dtype="float32" if first is None else dtype_name(first.value),
        keep_integers=entrance(model).takes_integers,
        rng=rng,
        **settings,
    )
    loader.batch_size = min(batch_size, loader.n_samples)
    return loader
