"""Tables for notebooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def html_table(
    title: str, names: Sequence[str], rows: Sequence[Sequence[str]], bold: Collection[int] = ()
) -> str:
    """Return a table in HTML. Its text is escaped, and keeps its spaces.

    Parameters
    ----------
    title : str
        The caption.
    names : sequence of str
        The column headings; the first column is left-aligned, the others are right-aligned.
    rows : sequence of sequence of str
        The cells. A row that is too short ends in empty cells.
    bold : collection of int, optional
        The numbers of rows in bold.
    """
    from html import escape  # noqa: PLC0415 (not needed to import gpunn)

    lines = ["<table>", f'<caption style="text-align: left">{escape(title)}</caption>']
    if names:
        lines.append(_row(names, "th"))
    for i, row in enumerate(rows):
        filled = [*row, *[""] * (len(names) - len(row))]
        lines.append(_row(filled, "th" if i in bold else "td"))
    return "\n".join([*lines, "</table>"])


def _row(cells: Sequence[str], tag: str) -> str:
    from html import escape  # noqa: PLC0415 (not needed to import gpunn)

    sides = ("left", *["right"] * len(cells))
    tags = (
        f'<{tag} style="text-align: {side}; white-space: pre-wrap">{escape(cell)}</{tag}>'
        for cell, side in zip(cells, sides, strict=False)
    )
    return f"<tr>{''.join(tags)}</tr>"
