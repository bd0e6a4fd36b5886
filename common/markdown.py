"""The one writer of Markdown tables."""

from collections.abc import Sequence


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row being the head; all columns but the first are flushed right.

    >>> print(markdown_table([["method", "n"], ["a|b", "3"]]))
    | method | n |
    |---|---:|
    | a\\|b | 3 |
    """
    head, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body])
