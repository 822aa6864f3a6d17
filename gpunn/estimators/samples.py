"""The samples of an estimator, and the split into training and held-out data."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from array_api_compat import device
from sklearn.model_selection import train_test_split

from gpunn.arrays.backend import scope_of
from gpunn.errors import DTypeError
from gpunn.estimators.origin import namespace_of


class Samples(NamedTuple):
    """Features, targets as the loss expects them, and weights on the host or None."""

    x: Any
    y: Any
    weight: Any = None


def check_unmasked(name: str, **arrays: Any) -> None:
    """Check that no array has masked entries, whose underlying numbers scikit-learn would use.

    Raises
    ------
    DTypeError
        If an entry is masked.
    """
    for which, x in arrays.items():
        if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
            raise DTypeError(
                f"{name}: {which} has masked entries; fill the gaps first, e.g. {which}.filled(0)"
            )


def given_validation(name: str, X: Any, y: Any, weight: Any) -> Samples | None:
    """Return the validation data given to `fit`, if any."""
    if X is None and y is None and weight is None:
        return None
    if X is None or y is None:
        raise ValueError(f"{name}.fit: X_val and y_val go together; give both or none")
    return Samples(X, y, weight)


def split(
    samples: Samples, fraction: float, rng: np.random.RandomState, *, stratify: bool
) -> tuple[Samples, Samples]:
    """Return the samples for training and the held-out share.

    Samples of weight zero are in neither: in bagging, for example, they count as absent.
    """
    rows = np.arange(samples.x.shape[0])
    if samples.weight is not None:
        rows = rows[samples.weight > 0]
    too_small = ValueError(
        "The validation set is too small. Increase 'validation_fraction' "
        "or the size of your dataset."
    )
    if len(rows) < 2:
        raise too_small
    # bool, as in scikit-learn, whose messages name the classes.
    classes = samples.y[rows] > 0.5 if stratify else np.zeros(0, bool)
    counts = np.unique(classes, return_counts=True)[1]
    n_held_out, n_classes = math.ceil(fraction * len(rows)), len(counts)
    if n_held_out < n_classes and counts.min() > 1:  # otherwise scikit-learn explains the error
        counted = "samples" if samples.weight is None else "samples of a weight above 0"
        raise ValueError(
            f"The validation set is too small: early stopping holds out {n_held_out} of "
            f"{len(rows)} {counted}, and needs one of each of the {n_classes} classes; raise "
            f"validation_fraction (now {fraction:g}), or give more samples"
        )
    train, held_out = train_test_split(
        rows,
        random_state=rng,
        test_size=fraction,
        stratify=classes if stratify else None,
    )
    if len(held_out) < 2:
        raise too_small
    kept, held = (Samples(*(_rows(x, some) for x in samples)) for some in (train, held_out))
    return kept, held


def _rows(x: Any, rows: Any) -> Any:
    """Return rows of an array in any library, of a sparse matrix, or of None."""
    if x is None:
        return None
    if isinstance(x, np.ndarray) or hasattr(x, "toarray"):
        return x[rows]
    xp = namespace_of(x)
    with scope_of(x):
        return xp.take(x, xp.asarray(rows, device=device(x)), axis=0)
