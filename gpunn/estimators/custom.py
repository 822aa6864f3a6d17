"""Estimators around a user-defined network."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted

from gpunn._typing import Shape
from gpunn.arrays.backend import Backend
from gpunn.arrays.checks import shown
from gpunn.estimators.base import NetworkEstimator, Sizes, generator
from gpunn.estimators.settings import LIMIT, PENALTY, TRAINING
from gpunn.nn.containers import Sequential
from gpunn.nn.dense import Dense
from gpunn.nn.layer import Layer
from gpunn.nn.shape import Flatten

if TYPE_CHECKING:
    import numpy as np

#: The prefix of single entries of `network_params` among the settings.
_PREFIX = "network_params__"


def perceptron(input_shape: Shape, n_outputs: int, *, rng: Any = None) -> Layer:
    """Return the default network: one hidden layer of 100 ReLU neurons."""
    n_inputs = math.prod(input_shape)
    return Sequential(
        Flatten(), Dense(n_inputs, 100, "relu", rng=rng), Dense(100, n_outputs, rng=rng)
    )


class CustomNetwork(NetworkEstimator):
    """An estimator with a setting `network`, a function that creates the network."""

    network: Callable[..., Layer] | None
    network_params: dict[str, Any] | None
    _sample_shape: Shape

    #: The constraints of its settings.
    _CUSTOM: ClassVar[dict[str, Any]] = {
        **TRAINING,
        **PENALTY,
        **LIMIT,
        "network": [callable, None],
        "network_params": [dict, None],
    }

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: FBT001, FBT002
        """Return the settings; if `deep`, also each entry of `network_params` as a setting.

        Parameters
        ----------
        deep : bool, default True

        Returns
        -------
        params : dict
        """
        params: dict[str, Any] = super().get_params(deep)
        single = self.network_params if deep and isinstance(self.network_params, dict) else {}
        return params | {f"{_PREFIX}{name}": value for name, value in single.items()}

    def set_params(self, **params: Any) -> Any:
        """Change settings; ``network_params__width=32`` changes one entry of `network_params`.

        Parameters
        ----------
        **params
            The new values.

        Returns
        -------
        self : estimator
        """
        single = {name: params.pop(name) for name in list(params) if name.startswith(_PREFIX)}
        super().set_params(**params)
        if single:
            changed = {name.removeprefix(_PREFIX): value for name, value in single.items()}
            self.network_params = {**(self.network_params or {}), **changed}
        return self

    @property
    def network_(self) -> Layer:
        """The network, on its device."""
        check_is_fitted(self)
        return self._network

    def _make_network(
        self, sizes: Sizes, rng: np.random.RandomState, dtype: str, place: Backend
    ) -> Layer:
        make = perceptron if self.network is None else self.network
        name = type(self).__name__
        if isinstance(make, Layer):
            raise InvalidParameterError(
                f"{name}: network must be a function that makes a network from the shape of a "
                "sample and the number of outputs, since each fit begins with a new one; got "
                f"the network {make!r}"
            )
        settings = dict(self.network_params or {})
        if not all(isinstance(key, str) for key in settings):
            raise InvalidParameterError(
                f"{name}: network_params must be a dict from names to values, got {shown(settings)}"
            )
        if _takes_rng(make):
            settings.setdefault("rng", generator(rng))
        # A copy, as the function may return the same network every time.
        network = copy.deepcopy(make(sizes.inputs, sizes.outputs, **settings))
        if not isinstance(network, Layer):
            raise InvalidParameterError(
                f"{name}: network must return a gpunn layer, such as gpunn.Sequential; it "
                f"returned {type(network).__name__}"
            )
        if not network.parameters():
            raise InvalidParameterError(f"{name}: {network!r} has no parameters to train")
        network.to(place, dtype=dtype)
        outputs = network.output_shape(sizes.inputs)
        if outputs != (sizes.outputs,):
            raise InvalidParameterError(
                f"{name}: for samples of shape {sizes.inputs} the network must have outputs of "
                f"shape {(sizes.outputs,)}, one for each class (one for two classes) or number; "
                f"it has {outputs}"
            )
        self._sample_shape = sizes.inputs
        return network

    def _structure(self) -> Iterator[tuple[str, Any]]:
        yield "network", self.network
        yield "network_params", dict(self.network_params or {})
        yield "loss", self.loss

    def _x_checks(self, X: Any) -> dict[str, Any]:
        return super()._x_checks(X) | {"allow_nd": True}

    def _check_sample_shape(self, shape: Shape) -> None:
        if shape != self._sample_shape:
            raise ValueError(
                f"{type(self).__name__}: the network was made for samples of shape "
                f"{self._sample_shape}, and those of X have shape {shape}"
            )

    def _is_random(self) -> bool:
        return True  # it may be

    def __sklearn_tags__(self) -> Any:
        """Return the capabilities that scikit-learn checks."""
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _takes_rng(make: Callable[..., Any]) -> bool:
    """Return whether a function takes the keyword `rng`."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # some are written in C
        return False
    kinds = {parameter.kind for parameter in parameters.values()}
    return "rng" in parameters or inspect.Parameter.VAR_KEYWORD in kinds
