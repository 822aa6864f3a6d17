"""A linear classifier whose weights, intercepts and classes may be assigned, even before fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import get_config
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.facts import dtype_name
from gpunn.arrays.portable import Portable
from gpunn.estimators.base import Sizes
from gpunn.estimators.classifying import Classifying
from gpunn.estimators.labels import Labels, converted
from gpunn.estimators.layered import LayeredNetwork
from gpunn.estimators.origin import HOST, Origin
from gpunn.estimators.settings import place_of
from gpunn.estimators.weights import fitting, numbers, write

_PARTS = ("coef_", "intercept_", "classes_")


class AssignedLinear(Classifying, LayeredNetwork):
    """A one-layer classifier, created by `fit` or by assigning all three of its parts."""

    @property
    def coef_(self) -> Any:
        """The weights, (1, n_features) or (n_classes, n_features), in the library of X.

        They may be assigned, even before `fit`, together with `intercept_` and `classes_`. For
        writing in place see `MLPClassifier.coefs_`.
        """
        if "coef_" in self._assigned:
            return self._assigned["coef_"]
        (layer,) = self._layers()
        return self._given(layer.weight.value.T)

    @coef_.setter
    def coef_(self, value: Any) -> None:
        name = f"{type(self).__name__}: coef_"
        if not self.__sklearn_is_fitted__():
            self._assign("coef_", numbers(name, value))
            return
        (layer,) = self._layers()
        write(layer.weight, fitting(name, value, layer.weight.value.T).T)

    @property
    def intercept_(self) -> Any:
        """The intercepts, (1,) or (n_classes,), in the library of X; see `coef_`."""
        if "intercept_" in self._assigned:
            return self._assigned["intercept_"]
        (layer,) = self._layers()
        if layer.bias is not None:
            return self._given(layer.bias.value)
        with scope_of(layer.weight.value):
            zeros = self._given(0.0 * layer.weight.value[0, :])
        if isinstance(zeros, np.ndarray):
            zeros.setflags(write=False)
        return zeros

    @intercept_.setter
    def intercept_(self, value: Any) -> None:
        name = f"{type(self).__name__}: intercept_"
        value = numbers(name, value)
        if not self.__sklearn_is_fitted__():
            self._assign("intercept_", value)
            return
        (layer,) = self._layers()
        like = layer.weight.value[0, :]
        value = fitting(name, _filled(value, like.shape[0]), like)
        if layer.bias is not None:
            write(layer.bias, value)
        else:
            self._check_intercept(value)

    def _outputs(self, X: Any, method: str) -> tuple[Array, Origin]:
        if self._assigned:
            there = " and ".join(part for part in _PARTS if part in self._assigned)
            missing = " or ".join(part for part in _PARTS if part not in self._assigned)
            raise NotFittedError(
                f"{type(self).__name__} has {there} but no {missing}; assign all three, or call fit"
            )
        return super()._outputs(X, method)

    @property
    def _assigned(self) -> dict[str, Any]:
        """The parts assigned before the network exists."""
        parts: dict[str, Portable] = vars(self).get("_parts", {})
        return {name: part.array for name, part in parts.items()}

    def _assign(self, part: str, value: Any) -> None:
        parts = {**self._assigned, part: value}
        if not parts.keys() >= set(_PARTS):
            self._parts = {name: Portable(value) for name, value in parts.items()}
            return
        before = dict(self.__dict__)
        try:
            self._assemble(*(parts[name] for name in _PARTS))
        except Exception:
            self.__dict__ = before
            raise

    def _assemble(self, coef: Array, intercept: Array, classes: Any) -> None:
        """Create the network from its parts, as if `fit` had found them."""
        name, labels = type(self).__name__, Labels.among(classes)
        self._validate_params()
        k = labels.n_outputs
        if coef.ndim != 2 or coef.shape[0] != k:
            n_features = coef.shape[-1] if coef.ndim else 1
            raise ValueError(
                f"{name}: coef_ of {len(labels.classes)} classes: expected shape ({k}, "
                f"{n_features}), got {tuple(coef.shape)}"
            )
        intercept = _filled(intercept, k)
        if tuple(intercept.shape) != (k,):
            raise ValueError(
                f"{name}: intercept_: expected shape ({k},), got {tuple(intercept.shape)}"
            )
        self._check_intercept(intercept)
        origin = Origin.of(coef) if get_config()["array_api_dispatch"] else HOST
        place = place_of(name, self.backend, self.device, origin.backend)
        dtype = "float32" if dtype_name(coef) == "float32" else "float64"
        self._labels, self._origin, self.n_features_in_ = labels, origin, int(coef.shape[1])
        rng = self._random_state = check_random_state(self.random_state)
        self._begin(Sizes((self.n_features_in_,), k), rng, dtype, place)
        self.coef_ = coef
        self.intercept_ = intercept

    def __sklearn_array_api_convert__(self, convert: Callable[[Any], Any]) -> Any:
        """Return a copy with all arrays moved, for scikit-learn's `move_estimator_to`."""
        moved = super().__sklearn_array_api_convert__(convert)
        if self._assigned:
            parts = {name: converted(part, convert) for name, part in self._assigned.items()}
            moved._parts = {name: Portable(part) for name, part in parts.items()}
        return moved

    def _begin(self, *arguments: Any) -> None:
        if self._assigned:
            del self._parts  # the new network has its own
        super()._begin(*arguments)

    def _check_intercept(self, value: Array) -> None:
        """Check that the intercepts are zero if the model does not fit any."""
        if not self.fit_intercept and to_numpy(value).any():
            raise ValueError(
                f"{type(self).__name__}: intercept_ of a model with fit_intercept=False is zero, "
                f"got {to_numpy(value).tolist()}; begin with fit_intercept=True"
            )


def _filled(value: Array, n: int) -> Array:
    """Repeat a single number n times; return an array unchanged."""
    return np.full(n, float(value)) if value.ndim == 0 else value
