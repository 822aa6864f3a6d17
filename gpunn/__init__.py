"""Backpropagation written once, against the Python Array API standard, on NumPy or CuPy.

Start with `Sequential`, `Dense`, a loss, `SGD`, `Loader` and `Trainer`; `get_backend` chooses
between the CPU and a GPU.
"""

from gpunn import errors, init, schedules
from gpunn.adam import Adam
from gpunn.backend import Backend, backend_of, get_backend, to_numpy, use
from gpunn.data import Batch, Loader
from gpunn.gradcheck import GradientReport, check_gradients
from gpunn.history import History
from gpunn.layer import Layer
from gpunn.layers.activation import (
    ACTIVATIONS,
    ELU,
    GELU,
    Activation,
    Identity,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    Sigmoid,
    SiLU,
    Softmax,
    Softplus,
    Tanh,
)
from gpunn.layers.compose import Residual, Sequential
from gpunn.layers.dense import Dense
from gpunn.layers.dropout import Dropout
from gpunn.layers.shape import Flatten
from gpunn.logistic import logistic_regression
from gpunn.loss import Loss
from gpunn.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    MeanSquaredError,
    SoftmaxCrossEntropy,
)
from gpunn.metrics import MAE, R2, Accuracy, BinaryAccuracy, Metric, TopK
from gpunn.optim import Optimizer
from gpunn.parameter import Buffer, Parameter
from gpunn.schedules import (
    Constant,
    Cosine,
    ExponentialDecay,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    WarmUp,
)
from gpunn.sgd import SGD
from gpunn.state import LoadReport, load, save
from gpunn.step import train_step
from gpunn.stopping import EarlyStopping
from gpunn.tape import Tape
from gpunn.training import Trainer

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import `gpunn.estimators`, which needs scikit-learn, when it is first asked for."""
    if name == "estimators":
        import importlib  # noqa: PLC0415 (not needed to import gpunn)

        return importlib.import_module("gpunn.estimators")
    raise AttributeError(f"module 'gpunn' has no attribute {name!r}")


__all__ = [
    "ACTIVATIONS",
    "ELU",
    "GELU",
    "MAE",
    "R2",
    "SGD",
    "Accuracy",
    "Activation",
    "Adam",
    "Backend",
    "Batch",
    "BinaryAccuracy",
    "BinaryCrossEntropy",
    "Buffer",
    "Constant",
    "Cosine",
    "CrossEntropy",
    "Dense",
    "Dropout",
    "EarlyStopping",
    "ExponentialDecay",
    "Flatten",
    "GradientReport",
    "History",
    "Identity",
    "Layer",
    "LeakyReLU",
    "LoadReport",
    "Loader",
    "LogSoftmax",
    "Loss",
    "MeanSquaredError",
    "Metric",
    "Optimizer",
    "Parameter",
    "ReLU",
    "ReduceOnPlateau",
    "Residual",
    "Schedule",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Softplus",
    "StepDecay",
    "Tanh",
    "Tape",
    "TopK",
    "Trainer",
    "WarmUp",
    "backend_of",
    "check_gradients",
    "errors",
    "get_backend",
    "init",
    "load",
    "logistic_regression",
    "save",
    "schedules",
    "to_numpy",
    "train_step",
    "use",
]
