"""Exchange texts, JSON values and arrays between processes, and check that they agree."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import numpy as np

from gpunn.distributed.communicator import Communicator
from gpunn.errors import DistributedError

#: The address in the default repr of an object, which differs from rank to rank.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")

#: The packages whose versions may change the results.
_COMPUTING = ("gpunn", "numpy", "cupy", "numba")


def gather_bytes(communicator: Communicator, content: bytes) -> list[bytes]:
    """Return the bytes of all ranks, by rank."""
    sizes = np.zeros(communicator.size, np.int64)
    sizes[communicator.rank] = len(content)
    communicator.allreduce(sizes)
    stops = np.cumsum(sizes)
    joined = np.zeros(int(stops[-1]), np.uint8)
    stop = int(stops[communicator.rank])
    joined[stop - len(content) : stop] = np.frombuffer(content, np.uint8)
    communicator.allreduce(joined)
    return [part.tobytes() for part in np.split(joined, stops[:-1])]


def gather(communicator: Communicator, value: Any) -> list[Any]:
    """Return the values of all ranks, by rank: numbers, strings, and lists and dicts of these."""
    contents = gather_bytes(communicator, json.dumps(value).encode())
    return [json.loads(content) for content in contents]


def merge(communicator: Communicator, columns: Sequence[Any], common: int) -> list[Any]:
    """Return columns with the entries of all ranks, as NumPy arrays.

    Entries alternate between ranks, so their order does not depend on how often columns are merged.

    Parameters
    ----------
    communicator : Communicator
    columns : sequence of arrays
        Entries are along the first axis. All ranks have the same number of columns, of the same
        dtypes.
    common : int
        The number of leading entries that all ranks share already.
    """
    own = [np.asarray(column) for column in columns]
    by_rank = [_unpack(content) for content in gather_bytes(communicator, _pack(own))]
    return [_interleave(list(parts), common) for parts in zip(*by_rank, strict=True)]


def _interleave(parts: list[Any], common: int) -> Any:
    """Return the first `common` entries, which all parts share, then the others in turn."""
    rest = [part[common:] for part in parts if len(part) > common]
    if not rest:
        return parts[0]
    turns = np.concatenate([np.arange(len(part)) for part in rest])
    joined = np.concatenate(rest)[np.argsort(turns, kind="stable")]
    return np.concatenate([parts[0][:common], joined]) if common else joined


def broadcast_value(communicator: Communicator, value: Any) -> Any:
    """Return rank 0's value: numbers, strings, and lists and dicts of these."""
    content = json.dumps(value).encode() if communicator.rank == 0 else b""
    return json.loads(gather_bytes(communicator, content)[0])


def versions() -> dict[str, str]:
    """Return the versions, by name, that must be the same on all ranks."""
    python = ".".join(map(str, sys.version_info[:3]))
    modules: dict[str, Any] = {name: sys.modules.get(name) for name in _COMPUTING}
    found = {name: getattr(module, "__version__", None) for name, module in modules.items()}
    return {"Python": python} | {name: version for name, version in found.items() if version}


def check_alike(owner: str, communicator: Communicator, facts: Mapping[str, str]) -> None:
    """Check that facts are the same on all ranks.

    Raises
    ------
    DistributedError
        On every rank. The message says what differs, and between which ranks.
    """
    own = {name: _ADDRESS.sub("", text) for name, text in facts.items()}
    first, *others = gather(communicator, own)
    faults = []
    for name in first:
        for rank, other in enumerate(others, 1):
            if other.get(name) != first[name]:
                faults.append(f"{name}: rank 0 has {first[name]}, rank {rank} {other.get(name)}")
                break
    if faults:
        raise DistributedError(
            f"{owner}: the ranks differ, and all must run the same program on the same data. "
            + "; ".join(faults)
        )


def gap_between(one: Any, other: Any) -> float:
    """Return the largest difference of two NumPy arrays, relative to the second's largest number.

    A NaN in the same place of both is not a difference.
    """
    differ = (one != other) & ~(np.isnan(one) & np.isnan(other))
    if not differ.any():
        return 0.0
    gaps = np.abs(one[differ] - other[differ])
    return float(gaps.max()) / (float(np.nanmax(np.abs(other))) or 1.0)


def _pack(arrays: Sequence[Any]) -> bytes:
    buffer = BytesIO()
    for array in arrays:
        np.save(buffer, np.asarray(array), allow_pickle=False)
    return buffer.getvalue()


def _unpack(content: bytes) -> list[Any]:
    buffer, found = BytesIO(content), []
    while buffer.tell() < len(content):
        found.append(np.load(buffer, allow_pickle=False))
    return found
