"""The errors that gpunn raises on purpose; every one is a `GpunnError`.

Each also derives from the built-in class that a caller would expect (a wrong shape is a
`ValueError`), so code that knows nothing of gpunn can still catch it.
"""

from __future__ import annotations


class GpunnError(Exception):
    """Base of every error that gpunn raises on purpose."""


class ShapeError(GpunnError, ValueError):
    """An array has the wrong number of axes or the wrong lengths."""


class DTypeError(GpunnError, TypeError):
    """An array has the wrong kind or width of number."""


class DataError(GpunnError, ValueError):
    """The data are unusable: empty, of unequal lengths, or not finite."""


class LabelError(GpunnError, ValueError):
    """A class label or target value is outside the range of the loss."""


class SettingError(GpunnError, ValueError):
    """A setting is unknown, or outside its interval."""


class DeviceError(GpunnError, RuntimeError):
    """Arrays that are used together are on different devices, or this process can use none."""


class DeviceMemoryError(GpunnError, MemoryError):
    """A device is out of memory; the message says what to do, such as how large a batch fits."""


class BackendUnavailableError(GpunnError, RuntimeError):
    """A backend does not work here; the message says why, and what to do."""


class TapeError(GpunnError, RuntimeError):
    """A backward pass does not match the forward pass that was recorded."""


class DivergenceError(GpunnError, ArithmeticError):
    """Training reached a loss that is not finite."""


class GradientError(GpunnError, AssertionError):
    """A backward pass disagrees with finite differences, or leaves out a gradient."""


class FileError(GpunnError, ValueError):
    """A file of weights does not fit the model, or a file is damaged or of another kind."""


class PathError(FileError, OSError):
    """A file cannot be read or written at this path."""


class MissingFileError(PathError, FileNotFoundError):
    """There is no file at this path."""


class StateError(GpunnError, ValueError):
    """A state does not fit the object that loads it, or an object's state is not known."""


class BusyError(GpunnError, RuntimeError):
    """Another thread is at work on the same object."""


class DistributedError(GpunnError, RuntimeError):
    """Processes that train together do not agree, or one of them has ended."""


class MovedError(GpunnError, ImportError):
    """A pickle or an import refers to a module of gpunn 0.1.0 that this version does not have."""


def moved(place: str) -> MovedError:
    """Return the error for a module, or a class in one, that no longer exists."""
    return MovedError(
        f"{place} is where gpunn 0.1.0 had it, and pickles from 0.1.0 cannot be read. Load them "
        "with 0.1.0 and keep the weights there: gn.save(path, model), then gn.load here; or an "
        "estimator's coefs_ and intercepts_. Code should import from gpunn itself"
    )
