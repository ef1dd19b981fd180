"""What the commands that only tell share: text of unknown origin made harmless, tables of plain lines.

In: text people or machines wrote. Out: lines for a terminal or a log. Invariant: whatever was typed can neither end a
line nor move a cursor nor colour a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence

HASH_SHOWN = 12


def printable(text: str) -> str:
    """Text of unknown origin on one line, nothing in it that a terminal acts on."""
    return "".join(character if character.isprintable() else repr(character)[1:-1] for character in text)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with aligned columns, no space at their ends; cells are made printable."""
    cells = [[printable(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]
