"""Agreement among several processes: on where to start, and on when to stop."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from zlib import crc32

from gpunn.arrays.backend import scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import dtype_name, is_floating
from gpunn.arrays.state import generator_state, restore_generator
from gpunn.data.batch import Batch, spread_of
from gpunn.data.loader import Loader
from gpunn.distributed.agreement import (
    broadcast_value,
    check_alike,
    gap_between,
    gather,
    merge,
    versions,
)
from gpunn.distributed.communicator import Communicator
from gpunn.errors import DataError, DistributedError, SettingError
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer
from gpunn.training.history import History
from gpunn.training.one_rank import Ranks
from gpunn.training.readings import Readings

#: Largest difference between ranks' weights put down to rounding, relative to the largest weight.
_ROUNDED = 1e-3


class SeveralRanks(Ranks):
    """One of several processes.

    Parameters
    ----------
    communicator : Communicator
    """

    several = True

    def __init__(self, communicator: Communicator) -> None:
        self._communicator = communicator
        self.writes = communicator.rank == 0

    def start(self, trainer: Any, facts: dict[str, str], loaders: Sequence[Loader]) -> None:
        """Check that settings are the same; take rank 0's values and generators."""
        communicator = self._communicator
        model = trainer.model
        parts: dict[str, Any] = {"loss": trainer.loss, "optimizer": trainer.optimizer}
        told = {"model": _told_of(model)} | {name: repr(part) for name, part in parts.items()}
        check_alike("Trainer.fit", communicator, versions() | facts | told)
        for loader in loaders:
            self.check_share(loader)
        self._check_data(loaders[0])
        held = [item.value for item in (*model.parameters(), *model.buffers())]
        for array in [*held, *_remembered(trainer.optimizer)]:
            communicator.broadcast(array)
        generators = [trainer._rng, *(loader._rng for loader in loaders)]
        states = self.from_first([_as_lists(generator_state(rng)) for rng in generators])
        for rng, state in zip(generators, states, strict=True):
            restore_generator("Trainer.fit", rng, state)
        for loader in loaders:
            loader.stream = communicator.rank  # even where each rank has its own data
            transform: Any = loader.transform
            if hasattr(transform, "stream"):
                transform.load_state_dict(self.from_first(_as_lists(transform.state_dict())))

    def check_share(self, loader: Loader) -> None:
        """Check that a loader that shares its samples does so among the same processes."""
        if loader.share.size not in (1, self._communicator.size):
            raise SettingError(
                f"Trainer: the loader shares samples among {loader.share.size} processes, and the "
                f"optimizer is that of {self._communicator.size}; give both the same communicator"
            )

    def from_first(self, value: Any) -> Any:
        """Return rank 0's value."""
        return broadcast_value(self._communicator, value)

    def any(self, number: int) -> int:
        """Return the largest number of any rank."""
        return int(max(gather(self._communicator, number)))

    def reason(self, reason: str) -> str:
        """Return the first non-empty reason of any rank."""
        return str(next(filter(None, gather(self._communicator, reason)), ""))

    def gathered(self, readings: Readings) -> Readings:
        """Return the readings of all ranks so far."""
        return readings.merged(partial(merge, self._communicator))

    def unite(self, trainer: Any) -> None:
        """Unite the models of all ranks: average the buffers, and compare the rest.

        Buffers are, for example, the statistics of `BatchNorm`. The weights and the states of the
        optimizer are the same on all ranks, unless processors round differently: then all ranks
        take those of rank 0.

        Raises
        ------
        DistributedError
            If they differ by more than rounding.
        """
        for buffer in trainer.model.buffers():
            value = buffer.value
            with scope_of(value):
                if is_floating(kernels(value).xp, value.dtype):
                    self._communicator.allreduce(value)
                    value /= self._communicator.size
        optimizer = trainer.optimizer
        arrays = [*optimizer.blocks().values, *_remembered(optimizer)]
        digest = 0
        for array in arrays:
            digest = crc32(to_numpy(array).tobytes(), digest)
        if len(set(gather(self._communicator, digest))) > 1:
            self._take_from_first(arrays)

    def _take_from_first(self, arrays: list[Any]) -> None:
        gaps = []
        for array in arrays:
            before = to_numpy(array).copy()
            self._communicator.broadcast(array)
            gaps.append(gap_between(before, to_numpy(array)))
        every = [gap for own in gather(self._communicator, gaps) for gap in own]
        large = [gap for gap in every if not gap <= _ROUNDED]
        if large:
            raise DistributedError(
                "Trainer.fit: the ranks made the same steps, and their weights differ by "
                f"{large[0]:.1g} of the largest; a callback may have changed the model on one of "
                "them. All have those of rank 0 now"
            )

    def share_last(self, history: History) -> None:
        """Send rank 0's last row of the history, with columns from callbacks, to all ranks."""
        history.replace_last(self.from_first(history.last))

    def _check_data(self, loader: Loader) -> None:
        """Check that ranks share the same data, or have their own for the same number of steps."""
        facts = data_facts(loader)
        told = {"shared": loader.share.size > 1, "steps": len(loader), "data": facts}
        every = gather(self._communicator, told)
        if all(each["shared"] for each in every):
            check_alike("Trainer.fit", self._communicator, {"training data": facts})
            return
        if any(each["shared"] for each in every):
            raise DistributedError(
                "Trainer.fit: the loader has a communicator on some ranks only; give all of them "
                "the same, or, for data of their own, none"
            )
        if len({each["data"] for each in every}) == 1:
            raise SettingError(
                "Trainer.fit: all ranks have the same data; share them out with "
                "gn.Loader(..., communicator=communicator)"
            )
        steps = [each["steps"] for each in every]
        if len(set(steps)) > 1:
            raise DataError(
                f"Trainer.fit: with data of its own, each rank must have as many batches; by rank: "
                f"{', '.join(map(str, steps))}. Set drop_last or batch_size"
            )


