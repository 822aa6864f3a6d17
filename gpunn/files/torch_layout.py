"""How PyTorch names and lays out the arrays of layers that gpunn also has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from gpunn.arrays.checks import shown
from gpunn.errors import SettingError
from gpunn.files.flattened import Channels
from gpunn.files.rearranged import Rearranged, filters, matrix, vector
from gpunn.nn.attention import MultiHeadAttention
from gpunn.nn.batch_norm import BatchNorm
from gpunn.nn.convolution import Convolution
from gpunn.nn.dense import Dense
from gpunn.nn.norm import Norm
from gpunn.nn.parameter import Held
from gpunn.nn.prelu import PReLU
from gpunn.nn.tree import children

#: The user's mapping from names in the model to names in the file.
Names: TypeAlias = "Mapping[str, str] | Callable[[str], str] | None"

#: Names within a layer, where they differ.
_RENAMED: dict[type, dict[str, str]] = {
    Norm: {"gain": "weight"},
    BatchNorm: {"running_variance": "running_var"},
    PReLU: {"slope": "weight"},
    MultiHeadAttention: {
        "projection.weight": "in_proj_weight",
        "projection.bias": "in_proj_bias",
        "output.weight": "out_proj.weight",
        "output.bias": "out_proj.bias",
    },
}

#: The counter that PyTorch keeps beside a batch norm's statistics; gpunn has none.
_BATCH_COUNT = "num_batches_tracked"


class TorchLayout:
    """PyTorch's names and layouts for the arrays of a model.

    Parameters
    ----------
    model : Layer
    channels : mapping from int to Channels
        See `channels_of`.

    Attributes
    ----------
    names : dict from str to str
        From gpunn's dotted name to PyTorch's, where they differ: in their last parts.
    layouts : dict from int to Rearranged
        By the id of a parameter or buffer, where the layouts differ.
    """

    def __init__(self, model: Any, channels: Mapping[int, Channels]) -> None:
        self.names: dict[str, str] = {}
        self.layouts: dict[int, Rearranged] = {}
        self._channels = channels
        self._walk(model, "", set())

    def _walk(self, value: Any, prefix: str, seen: set[int]) -> None:
        for kind, renamed in _RENAMED.items():
            if isinstance(value, kind):
                self.names.update(
                    {prefix + ours: prefix + theirs for ours, theirs in renamed.items()}
                )
        self._lay_out(value, self._channels.get(id(value), Channels()))
        for name, item in children(value):
            if id(item) not in seen:
                seen.add(id(item))
                self._walk(item, f"{prefix}{name}.", seen)

    def _lay_out(self, layer: Any, channels: Channels) -> None:
        """Note the layouts of a layer's own arrays."""
        if isinstance(layer, Convolution):
            weight = layer.weight
            self.layouts[id(weight)] = filters(tuple(weight.value.shape), layer.axes)
        elif isinstance(layer, Dense):
            weight = layer.weight
            self.layouts[id(weight)] = matrix(tuple(weight.value.shape), *channels)
        if channels == Channels():
            return
        # Layers other than Dense have the same features in their inputs and outputs.
        n_channels = channels.outputs if isinstance(layer, Dense) else max(channels)
        for item in [*vars(layer).values()]:
            if isinstance(item, Held) and item.value.ndim == 1:
                self.layouts[id(item)] = vector(tuple(item.value.shape), n_channels)

    @staticmethod
    def ignored(theirs: Mapping[str, str]) -> set[str]:
        """Return the names of the batch counters that PyTorch keeps beside running statistics."""
        suffix = "running_var"
        variances = [name for name in theirs.values() if name.endswith(suffix)]
        return {name.removesuffix(suffix) + _BATCH_COUNT for name in variances}


def file_names(
    owner: str, ours: Iterable[str], translated: Mapping[str, str], names: Names
) -> dict[str, str]:
    """Return the name in the file for each name of the model.

    Parameters
    ----------
    owner : str
        The function named in errors.
    ours : iterable of str
        The names in the model.
    translated : mapping from str to str
        The layout's own names, where they differ.
    names : mapping, function or None
        The user's mapping from the layout's names; a key may also name a layer.

    Raises
    ------
    SettingError
        If `names` is of another type, has a key that the model lacks, or gives a value that is not
        a string.
    """
    usual = {name: translated.get(name, name) for name in ours}
    if names is None:
        return usual
    if isinstance(names, Mapping):
        unknown = [key for key in names if not any(_within(name, key) for name in usual.values())]
        if unknown:
            raise SettingError(
                f"{owner}: names has {shown(unknown[0])}, and the model has no such array or "
                f"layer; it has {', '.join([*usual.values()][:10])}"
            )
    elif not callable(names):
        raise SettingError(f"{owner}: names must be a dict or a function, got {shown(names)}")
    found = {name: _map_name(theirs, names) for name, theirs in usual.items()}
    wrong = [name for name, theirs in found.items() if not isinstance(theirs, str)]
    if wrong:
        given = f"{shown(found[wrong[0]])} for {wrong[0]}"
        raise SettingError(f"{owner}: names gives {given}; expected a string")
    return found


def _within(name: str, key: Any) -> bool:
    """Return whether a key is an array's name, or the name of a layer that contains it."""
    return isinstance(key, str) and (name == key or name.startswith(f"{key}."))


def _map_name(name: str, names: Mapping[str, str] | Callable[[str], str]) -> str:
    """Return the user's name for a name: by the longest matching key, or by the function."""
    if not isinstance(names, Mapping):
        return names(name)
    keys = [key for key in names if _within(name, key)]
    if not keys:
        return name
    longest = max(keys, key=len)
    value = names[longest]
    return value + name[len(longest) :] if isinstance(value, str) else value
