"""scikit-learn's MLP, trained by its own `fit`; as "sgd" its linear classifier, one by one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from workloads import Workload, data, weights

warnings.simplefilter("ignore", ConvergenceWarning)


def serves(work: Workload, variant: str) -> bool:
    """Return whether this variant can run the workload."""
    if variant == "sgd":
        return work.task == "binary" and len(work.sizes) == 2 and work.batch_size == 1
    return not (work.dropout or work.clip_norm or work.blocks or work.block or work.image)


def prepare(
    work: Workload, steps: int, variant: str = "", device: str = "cpu"
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Return what runs a measurement, and what returns losses or outputs to compare."""
    x, y = data(work)
    x = np.asarray(x)
    if variant == "sgd":
        return _sample_by_sample(work, steps, x, y)
    model = _started(work)
    if work.predict:

        def run_predict() -> None:
            for _ in range(work.repeats):
                model.predict_proba(x)

        return run_predict, lambda: np.log(model.predict_proba(x)[:10]).ravel().tolist()

    model.set_params(max_iter=work.repeats, warm_start=True)

    def losses() -> list[float]:
        own, (first, labels) = _started(work), data(work, work.batch_size)
        weight = _sample_weight(work, labels)
        found = []
        for _ in range(steps):
            own.partial_fit(first, labels, sample_weight=weight)
            found.append(own.loss_)
        return found

    weight = _sample_weight(work, y)
    return lambda: model.fit(x, y, sample_weight=weight), losses


def _sample_weight(work: Workload, y: np.ndarray) -> np.ndarray | None:
    """Return the weight of each sample's class: the MLP knows no class weights."""
    return None if work.class_weight is None else np.float32(work.class_weight)[y]


def _sample_by_sample(
    work: Workload, steps: int, x: np.ndarray, y: np.ndarray
) -> tuple[Callable[[], object], Callable[[], list[float]]]:
    """Do the same updates as the network of one layer does with batches of one."""
    model = _linear(work, x).set_params(max_iter=work.repeats, warm_start=True)

    def losses() -> list[float]:
        own, (first, labels) = _linear(work, x), data(work, 1)
        found = []
        for _ in range(steps):
            margin = own.decision_function(first) * (2 * labels - 1)
            found.append(float(np.logaddexp(0.0, -margin)[0]))
            own.partial_fit(first, labels)
        return found

    return lambda: model.fit(x, y), losses


def _linear(work: Workload, x: np.ndarray) -> SGDClassifier:
    """Return a linear model that knows both classes, and has the given weights."""
    model = SGDClassifier(
        loss="log_loss",
        penalty=None,
        learning_rate="constant",
        eta0=work.learning_rate,
        tol=None,
        random_state=0,
    )
    model.partial_fit(x[:2], [0, 1], classes=[0, 1])
    (given,) = weights(work)
    model.coef_ = given.T.astype(model.coef_.dtype)
    model.intercept_ = np.zeros_like(model.intercept_)
    return model


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


def version(device: str = "cpu") -> str:
    """Return the versions that matter."""
    return f"scikit-learn {sklearn.__version__}"
