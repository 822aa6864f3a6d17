"""Suggestions for names that gpunn does not have."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

#: What PyTorch, Keras and scikit-learn call some of the public names.
_CALLED_ELSEWHERE = {
    "Linear": "Dense",
    "MSELoss": "MeanSquaredError",
    "L1Loss": "MeanAbsoluteError",
    "HuberLoss": "Huber",
    "CrossEntropyLoss": "SoftmaxCrossEntropy",
    "BCEWithLogitsLoss": "BinaryCrossEntropy",
    "BCELoss": "BinaryCrossEntropy",
    "KLDivLoss": "KLDivergence",
    "PoissonNLLLoss": "Poisson",
    "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm",
    "AvgPool2d": "AveragePool2d",
    "MultiheadAttention": "MultiHeadAttention",
    "Module": "Layer",
    "DataLoader": "Loader",
    "BatchNormalization": "BatchNorm",
    "LayerNormalization": "LayerNorm",
    "MaxPooling2D": "MaxPool2d",
    "AveragePooling2D": "AveragePool2d",
    "Model": "Layer",
    **{
        name: f"gpunn.estimators.{name}"
        for name in ("MLPClassifier", "MLPRegressor", "LogisticRegression")
    },
}


def hint(name: str, public: Sequence[str]) -> str:
    """Return a suggestion of a public name that is similar, or that means the same elsewhere."""
    if name in _CALLED_ELSEWHERE:
        return f"; did you mean {_CALLED_ELSEWHERE[name]}?"
    initials = [each for each in public if "".join(filter(str.isupper, each)) == name.upper()]
    near = initials if len(name) > 1 else []
    by_lower = {each.lower(): each for each in public}
    near = near or [by_lower[n] for n in difflib.get_close_matches(name.lower(), by_lower, 1)]
    return f"; did you mean {near[0]}?" if near else ""
