"""Headers of files: each way to be wrong is named, before any memory is taken."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest

from gpunn.files.header import Entry, Header, compose, lay_out, parse


def entry(dtype: Any = "F32", shape: Any = (1,), place: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


WRONG: dict[str, tuple[Any, str]] = {
    "no text": (b"\xff", "can't decode"),
    "in UTF-16": ('{"w": {}}'.encode("utf-16-le"), "Expecting"),
    "nothing": (b"", "Expecting value"),
    "more after it": (b"{} {}", "Extra data"),
    "a list": ([], "its header is not a table of names"),
    "a number": (3, "its header is not a table of names"),
    "nested": (b"[" * 100_000, "its header is nested too deeply"),
    "a name twice": (b'{"a": 1, "a": 1}', "a name comes twice"),
    "a part twice": (b'{"a": {"dtype": "F32", "dtype": "F32"}}', "a name comes twice"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "[Dd]igits"),
    "metadata as a list": ({"__metadata__": ["a"]}, "metadata are not strings by name"),
    "metadata as a number": ({"__metadata__": {"a": 1}}, "metadata are not strings by name"),
    "no table": ({"w": 3}, "the entry of w is not a table"),
    "no type": ({"w": {"shape": [1], "data_offsets": [0, 4]}}, "w is of no known type"),
    "another type": ({"w": entry("F99")}, "w is of no known type"),
    "a list as type": ({"w": entry(["F32"])}, "w is of no known type"),
    "no shape": ({"w": entry(shape=None)}, "w has an impossible shape"),
    "a length as shape": ({"w": entry(shape=1)}, "w has an impossible shape"),
    "a negative length": ({"w": entry(shape=[-1])}, "w has an impossible shape"),
    "half a length": ({"w": entry(shape=[1.0])}, "w has an impossible shape"),
    "a truth value as length": ({"w": entry(shape=[True])}, "w has an impossible shape"),
    "a length past addresses": ({"w": entry(shape=[0, 2**63])}, "w has an impossible shape"),
    "65 axes": ({"w": entry(shape=[1] * 65)}, "w has an impossible shape"),
    "no place": ({"w": entry(place=None)}, "w has an impossible place"),
    "half a place": ({"w": entry(place=[0])}, "w has an impossible place"),
    "three places": ({"w": entry(place=[0, 4, 4])}, "w has an impossible place"),
    "a place before": ({"w": entry(place=[-4, 0])}, "w has an impossible place"),
    "backwards": ({"w": entry(place=[4, 0])}, "w is F32 of shape (1,), which does not fill"),
    "a shape past addresses": ({"w": entry(shape=[0, 2**62, 4])}, "w is larger than any memory"),
    "too small": (
        {"w": entry(shape=[2])},
        "w is F32 of shape (2,), which does not fill bytes 0 to",
    ),
    "too large": (
        {"w": entry(shape=[0])},
        "w is F32 of shape (0,), which does not fill bytes 0 to",
    ),
    "half a byte": ({"w": entry("F4", place=[0, 1])}, "w is F4 of shape (1,), which does not"),
    "a gap at first": ({"w": entry(place=[4, 8])}, "w begins at byte 4, where 0 was expected"),
    "a gap": (
        {"v": entry(), "w": entry(place=[8, 12])},
        "w begins at byte 8, where 4 was expected",
    ),
    "two in one place": ({"v": entry(), "w": entry()}, "w begins at byte 0, where 4 was expected"),
    "too few": ({}, "its header announces 0 bytes of arrays, and 4 follow"),
    "too many": (
        {"v": entry(), "w": entry(place=[4, 8])},
        "its header announces 8 bytes of arrays, and 4 follow",
    ),
}


@pytest.mark.parametrize(("said", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(said: Any, message: str) -> None:
    text = said if isinstance(said, bytes) else json.dumps(said).encode()
    pattern = message if message.startswith("[") else re.escape(message)
    with pytest.raises(ValueError, match=pattern):
        parse(text, 4)


def test_what_may_be_otherwise() -> None:
    """Spaces, parts that nobody knows, metadata of null, and entries in any order."""
    said = {
        "w": {**entry("F4", [2, 1], [3, 4]), "more": 1},
        "v": entry("F6_E2M3", [4], [0, 3]),
        "e": entry("F64", [0, 2], [3, 3]),
        "__metadata__": None,
    }
    header = parse(f" {json.dumps(said)}\n".encode(), 4)
    assert list(header.entries) == ["v", "e", "w"]
    assert header.metadata == {}


def test_what_is_composed_is_parsed() -> None:
    arrays = {"b": np.ones(3, "?"), "a": np.ones((2, 1)), "é\ud800": np.ones(0, "f2")}
    header = Header(lay_out(arrays), {"format": "mine 1", "\0": '"'})
    content = compose(header)
    assert parse(content[8:], 19) == header
    assert int.from_bytes(content[:8], "little") == len(content) - 8
    assert len(content) % 8 == 0
    assert header.entries["a"] == Entry("F64", (2, 1), 0, 16)
