"""What notebooks show: tables, in which nothing from the user is markup."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from typing import Any

import gpunn as gn


def table(shown: Any) -> tuple[str, list[list[str]]]:
    """Return the caption and the cells of a table in HTML; it must be well-formed."""
    root = ET.fromstring(shown._repr_html_())  # noqa: S314 (it is our own)
    assert root.tag == "table"
    rows = [["".join(cell.itertext()) for cell in row] for row in root.iter("tr")]
    assert len({len(row) for row in rows}) <= 1
    return "".join(root.find("caption").itertext()), rows  # type: ignore[union-attr]


def test_a_history() -> None:
    history = gn.History()
    for loss in (4.0, 3.0, 0.5, 3.0, 1.0, 1.25):
        history.append({"loss": loss, "elapsed_s": 0.5})
    history.append({"<b>f1</b>": 0.25})
    history.stopped = "1 < 2 & <script>"
    title, rows = table(history)
    assert title == "History(6 epochs in 3 s; 1 < 2 & <script>)"
    assert rows == [
        ["epoch", "loss", "<b>f1</b>"],
        ["1", "4", "nan"],
        ["2", "3", "nan"],
        ["3", "0.5", "nan"],
        ["...", "", ""],
        ["5", "1", "nan"],
        ["6", "1.25", "0.25"],
    ]
    best = history._repr_html_().splitlines()[5]
    assert "<th" in best
    assert ">0.5<" in best


def test_a_history_without_epochs() -> None:
    assert table(gn.History())[0] == "History(0 epochs; not started)"
