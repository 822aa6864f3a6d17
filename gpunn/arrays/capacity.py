"""Detect that memory has run out, and raise an error that says what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from gpunn.arrays.backend import Backend
from gpunn.arrays.checks import MOST
from gpunn.arrays.facts import is_out_of_memory
from gpunn.errors import DeviceMemoryError


def shortage(owner: str, place: Backend, error: BaseException, advice: str) -> DeviceMemoryError:
    """Return the error for work that ran out of memory.

    Call it once the work's own arrays are freed; the traceback of `error` may hold them.

    Parameters
    ----------
    owner : str
        The function or object that needed the memory, and what for.
    place : Backend
        The device.
    error : Exception
        The error that the library raised.
    advice : str
        What to do.
    """
    return DeviceMemoryError(
        f"{owner}: {place} is out of memory; {state_of(place, error)}; {advice}"
    )


@contextmanager
def room_for(owner: str, place: Backend, *shapes: tuple[int, ...]) -> Iterator[None]:
    """Raise `shortage` if new parameters of these shapes do not fit, at up to 8 bytes a number.

    Shapes of more than 2**63 bytes are refused: libraries fail on them in many different ways.
    """
    for shape in shapes:
        if 8 * math.prod(shape) > MOST:
            raise DeviceMemoryError(
                f"{owner}: an array of shape {shape} is larger than any memory; make it smaller"
            )
    with memory_for(owner, place, "make it smaller, or free other memory on the device"):
        yield


def state_of(place: Backend, error: BaseException) -> str:
    """Return how many bytes were requested, if `error` knows, and how many are free now."""
    free = place.free_bytes(released=True)
    known = "an unknown number of" if free is None else f"{free:,}"
    wanted = getattr(error, "_size", None) or getattr(error.__cause__, "_size", None)
    requested = "" if wanted is None else f"{int(wanted):,} bytes were requested, "
    return f"{requested}{known} bytes are free"


@contextmanager
def memory_for(owner: str, place: Backend | None, advice: str) -> Iterator[None]:
    """Raise `shortage` if the block runs out of memory.

    An error that already has advice is passed on; so is any error if `place` is None, for arrays of
    an unknown library.
    """
    try:
        yield
    except Exception as error:
        if place is None or isinstance(error, DeviceMemoryError) or not is_out_of_memory(error):
            raise
        failure = error.with_traceback(None)
    else:
        return
    raise shortage(owner, place, failure, advice) from failure
