"""Dask: estimators on a cluster of two processes, and arrays in chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

import gpunn as gn
from gpunn.estimators import MLPClassifier

pytest.importorskip("distributed", reason="dask is not installed: pip install '.[dask]'")
import dask
import dask.array as da
import distributed

pytestmark = [
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of Dask's own
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """Return a client of two processes with a thread each."""
    settings = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with (
        distributed.LocalCluster(processes=True, **settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def table(n: int = 200) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 4))
    return x, (x[:, 0] + 0.3 * x[:, 1] > 0).astype(int)


def test_a_search_on_a_cluster_finds_what_one_process_does(client: Any) -> None:
    x, y = table()
    settings = {"hidden_layer_sizes": (8,), "max_iter": 20, "random_state": 0}
    grid = {"alpha": [1e-4, 1e-1], "learning_rate_init": [0.01, 0.1]}
    search = GridSearchCV(MLPClassifier(**settings), grid, cv=3)
    with joblib.parallel_backend("dask"):
        search.fit(x, y)
    alone = GridSearchCV(MLPClassifier(**settings), grid, cv=3).fit(x, y)
    assert search.best_params_ == alone.best_params_
    for name in ("mean_test_score", "std_test_score"):
        np.testing.assert_allclose(search.cv_results_[name], alone.cv_results_[name], atol=1e-6)


def test_estimators_travel_as_tasks(client: Any) -> None:
    x, y = table()

    def fitted(seed: int) -> MLPClassifier:
        return MLPClassifier((8,), max_iter=10, random_state=seed).fit(x, y)

    there = client.gather(client.map(fitted, range(3)))
    for seed, estimator in enumerate(there):
        np.testing.assert_array_equal(estimator.predict_proba(x), fitted(seed).predict_proba(x))


class TestChunks:
    def array(self, x: Any, computed: list[int] | None = None) -> Any:
        """Return x in chunks of 30 rows and 2 columns; note which rows begin a computed chunk."""

        def note(block: Any, block_info: Any = None) -> Any:
            if computed is not None and block_info:
                computed.append(block_info[0]["array-location"][0][0])
            return block

        chunks = (30, *x.shape[1:])
        return da.from_array(x, chunks=chunks).map_blocks(note, dtype=x.dtype, meta=x[:0])

    @pytest.mark.parametrize("shuffle", [False, True, "blocks"])
    def test_batches_are_those_of_the_array(self, shuffle: Any) -> None:
        x, y = table(100)
        settings = {"batch_size": 16, "shuffle": shuffle, "block_size": 30, "rng": 0}
        chunked = gn.Loader(self.array(x), y, **settings)
        assert not chunked.resident
        for mine, wanted in zip(chunked, gn.Loader(x, y, **settings), strict=True):
            np.testing.assert_array_equal(mine.x, wanted.x)
            np.testing.assert_array_equal(mine.y, wanted.y)

    def test_chunks_may_divide_columns_and_targets(self) -> None:
        x, y = table(100)
        pieces = da.from_array(x, chunks=(30, 2)), da.from_array(y, chunks=40)
        batch = next(iter(gn.Loader(*pieces, batch_size=50, shuffle=False)))
        np.testing.assert_array_equal(batch.x, x[:50].astype(np.float32))
        np.testing.assert_array_equal(batch.y, y[:50])

    def test_a_chunk_is_computed_once_an_epoch(self) -> None:
        x, y = table(900)
        computed: list[int] = []
        settings = {"shuffle": "blocks", "block_size": 30, "window": 4, "batch_size": 30}
        loader = gn.Loader(self.array(x, computed), y, rng=0, **settings)
        with dask.config.set(scheduler="synchronous"):  # here, and not on the cluster
            assert sum(len(batch.y) for batch in loader) == 900
        assert sorted(computed) == list(range(0, 900, 30))

    def test_a_network_trains_on_them(self) -> None:
        x, y = table(300)
        weights = []
        for given in (x, self.array(x)):
            model = gn.Dense(4, 2, rng=0)
            optimizer = gn.SGD(model.parameters(), 0.1)
            trainer = gn.Trainer(model, gn.SoftmaxCrossEntropy(), optimizer)
            trainer.fit(gn.Loader(given, y, rng=1), 3, progress=False)
            weights.append(model.parameters()[0].value)
        np.testing.assert_allclose(*weights, atol=1e-6)

    def test_an_estimator_learns_chunk_by_chunk(self) -> None:
        x, y = table(120)
        pieces = self.array(x), da.from_array(y, chunks=30)
        there, here = (MLPClassifier((8,), random_state=0) for _ in range(2))
        for some, labels in zip(*(part.blocks for part in pieces), strict=True):
            there.partial_fit(some, labels, classes=[0, 1])
        for start in range(0, 120, 30):
            rows = slice(start, start + 30)
            here.partial_fit(x[rows], y[rows], classes=[0, 1])
        np.testing.assert_array_equal(there.predict_proba(x), here.predict_proba(x))

    def test_values_that_are_not_finite_are_found(self) -> None:
        x, y = table(100)
        x[70, 1] = np.nan
        with pytest.raises(gn.errors.DataError, match=r"1 values .* the first in sample 70"):
            gn.Loader(self.array(x), y, check_finite=True)

    def test_unknown_lengths_are_refused(self) -> None:
        x, y = table(100)
        array = self.array(x)
        with pytest.raises(gn.errors.DataError, match="compute_chunk_sizes"):
            gn.Loader(array[array[:, 0] > 0], y)

    def test_numbers_that_are_not_real_are_refused(self) -> None:
        with pytest.raises(gn.errors.DTypeError, match="real numbers, got complex128"):
            gn.Loader(da.zeros((4, 2), dtype=complex))
