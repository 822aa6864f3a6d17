"""The base class of fitted estimators: predictions and training curves."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted, validate_data

from gpunn._typing import Array, Shape
from gpunn.arrays.backend import Backend, scope_of
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.streams import follow_default_stream
from gpunn.estimators.features import are_finite, is_one_product, is_plain, rows_at_once
from gpunn.estimators.origin import HOST, Origin, namespace_of
from gpunn.estimators.progress import Progress
from gpunn.estimators.samples import check_unmasked
from gpunn.estimators.weights import handed_out
from gpunn.kernels import kernels
from gpunn.nn.layer import Layer
from gpunn.optim.base import Optimizer
from gpunn.training.history import History
from gpunn.training.inference import forward_fitting

#: The maximum number of rows per batch of validation data, and per block of a prediction on a GPU;
#: fewer if these do not fit into memory.
ROWS = 8192


class FittedNetwork(BaseEstimator):
    """An estimator that holds a network once it is fitted."""

    _network_settings: dict[str, Any]
    _n_outputs: int
    _network: Layer
    _optimizer: Optimizer
    _origin: Origin
    _progress: Progress

    def _outputs(self, X: Any, method: str) -> tuple[Array, Origin]:
        """Return the network's outputs (N, P), on its device, and where X came from."""
        check_is_fitted(self)
        place = self._network.backend
        assert place is not None  # noqa: S101 (it has parameters)
        follow_default_stream(place)
        origin = Origin.of(X)
        if get_config()["array_api_dispatch"] and origin != self._origin:
            name = type(self).__name__
            raise ValueError(
                f"{name}.{method}() must use the same namespace and device as {name}.fit(): "
                f"that had X in {self._origin}, this has it in {origin}; move X there, or fit again"
            )
        plain = is_plain(X, self.n_features_in_) and not hasattr(self, "feature_names_in_")
        if not plain:
            X = self._check_features(X)
        self._check_sample_shape(tuple(X.shape[1:]))
        return self._forward(X, place, checked=not plain), origin

    def _check_features(self, X: Any) -> Any:
        """Return features after scikit-learn's checks."""
        check_unmasked(type(self).__name__, X=X)
        with scope_of(X):
            return validate_data(self, X, reset=False, **self._x_checks(X))

    def _x_checks(self, X: Any) -> dict[str, Any]:
        """Return the arguments of scikit-learn's check of X: all but float32 becomes float64."""
        xp = np if Origin.of(X) == HOST else namespace_of(X)
        return {"accept_sparse": "csr", "dtype": [xp.float64, xp.float32]}

    def _check_sample_shape(self, shape: Shape) -> None:
        """Check the shape of a sample, beyond its number of features, against that in `fit`."""

    def _forward(self, X: Any, place: Backend, *, checked: bool) -> Array:
        """Return the outputs, in blocks of rows that fit into memory.

        Features that are not `checked` are plain, but may have non-finite entries.
        """
        network = self._network
        weights = [parameter.value for parameter in network.parameters()]
        dtype = dtype_name(weights[0])

        def take(start: int, stop: int) -> Array:
            rows = X if (start, stop) == (0, X.shape[0]) else X[start:stop, ...]
            rows = rows.toarray() if hasattr(rows, "toarray") else rows
            if not (checked or are_finite(rows)):
                rows = self._check_features(rows)  # raises, unless only the sum overflowed
            return place.asarray(rows, dtype)

        n, most = X.shape[0], rows_at_once(X, weights) if place.package == "numpy" else ROWS
        if n > most and not checked and is_one_product(network, X):
            with np.errstate(over="ignore", invalid="ignore"):
                outputs = forward_fitting(network, lambda start, stop: X[start:stop], n, n)
            if are_finite(outputs):
                return outputs
        threads = kernels(weights[0]).threads(most, weights) if n > most else nullcontext()
        with place.scope(), threads:
            return forward_fitting(network, take, n, most)

    def __sklearn_is_fitted__(self) -> bool:
        """Return whether there is a network to predict with."""
        return hasattr(self, "_network")

    def _fitted_attributes(self) -> dict[str, Any]:
        """Return attributes for a copy of the estimator, unaffected by further training."""
        return {
            "_network": copy.deepcopy(self._network),
            "_progress": copy.deepcopy(self._progress),
        }

    @property
    def _dtype(self) -> str:
        return dtype_name(self._network.parameters()[0].value)

    def __sklearn_array_api_convert__(self, convert: Callable[[Any], Any]) -> Any:
        """Return a copy with all arrays moved, for scikit-learn's `move_estimator_to`.

        As with a pickle, the network follows its weights, whatever the setting `backend`. If gpunn
        cannot compute there, it moves to gpunn's default backend.
        """
        moved = copy.deepcopy(self)
        if self.__sklearn_is_fitted__():
            moved._origin = Origin.at(convert(self._given(self._network.parameters()[0].value)))
            moved._optimizer.to(moved._origin.place)
        return moved

    # Results of training

    @property
    def n_outputs_(self) -> int:
        """The number of outputs."""
        check_is_fitted(self)
        return self._n_outputs

    @property
    def n_iter_(self) -> int:
        """The number of epochs of the last call of fit."""
        return self._fitted_progress().n_iter

    @property
    def t_(self) -> int:
        """The number of samples seen, counting repetitions."""
        return self._fitted_progress().n_samples

    @property
    def loss_(self) -> float:
        """The loss of the last epoch, with the penalty."""
        return self._fitted_progress().loss

    @property
    def loss_curve_(self) -> list[float]:
        """The loss of each epoch with the penalty: the mean over its batches before their steps."""
        return self._fitted_progress().loss_curve

    @property
    def best_loss_(self) -> float | None:
        """The lowest loss; None with early stopping."""
        return self._fitted_progress().best_loss

    @property
    def validation_scores_(self) -> list[float] | None:
        """The score of the held-out data after each epoch; None without early stopping."""
        return self._fitted_progress().scores

    @property
    def best_validation_score_(self) -> float | None:
        """The highest score; None without early stopping."""
        return self._fitted_progress().best_score

    @property
    def validation_loss_curve_(self) -> list[float] | None:
        """The loss over the validation data after each epoch; None without such data."""
        return self._fitted_progress().history.columns.get("validation_loss")

    @property
    def history_(self) -> History:
        """All numbers of all epochs: losses, metrics, learning rate and times."""
        return self._fitted_progress().history

    def _fitted_progress(self) -> Progress:
        check_is_fitted(self)
        return self._progress

    def _given(self, x: Array) -> Any:
        return handed_out(self._origin, x)
