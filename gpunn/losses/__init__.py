"""Cost functions: the base class, and one file for each family of losses."""

from gpunn.errors import moved

_MOVED = ("BinaryCrossEntropy", "CrossEntropy", "MeanSquaredError", "SoftmaxCrossEntropy")


def __getattr__(name: str) -> object:
    """Refuse the classes that pickles from before the move look for here."""
    if name in _MOVED:
        raise moved(f"gpunn.losses.{name}")
    raise AttributeError(f"module 'gpunn.losses' has no attribute {name!r}")
