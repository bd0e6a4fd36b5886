"""Texts as files and spreadsheets can hold them."""

import csv
import io
from collections.abc import Iterable

# A spreadsheet takes a cell that begins so for a formula. Such a cell gets an apostrophe in front, as does one that
# begins with an apostrophe, so that reading takes away just what writing has put there. The page does the same.
FORMULA = ("=", "+", "-", "@", "\t", "\r", "'")


def safe_cell(text: str) -> str:
    """The text of a CSV cell that no spreadsheet runs; `plain_cell` gives back the text.

    >>> safe_cell("=1+1.png"), plain_cell("'=1+1.png"), plain_cell("a.png")
    ("'=1+1.png", '=1+1.png', 'a.png')
    """
    return "'" + text if text.startswith(FORMULA) else text


def plain_cell(cell: str) -> str:
    """The text that `safe_cell` made safe."""
    return cell[1:] if cell.startswith("'") and cell[1:].startswith(FORMULA) else cell


def visible(text: str) -> str:
    r"""A text that UTF-8 can hold: bytes of a file name that are no UTF-8 are written as `\udcff`."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def csv_table(rows: Iterable[Iterable[str]]) -> str:
    """A CSV file of texts, each safe and visible."""
    text = io.StringIO()
    # Ends lines as RFC 4180 says: else a "\r" in a name is not quoted
    csv.writer(text).writerows([safe_cell(visible(cell)) for cell in row] for row in rows)
    return text.getvalue()
