"""Backpropagation written once, against the Python Array API standard, on NumPy or CuPy.

Start with `Sequential`, `Dense`, a loss, `SGD`, `Loader` and `Trainer`; `get_backend` chooses
between the CPU and a GPU.
"""

from gpunn import errors
from gpunn.arrays.backend import Backend, backend_of, get_backend, use
from gpunn.arrays.exchange import to_numpy
from gpunn.data.batch import Batch
from gpunn.data.loader import Loader
from gpunn.files.weights import LoadReport, load, save
from gpunn.losses.base import Loss
from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
from gpunn.losses.cross_entropy import CrossEntropy, SoftmaxCrossEntropy
from gpunn.losses.logistic import logistic_regression
from gpunn.losses.squared_error import MeanSquaredError
from gpunn.nn import init
from gpunn.nn.activation import (
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
from gpunn.nn.activation_names import ACTIVATIONS
from gpunn.nn.containers import Residual, Sequential
from gpunn.nn.dense import Dense
from gpunn.nn.dropout import Dropout
from gpunn.nn.layer import Layer
from gpunn.nn.parameter import Buffer, Parameter
from gpunn.nn.shape import Flatten
from gpunn.nn.tape import Tape
from gpunn.optim import schedules
from gpunn.optim.adam import Adam
from gpunn.optim.base import Optimizer
from gpunn.optim.schedules import (
    Constant,
    Cosine,
    ExponentialDecay,
    ReduceOnPlateau,
    Schedule,
    StepDecay,
    WarmUp,
)
from gpunn.optim.sgd import SGD
from gpunn.tools.gradcheck import GradientReport, check_gradients
from gpunn.training.history import History
from gpunn.training.metrics import MAE, R2, Accuracy, BinaryAccuracy, Metric, TopK
from gpunn.training.step import train_step
from gpunn.training.stopping import EarlyStopping
from gpunn.training.trainer import Trainer

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
