"""Arrays of Zarr, and what each of several ranks reads of data in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ranks import Threads, run_ranks

import gpunn as gn

zarr = pytest.importorskip("zarr", minversion="3", reason="zarr is not installed: pip install zarr")

N, CHUNK, RANKS = 240, 10, 3


class Counting(zarr.storage.WrapperStore):
    """Notes which chunks are read, by their first index."""

    def __init__(self, store: Any, read: list[int]) -> None:
        super().__init__(store)
        self.read = read

    async def get(self, key: str, *arguments: Any, **settings: Any) -> Any:
        place = key.split("/")
        if place[0] == "c":
            self.read.append(int(place[1]))
        return await super().get(key, *arguments, **settings)


def array(x: Any) -> tuple[Any, list[int]]:
    """Return x as an array of Zarr, of which the chunks that are read are noted."""
    store, read = zarr.storage.MemoryStore(), []
    made = zarr.create_array(store, shape=x.shape, chunks=(CHUNK, *x.shape[1:]), dtype=x.dtype)
    made[...] = x
    return zarr.open_array(Counting(store, read), mode="r+"), read


def table(n: int = N) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 4)), rng.integers(0, 2, n)


@pytest.mark.parametrize("n", [N, N + 3, 1])
@pytest.mark.parametrize("shuffle", [False, True, "blocks"])
def test_batches_are_those_of_the_array(n: int, shuffle: Any) -> None:
    x, y = table(n)
    chunked, read = array(x)
    settings = {"batch_size": min(n, 16), "shuffle": shuffle, "block_size": CHUNK, "rng": 0}
    loader = gn.Loader(chunked, y, **settings)
    assert not loader.resident
    assert not read
    for mine, wanted in zip(loader, gn.Loader(x, y, **settings), strict=True):
        np.testing.assert_array_equal(mine.x, wanted.x)
    if shuffle != True:  # noqa: E712 (it may be a string)
        assert sorted(read) == list(range(-(-n // CHUNK)))  # each once
    for dtype in (None, "float32"):
        whole = np.asarray(loader.stored.x, dtype)
        np.testing.assert_array_equal(whole, x.astype(dtype or x.dtype), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
def test_all_rows_keep_their_dtype(dtype: str) -> None:
    x = table()[0].astype(dtype)
    chunked, _ = array(x)
    whole = np.asarray(gn.Loader(chunked, table()[1], batch_size=16).stored.x)
    np.testing.assert_array_equal(whole, x, strict=True)


def train(x: Any, y: Any, ranks: Any, **settings: Any) -> list[float]:
    model = gn.Dense(4, 2, rng=0, dtype="float64")
    optimizer = gn.SGD(model.parameters(), 0.1)
    gn.DataParallel(optimizer, ranks)
    trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
    loader = gn.Loader(x, y, batch_size=CHUNK, dtype="float64", **settings)
    return trainer.fit(loader, 2, progress=False)["loss"]


def test_each_rank_reads_the_chunks_of_its_own_part() -> None:
    """In the stored order, with batches of a chunk; and four chunks to compare the data."""
    x, y = table()

    def program(communicator: Threads) -> tuple[list[float], set[int]]:
        chunked, read = array(x)
        settings = {"shuffle": False, "communicator": communicator}
        loader = gn.Loader(chunked, y, batch_size=CHUNK, **settings)
        assert sum(len(batch.y) for batch in loader) == N // RANKS
        own = list(range(communicator.rank, N // CHUNK, RANKS))
        assert sorted(read) == own
        read.clear()
        loss = train(chunked, y, communicator, **settings)
        return loss, set(read) - set(own)

    results = run_ranks(RANKS, program)
    for loss, others in results:
        assert others <= {0, 7, 15, 23}
        assert loss == results[0][0]
    in_memory = run_ranks(RANKS, lambda c: train(x, y, c, shuffle=False, communicator=c))
    assert results[0][0] == in_memory[0]


def test_ranks_with_parts_of_their_own_read_nothing_else(tmp_path: Path) -> None:
    da = pytest.importorskip("dask.array", reason="dask is not installed")
    x, y = table()
    np.save(tmp_path / "x.npy", x)

    def program(communicator: Threads, kind: str) -> tuple[list[float], set[int]]:
        chunked, read = array(x)
        some = slice(communicator.rank * N // RANKS, (communicator.rank + 1) * N // RANKS)
        own = {
            "zarr": lambda: da.from_zarr(chunked)[some],
            "memmap": lambda: np.load(tmp_path / "x.npy", mmap_mode="r")[some],
        }[kind]()
        return train(own, y[some], communicator, shuffle="blocks", rng=0), set(read)

    lazy, mapped = (
        run_ranks(RANKS, lambda c, kind=kind: program(c, kind)) for kind in ("zarr", "memmap")
    )
    for rank, (loss, read) in enumerate(lazy):
        assert read == set(range(8 * rank, 8 * rank + 8))
        assert loss == mapped[rank][0]


def test_data_that_differ_in_a_chunk_between_are_found() -> None:
    x, y = table()

    def program(communicator: Threads) -> None:
        mine = x.copy()
        mine[75:165] += communicator.rank
        train(array(mine)[0], y, communicator, communicator=communicator)

    for error in run_ranks(2, program):
        with pytest.raises(gn.errors.DistributedError, match="training data: rank 0 has"):
            raise error
