"""Estimators of dense layers, with their weights as attributes."""

from __future__ import annotations

from typing import Any

from sklearn.utils.validation import check_is_fitted

from gpunn.estimators.base import NetworkEstimator
from gpunn.estimators.network import dense_layers
from gpunn.estimators.weights import Weights
from gpunn.nn.containers import Sequential


class LayeredNetwork(NetworkEstimator):
    """An estimator whose network is a sequence of dense layers."""

    _network: Sequential

    @property
    def coefs_(self) -> list[Any]:
        """The weights of each layer, (inputs, outputs), in the library of X.

        Assigning an entry, or the whole list, writes to the network. So does writing into an array
        in place, if X is in the library and on the device of the network. Otherwise the arrays are
        copies: read-only on NumPy, while writes to copies in other libraries have no effect.
        """
        return self._weights("coefs_", [layer.weight for layer in self._layers()])

    @coefs_.setter
    def coefs_(self, values: Any) -> None:
        self._weights("coefs_", [layer.weight for layer in self._layers()]).replace(values)

    @property
    def intercepts_(self) -> list[Any]:
        """The biases of each layer, (outputs,), in the library of X; see `coefs_`."""
        return self._weights("intercepts_", [layer.bias for layer in self._layers() if layer.bias])

    @intercepts_.setter
    def intercepts_(self, values: Any) -> None:
        biases = [layer.bias for layer in self._layers() if layer.bias]
        self._weights("intercepts_", biases).replace(values)

    def _weights(self, name: str, parameters: list[Any]) -> Weights:
        return Weights(f"{type(self).__name__}: {name}", parameters, self._given)

    @property
    def n_layers_(self) -> int:
        """The number of layers, including the input layer."""
        return len(self._layers()) + 1

    def _layers(self) -> list[Any]:
        check_is_fitted(self)
        return dense_layers(self._network)
