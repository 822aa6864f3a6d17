"""Backpropagation written once, against the Python Array API standard, on NumPy or CuPy.

Start with `Sequential`, `Dense`, a loss, `SGD`, `Loader` and `Trainer`; `get_backend` chooses
between the CPU and a GPU.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpunn import errors
    from gpunn.arrays.backend import Backend, backend_of, get_backend, use
    from gpunn.arrays.exchange import to_numpy
    from gpunn.data import datasets
    from gpunn.data.augment import Augment
    from gpunn.data.batch import Batch
    from gpunn.data.loader import Loader
    from gpunn.distributed.communicator import Communicator
    from gpunn.distributed.data_parallel import DataParallel
    from gpunn.distributed.engines import get_communicator
    from gpunn.files.onnx.export import export_onnx
    from gpunn.files.onnx.reading import import_onnx
    from gpunn.files.weights import LoadReport, load, save
    from gpunn.losses.base import Loss
    from gpunn.losses.binary_cross_entropy import BinaryCrossEntropy
    from gpunn.losses.cosine import CosineDistance
    from gpunn.losses.cross_entropy import CrossEntropy, SoftmaxCrossEntropy
    from gpunn.losses.divergence import KLDivergence
    from gpunn.losses.hinge import Hinge
    from gpunn.losses.logistic import logistic_regression
    from gpunn.losses.poisson import Poisson
    from gpunn.losses.robust import Huber, MeanAbsoluteError
    from gpunn.losses.sequence import SequenceCrossEntropy
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
    from gpunn.nn.activation_hard import Hardsigmoid, Hardswish, Hardtanh, ReLU6, Softshrink
    from gpunn.nn.activation_names import ACTIVATIONS
    from gpunn.nn.activation_smooth import CELU, SELU, LogSigmoid, Mish, Softsign
    from gpunn.nn.attention import MultiHeadAttention
    from gpunn.nn.batch_norm import BatchNorm
    from gpunn.nn.containers import Parallel, Residual, Sequential
    from gpunn.nn.convolution import Conv1d, Conv2d
    from gpunn.nn.dense import Dense
    from gpunn.nn.dropout import Dropout
    from gpunn.nn.embedding import Embedding, Position
    from gpunn.nn.layer import Layer
    from gpunn.nn.norm import GroupNorm, LayerNorm, RMSNorm
    from gpunn.nn.parameter import Buffer, Parameter
    from gpunn.nn.pooling import (
        AveragePool1d,
        AveragePool2d,
        GlobalAveragePool,
        GlobalMaxPool,
        MaxPool1d,
        MaxPool2d,
    )
    from gpunn.nn.prelu import PReLU
    from gpunn.nn.shape import Flatten, Reshape
    from gpunn.nn.tape import Tape
    from gpunn.nn.transposed import ConvTranspose2d
    from gpunn.optim import schedules
    from gpunn.optim.adagrad import Adagrad
    from gpunn.optim.adam import Adam
    from gpunn.optim.adamw import AdamW
    from gpunn.optim.average import WeightAverage
    from gpunn.optim.base import Optimizer
    from gpunn.optim.lion import Lion
    from gpunn.optim.rmsprop import RMSprop
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
    from gpunn.tools.plots import plot_confusion, plot_history, plot_weights
    from gpunn.training.checkpoint import Checkpoint
    from gpunn.training.history import History
    from gpunn.training.metrics import (
        MAE,
        R2,
        Accuracy,
        BinaryAccuracy,
        Metric,
        Perplexity,
        SequenceAccuracy,
        TopK,
    )
    from gpunn.training.step import train_step
    from gpunn.training.stopping import EarlyStopping
    from gpunn.training.trainer import Trainer

__version__ = "0.1.0"

#: The module of each public name. It is imported when the name is first used, so a program loads
#: only what it needs. Type checkers read the imports above.
_HOMES = {
    "ACTIVATIONS": "gpunn.nn.activation_names",
    "Accuracy": "gpunn.training.metrics",
    "Activation": "gpunn.nn.activation",
    "Adagrad": "gpunn.optim.adagrad",
    "Adam": "gpunn.optim.adam",
    "AdamW": "gpunn.optim.adamw",
    "Augment": "gpunn.data.augment",
    "AveragePool1d": "gpunn.nn.pooling",
    "AveragePool2d": "gpunn.nn.pooling",
    "Backend": "gpunn.arrays.backend",
    "Batch": "gpunn.data.batch",
    "BatchNorm": "gpunn.nn.batch_norm",
    "BinaryAccuracy": "gpunn.training.metrics",
    "BinaryCrossEntropy": "gpunn.losses.binary_cross_entropy",
    "Buffer": "gpunn.nn.parameter",
    "CELU": "gpunn.nn.activation_smooth",
    "Checkpoint": "gpunn.training.checkpoint",
    "Communicator": "gpunn.distributed.communicator",
    "Constant": "gpunn.optim.schedules",
    "Conv1d": "gpunn.nn.convolution",
    "Conv2d": "gpunn.nn.convolution",
    "ConvTranspose2d": "gpunn.nn.transposed",
    "Cosine": "gpunn.optim.schedules",
    "CosineDistance": "gpunn.losses.cosine",
    "CrossEntropy": "gpunn.losses.cross_entropy",
    "DataParallel": "gpunn.distributed.data_parallel",
    "Dense": "gpunn.nn.dense",
    "Dropout": "gpunn.nn.dropout",
    "ELU": "gpunn.nn.activation",
    "EarlyStopping": "gpunn.training.stopping",
    "Embedding": "gpunn.nn.embedding",
    "ExponentialDecay": "gpunn.optim.schedules",
    "Flatten": "gpunn.nn.shape",
    "GELU": "gpunn.nn.activation",
    "GlobalAveragePool": "gpunn.nn.pooling",
    "GlobalMaxPool": "gpunn.nn.pooling",
    "GradientReport": "gpunn.tools.gradcheck",
    "GroupNorm": "gpunn.nn.norm",
    "Hardsigmoid": "gpunn.nn.activation_hard",
    "Hardswish": "gpunn.nn.activation_hard",
    "Hardtanh": "gpunn.nn.activation_hard",
    "Hinge": "gpunn.losses.hinge",
    "History": "gpunn.training.history",
    "Huber": "gpunn.losses.robust",
    "Identity": "gpunn.nn.activation",
    "KLDivergence": "gpunn.losses.divergence",
    "Layer": "gpunn.nn.layer",
    "LayerNorm": "gpunn.nn.norm",
    "LeakyReLU": "gpunn.nn.activation",
    "Lion": "gpunn.optim.lion",
    "LoadReport": "gpunn.files.weights",
    "Loader": "gpunn.data.loader",
    "LogSigmoid": "gpunn.nn.activation_smooth",
    "LogSoftmax": "gpunn.nn.activation",
    "Loss": "gpunn.losses.base",
    "MAE": "gpunn.training.metrics",
    "MaxPool1d": "gpunn.nn.pooling",
    "MaxPool2d": "gpunn.nn.pooling",
    "MeanAbsoluteError": "gpunn.losses.robust",
    "MeanSquaredError": "gpunn.losses.squared_error",
    "Metric": "gpunn.training.metrics",
    "Mish": "gpunn.nn.activation_smooth",
    "MultiHeadAttention": "gpunn.nn.attention",
    "Optimizer": "gpunn.optim.base",
    "PReLU": "gpunn.nn.prelu",
    "Parallel": "gpunn.nn.containers",
    "Parameter": "gpunn.nn.parameter",
    "Perplexity": "gpunn.training.metrics",
    "Poisson": "gpunn.losses.poisson",
    "Position": "gpunn.nn.embedding",
    "R2": "gpunn.training.metrics",
    "RMSNorm": "gpunn.nn.norm",
    "RMSprop": "gpunn.optim.rmsprop",
    "ReLU": "gpunn.nn.activation",
    "ReLU6": "gpunn.nn.activation_hard",
    "ReduceOnPlateau": "gpunn.optim.schedules",
    "Reshape": "gpunn.nn.shape",
    "Residual": "gpunn.nn.containers",
    "SELU": "gpunn.nn.activation_smooth",
    "SGD": "gpunn.optim.sgd",
    "Schedule": "gpunn.optim.schedules",
    "SequenceAccuracy": "gpunn.training.metrics",
    "SequenceCrossEntropy": "gpunn.losses.sequence",
    "Sequential": "gpunn.nn.containers",
    "SiLU": "gpunn.nn.activation",
    "Sigmoid": "gpunn.nn.activation",
    "Softmax": "gpunn.nn.activation",
    "SoftmaxCrossEntropy": "gpunn.losses.cross_entropy",
    "Softplus": "gpunn.nn.activation",
    "Softshrink": "gpunn.nn.activation_hard",
    "Softsign": "gpunn.nn.activation_smooth",
    "StepDecay": "gpunn.optim.schedules",
    "Tanh": "gpunn.nn.activation",
    "Tape": "gpunn.nn.tape",
    "TopK": "gpunn.training.metrics",
    "Trainer": "gpunn.training.trainer",
    "WarmUp": "gpunn.optim.schedules",
    "WeightAverage": "gpunn.optim.average",
    "backend_of": "gpunn.arrays.backend",
    "check_gradients": "gpunn.tools.gradcheck",
    "datasets": "gpunn.data.datasets",
    "errors": "gpunn.errors",
    "estimators": "gpunn.estimators",  # needs scikit-learn
    "export_onnx": "gpunn.files.onnx.export",
    "get_backend": "gpunn.arrays.backend",
    "get_communicator": "gpunn.distributed.engines",
    "import_onnx": "gpunn.files.onnx.reading",
    "init": "gpunn.nn.init",
    "load": "gpunn.files.weights",
    "logistic_regression": "gpunn.losses.logistic",
    "plot_confusion": "gpunn.tools.plots",  # these need matplotlib
    "plot_history": "gpunn.tools.plots",
    "plot_weights": "gpunn.tools.plots",
    "save": "gpunn.files.weights",
    "schedules": "gpunn.optim.schedules",
    "to_numpy": "gpunn.arrays.exchange",
    "train_step": "gpunn.training.step",
    "use": "gpunn.arrays.backend",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        from gpunn.tools.names import hint  # noqa: PLC0415 (only an error needs it)

        raise AttributeError(f"module 'gpunn' has no attribute {name!r}{hint(name, __all__)}")
    import importlib  # noqa: PLC0415 (not needed to import gpunn)

    module = importlib.import_module(_HOMES[name])
    is_module = module.__name__.endswith(f".{name}")
    found = globals()[name] = module if is_module else getattr(module, name)
    return found


def __dir__() -> list[str]:
    """Return the names in the module, including those not yet imported."""
    return sorted({*globals(), *_HOMES})


__all__ = [
    "ACTIVATIONS",
    "CELU",
    "ELU",
    "GELU",
    "MAE",
    "R2",
    "SELU",
    "SGD",
    "Accuracy",
    "Activation",
    "Adagrad",
    "Adam",
    "AdamW",
    "Augment",
    "AveragePool1d",
    "AveragePool2d",
    "Backend",
    "Batch",
    "BatchNorm",
    "BinaryAccuracy",
    "BinaryCrossEntropy",
    "Buffer",
    "Checkpoint",
    "Communicator",
    "Constant",
    "Conv1d",
    "Conv2d",
    "ConvTranspose2d",
    "Cosine",
    "CosineDistance",
    "CrossEntropy",
    "DataParallel",
    "Dense",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "ExponentialDecay",
    "Flatten",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "GradientReport",
    "GroupNorm",
    "Hardsigmoid",
    "Hardswish",
    "Hardtanh",
    "Hinge",
    "History",
    "Huber",
    "Identity",
    "KLDivergence",
    "Layer",
    "LayerNorm",
    "LeakyReLU",
    "Lion",
    "LoadReport",
    "Loader",
    "LogSigmoid",
    "LogSoftmax",
    "Loss",
    "MaxPool1d",
    "MaxPool2d",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "Mish",
    "MultiHeadAttention",
    "Optimizer",
    "PReLU",
    "Parallel",
    "Parameter",
    "Perplexity",
    "Poisson",
    "Position",
    "RMSNorm",
    "RMSprop",
    "ReLU",
    "ReLU6",
    "ReduceOnPlateau",
    "Reshape",
    "Residual",
    "Schedule",
    "SequenceAccuracy",
    "SequenceCrossEntropy",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "SoftmaxCrossEntropy",
    "Softplus",
    "Softshrink",
    "Softsign",
    "StepDecay",
    "Tanh",
    "Tape",
    "TopK",
    "Trainer",
    "WarmUp",
    "WeightAverage",
    "backend_of",
    "check_gradients",
    "datasets",
    "errors",
    "export_onnx",
    "get_backend",
    "get_communicator",
    "import_onnx",
    "init",
    "load",
    "logistic_regression",
    "plot_confusion",
    "plot_history",
    "plot_weights",
    "save",
    "schedules",
    "to_numpy",
    "train_step",
    "use",
]
