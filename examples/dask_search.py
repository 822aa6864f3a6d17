"""A search over settings on a cluster of Dask: ``python examples/dask_search.py``.

scikit-learn hands the fits to joblib, and joblib to Dask: nothing of the estimator changes. Here
the cluster is two processes of this machine; ``distributed.Client("scheduler:8786")`` takes one
that is running.
"""

from __future__ import annotations

import argparse

import joblib
from distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV

import gpunn as gn
from gpunn.estimators import MLPClassifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="auto")
    options = parser.parse_args()
    backend = str(gn.get_backend(options.backend))

    x, y = load_digits(return_X_y=True)
    network = MLPClassifier((64,), max_iter=60, tol=1e-2, random_state=0, backend=backend)
    grid = {"alpha": [1e-4, 1e-2], "learning_rate_init": [0.001, 0.005]}
    search = GridSearchCV(network, grid, cv=3)
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        joblib.parallel_backend("dask"),
    ):
        search.fit(x / 16, y)
    print(f"best settings {search.best_params_}, accuracy {search.best_score_:.1%}")
    assert search.best_score_ > 0.9


if __name__ == "__main__":
    main()
