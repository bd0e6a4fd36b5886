"""The one writer of Markdown: tables, and the parts of a text that are generated."""

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import click

from common.errors import UserError
from common.files import write_text

BLOCK = re.compile(r"(<!-- (\w+): (.*?) -->\n).*?(<!-- end -->)", re.S)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row being the head; all columns but the first are flushed right.

    >>> print(markdown_table([["method", "n"], ["a|b", "3"]]))
    | method | n |
    |---|---:|
    | a\\|b | 3 |
    """
    head, *body = (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body])


def fill_blocks(text: str, kind: str, make: Callable[[str], str | None]) -> str:
    """Replace what stands between `<!-- KIND: NAME -->` and `<!-- end -->` by make(NAME); None leaves it.

    >>> fill_blocks("<!-- measured: n -->\\nold\\n<!-- end -->", "measured", {"n": "3"}.get)
    '<!-- measured: n -->\\n3\\n<!-- end -->'
    """

    def fill(block: re.Match) -> str:
        content = make(block[3]) if block[2] == kind else None
        return block[0] if content is None else f"{block[1]}{content}\n{block[4]}"

    return BLOCK.sub(fill, text)


def rewrite(path: Path, edit: Callable[[str], str], check: bool) -> bool:
    """Write what `edit` makes of a text file; `check` leaves it as it is. True if that is another text."""
    try:
        old = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    new = edit(old)
    if new != old and not check:
        write_text(path, new)
    return new != old


def report_stale(paths: Iterable[Path], check: bool) -> None:
    """Name the files that `rewrite` changed, or would have; then, with `check`, end with exit code 1."""
    stale = list(paths)
    for path in stale:
        click.echo(f"{'stale' if check else 'rewritten'}: {path}", err=True)
    if check and stale:
        raise SystemExit(1)
