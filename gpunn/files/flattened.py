"""Find the layers whose features are flattened images: there the order of features differs.

In gpunn, `Flatten` flattens images (H, W, C); libraries whose images are (C, H, W) get the features
in another order, and the weights of the dense layer that follows are ordered accordingly.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gpunn.errors import FileError
from gpunn.nn.activation import Activation
from gpunn.nn.batch_norm import BatchNorm
from gpunn.nn.containers import Parallel, Residual
from gpunn.nn.convolution import Convolution
from gpunn.nn.dense import Dense
from gpunn.nn.dropout import Dropout
from gpunn.nn.norm import GroupNorm, LayerNorm, RMSNorm
from gpunn.nn.pooling import GlobalPool, Pool
from gpunn.nn.prelu import PReLU
from gpunn.nn.shape import Flatten, Reshape
from gpunn.nn.tree import Node, children


class Channels(NamedTuple):
    """The channels of the images that a layer's inputs and outputs stand for; 1 if none."""

    inputs: int = 1
    outputs: int = 1


class _Flow(NamedTuple):
    """The kind of data that one layer passes to the next.

    Attributes
    ----------
    kind : str
        "images"; "rows", features that may be flattened images; "unflattened", rows that were
        reshaped to more axes, perhaps to images; or "other".
    channels : int
        The number of channels of the images, also of flattened ones; 1 if there are none.
    since : tuple of Layer
        The last dense layer, and the layers after it that have parameters per feature.
    """

    kind: str = "other"
    channels: int = 1
    since: tuple[Any, ...] = ()


#: Layers that treat all entries of an array alike.
_ELEMENTWISE = (Activation, Dropout)
#: Layers with parameters for each feature.
_PER_FEATURE = (BatchNorm, LayerNorm, RMSNorm, GroupNorm, PReLU)


def channels_of(model: Any, origin: str) -> dict[int, Channels]:
    """Return the channels of the images that the features of layers stand for, by layer id.

    Outputs are followed from layer to layer through `Sequential`, `Residual` and `Parallel`; the
    layers within a layer of another class are assumed to run in the order of its attributes. Layers
    that are not in the result have their features in the same order in both libraries.

    Raises
    ------
    FileError
        If the order cannot be determined.
    """
    marks = _Marks(origin, {}, set())
    _follow(model, _Flow(), marks)
    return marks.found


class _Marks(NamedTuple):
    """The other library's name, the result so far, and the layers being walked through."""

    origin: str
    found: dict[int, Channels]
    within: set[int]

    def inputs(self, layer: Any, features: int, channels: int) -> None:
        """Note that a layer's input features are flattened images with so many channels."""
        if features % channels:
            raise self.unclear(
                layer, f"{features} features cannot be images of {channels} channels"
            )
        before = self.found.get(id(layer))
        if before is not None and before.inputs != channels:
            raise self.unclear(layer, "it is used in two places")
        self.found[id(layer)] = Channels(channels, 1 if before is None else before.outputs)

    def outputs(self, layer: Any, channels: int) -> None:
        """Note that a layer's outputs are reshaped to images with so many channels."""
        before = self.found.get(id(layer), Channels())
        if before.outputs not in (1, channels):
            raise self.unclear(layer, "it is used in two places")
        self.found[id(layer)] = before._replace(outputs=channels)

    def unclear(self, layer: Any, why: str) -> FileError:
        """Return the error for features whose order cannot be determined."""
        return FileError(
            f"{layer!r}: its features are images, which {self.origin} flattens in another order; "
            f"that order cannot be determined: {why}. Rearrange the weights by hand, and load them "
            "with layout='gpunn'"
        )


def _follow(layer: Any, flow: _Flow, marks: _Marks) -> _Flow:  # noqa: PLR0911 (one per kind)
    """Return the flow after a layer; mark the layer and those within it."""
    if isinstance(layer, _ELEMENTWISE):
        return flow
    if isinstance(layer, (Convolution, Pool, GlobalPool)):
        return _through_images(layer, flow, marks)
    if isinstance(layer, (Flatten, Reshape)):
        return _through_reshape(layer, flow, marks)
    if isinstance(layer, Dense):
        return _through_dense(layer, flow, marks)
    if isinstance(layer, _PER_FEATURE):
        return _through_features(layer, flow, marks)
    if isinstance(layer, Parallel):
        return _through_parallel(
            layer, [_follow(inner, flow, marks) for inner in layer.layers], marks
        )
    if isinstance(layer, Residual) and flow.kind == "rows" and flow.channels > 1:
        raise marks.unclear(layer, "it adds flattened images to its output")
    return _through_parts(layer, flow, marks)


def _through_parts(layer: Any, flow: _Flow, marks: _Marks) -> _Flow:
    """Return the flow after all layers within a layer, a list, a tuple or a dict."""
    if id(layer) in marks.within:
        return flow
    marks.within.add(id(layer))
    for _, inner in children(layer):
        if isinstance(inner, (Node, list, tuple, dict)):
            flow = _follow(inner, flow, marks)
    marks.within.discard(id(layer))
    return flow


def _through_images(layer: Any, flow: _Flow, marks: _Marks) -> _Flow:
    _confirm(flow, marks)
    if isinstance(layer, GlobalPool):
        return _Flow("rows")
    return _Flow("images", layer.out_channels if isinstance(layer, Convolution) else flow.channels)


def _confirm(flow: _Flow, marks: _Marks) -> None:
    """Note that unflattened rows are images: the layers that returned them order features so."""
    if flow.kind == "unflattened" and flow.channels > 1:
        for layer in flow.since:
            marks.outputs(layer, flow.channels)


def _through_reshape(layer: Any, flow: _Flow, marks: _Marks) -> _Flow:
    if isinstance(layer, Flatten) or len(layer.shape) == 1:
        return _Flow("rows", flow.channels if flow.kind == "images" else 1, flow.since)
    if flow.kind != "rows":
        return _Flow()
    if flow.channels not in (1, layer.shape[-1]):
        raise marks.unclear(layer, f"they had {flow.channels} channels")
    return _Flow("images" if flow.channels > 1 else "unflattened", layer.shape[-1], flow.since)


def _through_dense(layer: Dense, flow: _Flow, marks: _Marks) -> _Flow:
    if flow.kind == "images":  # applied to each pixel, so channels come last in both libraries
        return _Flow()
    marks.inputs(layer, layer.in_features, flow.channels if flow.kind == "rows" else 1)
    return _Flow("rows", 1, (layer,))


def _through_features(layer: Any, flow: _Flow, marks: _Marks) -> _Flow:
    if flow.kind == "unflattened" and isinstance(layer, (BatchNorm, GroupNorm)):
        _confirm(flow, marks)
        return _Flow("images", flow.channels)
    features = layer.channels if isinstance(layer, GroupNorm) else layer.features
    if flow.kind != "rows" or features == 1:
        return flow
    if isinstance(layer, GroupNorm) and flow.channels > 1:
        raise marks.unclear(layer, "its groups are of neighbouring features")
    marks.inputs(layer, features, flow.channels)
    return flow._replace(since=(*flow.since, layer))


def _through_parallel(layer: Parallel, flows: list[_Flow], marks: _Marks) -> _Flow:
    kinds, channels = {flow.kind for flow in flows}, [flow.channels for flow in flows]
    if kinds == {"images"}:
        return _Flow("images", sum(channels) if layer.join == "concatenate" else channels[0])
    if "rows" in kinds and max(channels) > 1 and len(flows) > 1:
        raise marks.unclear(layer, "it joins flattened images")
    return _Flow("rows", max(channels)) if kinds == {"rows"} else _Flow()
