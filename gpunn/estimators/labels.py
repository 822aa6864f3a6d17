"""Class labels, and the targets and outputs that represent them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from array_api_compat import is_array_api_obj
from scipy.sparse import csr_array, csr_matrix, issparse, isspmatrix
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from gpunn._typing import Array
from gpunn.arrays.backend import scope_of
from gpunn.arrays.checks import shown
from gpunn.arrays.exchange import to_numpy
from gpunn.arrays.streams import finished
from gpunn.estimators.origin import HOST, Origin, namespace_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

Kind = Literal["binary", "multiclass", "multilabel"]


class Labels:
    """The classes of a problem, in order.

    With two classes the network has one output, the logit of the second. With more, or if
    `several`, it has one output per class. With several labels per sample, each label has its own
    yes-or-no output.

    Attributes
    ----------
    kind : {"binary", "multiclass", "multilabel"}
        How outputs represent labels.
    classes : ndarray of shape (K,)
        The labels, ascending, on the host: labels are checked before they go to a device.
    origin : Origin
        The library and device of the user's labels.
    sparse : type or None
        The SciPy class of predictions of several labels; None for dense arrays.
    """

    sparse: Any = None

    def __init__(
        self, classes: NDArray[Any], kind: Kind, origin: Origin, sparse: Any = None
    ) -> None:
        self.classes = classes
        self.kind = kind
        self.origin = origin
        self.sparse = sparse

    @classmethod
    def of(cls, y: Any, *, several: bool = False) -> Labels:
        """Return the labels that occur in y, (N,) or (N, K) of zeros and ones."""
        sparse = _rows_like(y) if issparse(y) else None
        origin, y = Origin.of_labels(y), as_labels(y)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multilabel-indicator":
            return cls(np.arange(y.shape[1]), "multilabel", origin, sparse)
        if kind == "multiclass-multioutput":
            raise ValueError(
                "y has several columns of more than two classes; train a model for each column "
                "(sklearn.multioutput.MultiOutputClassifier), or make a column of each label"
            )
        return cls(*_distinct(y, several=several), origin)

    @classmethod
    def among(cls, classes: Any, *, several: bool = False) -> Labels:
        """Return the possible labels, given in any order and with repetitions."""
        return cls(*_distinct(to_numpy(classes), several=several), Origin.of_labels(classes))

    @property
    def given(self) -> Any:
        """The classes in the library of the user's labels; strings in NumPy."""
        return in_library(self.classes, self.origin)

    @property
    def n_outputs(self) -> int:
        """The number of outputs."""
        return 1 if self.kind == "binary" else len(self.classes)

    def encode(self, y: NDArray[Any], dtype: str, *, one_hot: bool = False) -> NDArray[Any]:
        """Return targets: integers (N,) if the classes exclude each other, else 0.0 and 1.0.

        With `one_hot`, always zeros and ones.

        Raises
        ------
        ValueError
            If y has a label that is not among the classes.
        """
        if self.kind == "multilabel":
            if y.ndim != 2 or y.shape[1] != len(self.classes):
                raise ValueError(
                    f"y must have {len(self.classes)} columns of zeros and ones, one a label, "
                    f"got shape {y.shape}"
                )
            if not ((y == 0) | (y == 1)).all():
                raise ValueError(
                    f"y must have {len(self.classes)} columns of zeros and ones, one a label; it "
                    "has other values"
                )
            return y.astype(dtype)
        if y.ndim != 1:
            raise ValueError(
                f"y must have one label a sample, as in the first call; got shape {y.shape}"
            )
        codes = self.places(y)
        if self.kind == "binary":
            return codes.astype(dtype)[:, None]
        return np.eye(len(self.classes), dtype=dtype)[codes] if one_hot else codes.astype(np.int64)

    def places(self, y: NDArray[Any]) -> NDArray[Any]:
        """Return the index of each label of y (N,) in the classes.

        Raises
        ------
        ValueError
            If y has a label that is not among them.
        """
        try:
            codes = np.searchsorted(self.classes, y).clip(0, len(self.classes) - 1)
        except TypeError as error:  # numbers among strings
            raise ValueError(self._unknown(y)) from error
        if (self.classes[codes] != y).any():
            raise ValueError(self._unknown(y))
        return codes

    def _unknown(self, y: NDArray[Any]) -> str:
        known = self.classes.tolist()
        strange = [label for label in dict.fromkeys(y.tolist()) if label not in known]
        with suppress(TypeError):
            strange.sort()
        return f"y has classes that were not there before: {strange[:5]}; known are {known}"

    def codes(self, outputs: Array, threshold: float) -> Array:
        """Return the predicted class indices, or zeros and ones, on the device of the outputs."""
        xp = namespace_of(outputs)
        if self.kind == "multiclass":
            return xp.argmax(outputs, axis=1)
        answers = xp.astype(outputs > threshold, xp.int64)
        if self.kind == "multilabel":
            return answers
        return answers[:, 0] * (len(self.classes) - 1)  # a single class is always predicted

    def decode(self, codes: Array, origin: Origin) -> Any:
        """Return the labels of codes, in the library that `origin` names; strings in NumPy.

        Indicators of several labels are sparse on the host, if they were in `fit`.
        """
        if self.kind == "multilabel":
            to_sparse = self.sparse if origin == HOST else None
            return origin.give(codes) if to_sparse is None else to_sparse(to_numpy(codes))
        if _is_text(self.classes):
            return self.classes[to_numpy(codes)]
        classes = origin.give(self.classes)
        with scope_of(classes):
            return finished(namespace_of(classes).take(classes, origin.give(codes)))


