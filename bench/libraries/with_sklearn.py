"""scikit-learn's MLP, trained by its own `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier, MLPRegressor
from workloads import Workload, data, weights

warnings.simplefilter("ignore", ConvergenceWarning)


def prepare(work: Workload, steps: int) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    x, y = data(work)
    x = np.asarray(x)
    model = _started(work)
    if work.predict:

        def run_predict() -> None:
            for _ in range(work.repeats):
                model.predict_proba(x)

        return run_predict, lambda: np.log(model.predict_proba(x)[:10]).ravel().tolist()

    model.set_params(max_iter=work.repeats, warm_start=True)

    def losses() -> list[float]:
        own, batch = _started(work), data(work, work.batch_size)
        return [own.partial_fit(*batch).loss_ for _ in range(steps)]

    return lambda: model.fit(x, y), losses


def _started(work: Workload) -> Any:
    """Return a model that has seen each class, and has the given weights."""
    kind = MLPRegressor if work.task == "numbers" else MLPClassifier
    model = kind(
        hidden_layer_sizes=work.sizes[1:-1],
        activation=work.activation,
        solver="sgd",
        learning_rate_init=1e-30,
        momentum=work.momentum,
        nesterovs_momentum=False,
        alpha=0.0,
        batch_size=work.batch_size,
        max_iter=1,
        n_iter_no_change=10**6,
        random_state=0,
    )
    classes = np.arange(max(2, work.sizes[-1]))
    x = np.zeros((len(classes), work.sizes[0]), np.float32)
    model.set_params(batch_size=1).fit(x, classes)
    for own, given in zip(model.coefs_, weights(work), strict=True):
        own[...] = given
    for own in model.intercepts_:
        own[...] = 0
    del model._optimizer  # it would go on with its own settings
    return model.set_params(batch_size=work.batch_size, learning_rate_init=work.learning_rate)


def version() -> str:
    """Return the versions that matter."""
    return f"scikit-learn {sklearn.__version__}"
