"""Loss functions: the base class, and one file for each family."""

from gpunn.errors import moved

_MOVED = ("BinaryCrossEntropy", "CrossEntropy", "MeanSquaredError", "SoftmaxCrossEntropy")


def __getattr__(name: str) -> object:
    """Refuse the classes that pickles from version 0.1.0 look for here."""
    if name in _MOVED:
        raise moved(f"gpunn.losses.{name}")
    raise AttributeError(f"module 'gpunn.losses' has no attribute {name!r}")