def _rows_like(y: Any) -> Any:
    """Return SciPy's CSR class for a sparse array or matrix."""
    return csr_matrix if isspmatrix(y) else csr_array


def _distinct(y: NDArray[Any], *, several: bool) -> tuple[NDArray[Any], Kind]:
    """Return the labels in y, ascending, and how outputs represent them."""
    classes = np.unique(y)
    return classes, "multiclass" if several or len(classes) > 2 else "binary"


def in_library(classes: NDArray[Any], origin: Origin) -> Any:
    """Return classes in the library of `origin`; strings in NumPy."""
    return classes if _is_text(classes) else origin.give(classes)


def converted(x: Any, convert: Callable[[Any], Any]) -> Any:
    """Return an array converted by `convert`, or an array of strings unchanged."""
    return x if _is_text(x) else convert(x)


def _is_text(x: Any) -> bool:
    """Return whether an array has a dtype that only NumPy supports."""
    return isinstance(x, np.ndarray) and x.dtype.kind not in "biuf"


def as_labels(y: Any) -> NDArray[Any]:
    """Return labels on the host as a dense array; a single column becomes (N,)."""
    y = y.toarray() if hasattr(y, "toarray") else to_numpy(y)
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y


def readable(y: Any) -> Any:
    """Convert labels of NumPy's variable-width strings to plain strings.

    scikit-learn does not recognise such labels.
    """
    if not isinstance(y, np.ndarray) or y.dtype.kind != "T":
        return y
    labels = y.ravel().tolist()
    if not all(isinstance(label, str) for label in labels):
        raise ValueError("y has missing values; leave those samples out")
    return np.array(labels, dtype=str).reshape(y.shape)


def known_classes(name: str, values: Any) -> NDArray[Any]:
    """Return the labels that a user listed, sorted and unique.

    Raises
    ------
    ValueError
        If they are not a list, array or set of labels, or contain a missing value.
    """
    wanted = f"{name} must be a list of labels, such as [0, 1], got {shown(values)}"
    if isinstance(values, (set, frozenset)):
        values = list(values)
    elif is_array_api_obj(values):  # the standard defines no len() of arrays
        values = to_numpy(values)
    if isinstance(values, (str, bytes, Mapping)) or not hasattr(values, "__len__"):
        raise ValueError(wanted)
    if isinstance(values, (list, tuple)) and len({_kind_of(label) for label in values}) > 1:
        raise ValueError(f"{wanted}; labels must be of one kind")
    labels = to_numpy(readable(values))
    if labels.ndim != 1 or not len(labels):
        raise ValueError(wanted)
    try:
        labels = np.unique(labels)
    except TypeError as error:
        raise ValueError(f"{wanted}, which cannot be put in order: {error}") from error
    if any(label is None or label != label for label in labels.tolist()):  # noqa: PLR0124 (NaN)
        raise ValueError(f"{wanted}, with a missing value")
    return labels


def _kind_of(label: Any) -> type:
    """Return str, bytes or object; NumPy would turn numbers among strings into strings."""
    return next((kind for kind in (str, bytes) if isinstance(label, kind)), object)


def ascending(name: str, values: Any, known: Labels | None) -> NDArray[Any]:
    """Return classes as an array; check that they can replace the known ones.

    Raises
    ------
    ValueError
        If they differ in number, or are not in order.
    """
    classes = known_classes(name, values)
    if not np.array_equal(to_numpy(readable(values)), classes):
        raise ValueError(
            f"{name} must be labels in ascending order, each once, got {shown(values)}; put the "
            "weights of the outputs in the same order"
        )
    if known is None:
        return classes
    if known.kind == "multilabel" and not np.array_equal(classes, known.classes):
        raise ValueError(f"{name} are the indices of the columns of y, got {shown(values)}")
    if len(classes) != len(known.classes):
        raise ValueError(
            f"{name} must be {len(known.classes)} labels, as the network has, got {len(classes)}"
        )
    return classes