def _remembered(optimizer: Any) -> list[Any]:
    """Return the arrays of an optimizer's state and average, block by block."""
    kinds = optimizer.blocks().states
    return [*(array for kind in kinds for array in kind), *optimizer.averaged().values]


def together(
    communicator: Communicator, batches: Generator[Batch, None, None]
) -> Generator[Batch, None, None]:
    """Yield batches as long as every process has one; see `gpunn.training.ranks.in_step`."""
    done = 0
    with closing(batches):
        while True:
            batch = next(batches, None)
            present = gather(communicator, batch is not None)
            if not any(present):
                return
            if batch is None or not all(present):
                empty = ", ".join(str(rank) for rank, has in enumerate(present) if not has)
                raise DataError(
                    f"Trainer.fit: after {done} batches there are no more on rank {empty}, and "
                    "other ranks have some; give each rank as many batches"
                )
            done += 1
            yield batch


def data_facts(loader: Loader) -> str:
    """Describe a loader's data: sizes, settings, and a digest of some rows."""
    digest, kinds = 0, []
    for part in loader.stored:
        if part is None:
            continue
        kinds.append(f"{dtype_name(part)}{tuple(part.shape)}")
        digest = crc32(to_numpy(spread_of(part)).tobytes(), digest)
    settings = f"steps of {loader.step_size}, shuffle={_name(loader.shuffle)}"
    if loader.transform is not None:
        settings += f", transform={_name(loader.transform)}"
    return f"{', '.join(kinds)}, digest {digest:08x}, in {settings}"


def file_facts(path: Path | None) -> str:
    """Describe the file to resume from: its name and digest, or that there is none."""
    if path is None:
        return "none"
    if not path.exists():
        return f"{path}, which is not there"
    return f"{path.name}, digest {crc32(path.read_bytes()):08x}"


def _told_of(model: Layer) -> str:
    """Describe a model: its layers, cut short, and a digest that covers its arrays' shapes."""
    named: dict[str, Any] = {**model.named_parameters(), **model.named_buffers()}
    held = [f"{name} {dtype_name(x.value)}{tuple(x.value.shape)}" for name, x in named.items()]
    layers = repr(model)
    digest = crc32("; ".join([layers, *held]).encode())
    return f"{layers[:200]}{'...' * (len(layers) > 200)} (digest {digest:08x})"


def _name(value: Any) -> str:
    if hasattr(value, "stream"):  # a transform that draws the same keys on all ranks
        return repr(value)
    return "a function" if callable(value) else repr(value)


def _as_lists(state: Any) -> Any:
    """Return a generator's state with its arrays as lists."""
    if isinstance(state, dict):
        return {name: _as_lists(value) for name, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state
