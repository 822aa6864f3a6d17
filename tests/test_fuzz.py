"""The readers of files on inputs that fuzzers found worth keeping, and on variations of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gpunn as gn
from gpunn.errors import StateError
from tests.fuzzed import CORPUS, TARGETS, as_file, signed, training

KEPT = {name: sorted(path for path in (CORPUS / name).iterdir()) for name in TARGETS}
CONTENTS = {name: [path.read_bytes() for path in paths] for name, paths in KEPT.items()}

#: Words of headers, right and wrong, and what is near the bounds of numbers.
WORDS = st.sampled_from(
    (
        *("weight", "bias", "__metadata__", "format", "gpunn", "gpunn 1", "gpunn 2", "pt"),
        *("gpunn test 3", "step", "dtype", "shape", "data_offsets", "F32", "BOOL", "BF16", "F4"),
        *("[1]", "[" * 900, "0" * 64, "\ud800", ""),
        *(
            json.dumps({"sha256": "0" * 64, "format": kind, "metadata": {}}, separators=(",", ":"))
            for kind in ("gpunn 2", "gpunn test 3")
        ),
    )
)
NUMBERS = st.one_of(
    st.integers(-1, 9), st.sampled_from([2**31, 2**63 - 1, 2**63, 2**64, 10**400, 0.5, 1e999])
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, WORDS),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
SHAPES = st.lists(st.integers(0, 3), max_size=3)


@st.composite
def entries(draw: Any) -> Any:
    """Draw an entry that may well fit the data, or one in which a part is anything."""
    dtype = draw(st.sampled_from(["F32", "F64", "BOOL", "BF16", "F8_E4M3", "U8", "F99"]))
    begin = draw(st.integers(0, 8))
    place = [begin, begin + draw(st.integers(0, 16))]
    entry: dict[str, Any] = {"dtype": dtype, "shape": draw(SHAPES), "data_offsets": place}
    for name in draw(st.lists(st.sampled_from(sorted(entry)), max_size=1)):
        entry[name] = draw(VALUES)
    return entry


@st.composite
def files(draw: Any) -> bytes:
    """Draw a file in the safetensors format whose header is made of the right words."""
    header = draw(st.dictionaries(WORDS, st.one_of(entries(), VALUES), max_size=3))
    if draw(st.booleans()):
        header["__metadata__"] = draw(st.dictionaries(WORDS, st.one_of(WORDS, VALUES), max_size=3))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + draw(st.binary(max_size=24))


@st.composite
def variations(draw: Any, kept: list[bytes]) -> bytes:
    """Draw an input that was kept, with a few pieces replaced by bytes or by pieces of another."""
    content = draw(st.sampled_from(kept))
    for _ in range(draw(st.integers(0, 3))):
        begin, other = draw(st.integers(0, len(content))), draw(st.sampled_from(kept))
        end = begin + draw(st.integers(0, 9))
        copied = draw(st.integers(0, len(other)))
        piece = draw(st.one_of(st.binary(max_size=9), st.just(other[copied : copied + 20])))
        content = content[:begin] + piece + content[end:]
    return content


@pytest.mark.parametrize(
    ("name", "path"),
    [pytest.param(name, path, id=f"{name}/{path.name}") for name in KEPT for path in KEPT[name]],
)
def test_what_was_kept(name: str, path: Path) -> None:
    TARGETS[name](path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_variations(name: str, data: Any) -> None:
    TARGETS[name](data.draw(variations(CONTENTS[name])))


#: What may stand in a state where something else is expected.
ODD = (
    *(None, True, -1, 0, 7, 2**70, 0.5, float("nan"), 1e300, "x", [], [3], [9] * 5, {}, {"a": 1}),
    *({"$array": "trainer/model/layers.0.bias"}, {"$array": "nothing"}, {"$array": 3}),
)


def parts(value: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the ways to all parts of a state, by names and places in lists."""
    if way:
        yield way
    if isinstance(value, list):
        value = dict(enumerate(value))
    for name, part in value.items() if isinstance(value, dict) else ():
        yield from parts(part, (*way, name))


def opened(content: bytes) -> tuple[Any, Any, bytes]:
    """Return the header of a file, gpunn's entry in its metadata, and the rest."""
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    return header, json.loads(header["__metadata__"]["gpunn"]), content[end:]


def changed(content: bytes, way: tuple[Any, ...], value: Any) -> bytes:
    """Return a file with another part in its state."""
    header, said, data = opened(content)
    inner = said["metadata"]
    for name in way[:-1]:
        inner = inner[name]
    inner[way[-1]] = value
    header["__metadata__"]["gpunn"] = json.dumps(said, separators=(",", ":"))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@cache
def written(unit: Any) -> bytes:
    """Return a checkpoint from the end or the middle of an epoch, with zeros for its digest."""

    class Last(gn.Checkpoint):
        def write(self, state: dict[str, Any], step: int) -> None:
            super().write(state, step)
            raise KeyboardInterrupt

    (trainer, loader), path = training(), as_file(b"")
    trainer.fit(loader, 2, callbacks=[Last(path, 1, unit=unit)], progress=False)
    content = path.read_bytes()
    return content.replace(opened(content)[1]["sha256"].encode(), b"0" * 64)


@given(data=st.data(), unit=st.sampled_from(["epochs", "steps"]))
@settings(deadline=None, max_examples=400)
def test_a_part_of_a_checkpoint_is_something_else(data: Any, unit: str) -> None:
    content = written(unit)
    way = data.draw(st.sampled_from([*parts(opened(content)[1]["metadata"])]))
    TARGETS["checkpoint"](changed(content, way, data.draw(st.sampled_from(ODD))))


@pytest.mark.parametrize(
    "order", [[], [0], [0, 1, 2, 3, 5], [0, 1, 2, 3, -1], [2**62] * 5, [0.5] * 5]
)
def test_an_order_past_the_data(order: list[int]) -> None:
    """Compiled steps would read what lies beside the data."""
    path = as_file(signed(changed(written("epochs"), ("order", "order"), order)))
    trainer, loader = training()
    with pytest.raises(StateError, match=r"cannot resume from .*shuffle must return"):
        trainer.fit(loader, 2, resume=path, progress=False)


@pytest.mark.parametrize("name", ["safetensors", "state", "weights"])
@given(content=files())
@settings(deadline=None, max_examples=300)
def test_headers_of_the_right_words(name: str, content: bytes) -> None:
    TARGETS[name](content)
