"""Networks as scikit-learn estimators, for its pipelines and searches.

They need scikit-learn, which `import gpunn` does not::

    from gpunn.estimators import MLPClassifier
"""

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise ImportError(
        'gpunn.estimators needs scikit-learn, 1.7 or newer: pip install "scikit-learn>=1.7"'
    ) from error

from gpunn.estimators.classifier import MLPClassifier
from gpunn.estimators.logistic import LogisticRegression
from gpunn.estimators.network_classifier import NetworkClassifier
from gpunn.estimators.network_regressor import NetworkRegressor
from gpunn.estimators.regressor import MLPRegressor

__all__ = [
    "LogisticRegression",
    "MLPClassifier",
    "MLPRegressor",
    "NetworkClassifier",
    "NetworkRegressor",
]
